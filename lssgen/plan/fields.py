"""A scheduler_config.json whose values are checked as they are read."""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, TypeVar, cast

from lssgen.errors import PlanError
from lssgen.plan.schedulers import Scheduler

_Word = TypeVar("_Word", bound=str)

# JSON files of diffusers switch a field off in any of these ways, or leave it out.
_OFF = (False, None, 0)


class FieldError(PlanError):
    """A field of a scheduler's configuration cannot be reproduced."""


class Fields:
    """A configuration as a diffusers class reads it: what the class does not know is passed over, as it does itself.

    Args:
        record: The class.
        config: Contents of scheduler_config.json.
    """

    def __init__(self, record: Scheduler, config: Mapping[str, object]) -> None:
        self._record = record
        self._config = config

    def __contains__(self, name: str) -> bool:
        return name in self._record.fields

    def value(self, name: str) -> object:
        """What the class makes of a field: its default where the file does not say, or where it does not read it."""
        default = self._record.default(name)
        return self._config.get(name, default) if name in self else default

    def number(self, name: str) -> float:
        value = self.value(name)
        if not _is_number(value):
            raise self.refusal(name, "a finite number")
        return float(cast(float, value))

    def between(self, name: str, least: float, most: float) -> float:
        """A number between two others, both excluded."""
        value = self.number(name)
        if not least < value < most:
            raise self.refusal(name, f"above {least:g}" + (f" and below {most:g}" if most < inf else ""))
        return value

    def number_or_none(self, name: str) -> float | None:
        return None if name not in self or self.value(name) is None else self.number(name)

    def whole(self, name: str, least: int = 0, most: int = 100_000) -> int:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refusal(name, f"a whole number of {least} to {most}")
        return value

    def flag(self, name: str) -> bool:
        """A field that is on or off; off where the class does not read it."""
        value = self.value(name) if name in self else None
        if value is not None and not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return bool(value)

    def one_of(self, name: str, allowed: tuple[_Word, ...]) -> _Word:
        value = self.value(name)
        for word in allowed:
            if value == word:
                return word
        raise self.refusal(name, " or ".join(allowed))

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; empty where there is none."""
        value = self.value(name)
        if value is None or name not in self:
            return ()
        if not isinstance(value, list | tuple) or not all(map(_is_number, cast("list[Any]", value))):
            raise self.refusal(name, "a list of finite numbers")
        return tuple(float(one) for one in cast("list[Any]", value))

    def off(self, name: str, *harmless: object) -> None:
        """See that a field that changes the numbers is off, or at another value that changes nothing."""
        if name in self and self.value(name) not in (*_OFF, *harmless):
            raise self.refusal(name, " or ".join(map(str, harmless or (False,))))

    def refusal(self, name: str, fitting: str) -> FieldError:
        shown = repr(self.value(name))
        return FieldError(
            f"field {name} of the {self._record.name} configuration is {shown[:60]}, which the plan cannot reproduce; "
            f"it must be {fitting}"
        )


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    )  # True is an int to Python
