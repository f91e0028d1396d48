"""What a choice may be: numbers within limits, words from a list, switches. NaN is outside of every limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lssgen.errors import TrainingError

_KINDS: Mapping[type, str] = {bool: "True or False", str: "text", Path: "a pathlib.Path"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Numbers that fit.

    Attributes:
        least, most: Ends of the range; `most` belongs to it.
        whole: True where only whole numbers fit.
        above: True where `least` itself does not fit.
        below: True where `most` itself does not fit.
    """

    least: float = 0
    most: float
    whole: bool = True
    above: bool = False
    below: bool = False

    def hold(self, value: object) -> bool:
        """Whether a value is such a number."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        low = self.least < value if self.above else self.least <= value
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = "above" if self.above else "of at least"
        return f"{kind} {low} {self.least:g} and {'below' if self.below else 'at most'} {_spelt(self.most)}"


def check_choices(record: Any, limits: Mapping[str, Limits]) -> None:
    """See that every field of a dataclass that has limits or words to choose from, or is a switch or a text, fits.

    Raises:
        TrainingError: Names the first that does not, what it is and what would fit.
    """
    hints = get_type_hints(type(record))
    for name, hint in hints.items():
        value: object = getattr(record, name)
        if name in limits:
            fits, wanted = limits[name].hold(value), str(limits[name])
        elif get_origin(hint) is Literal:
            fits, wanted = value in get_args(hint), f"one of {', '.join(get_args(hint))}"
        elif hint in _KINDS:
            fits, wanted = isinstance(value, hint), _KINDS[hint]
        else:
            continue
        if not fits:
            raise TrainingError(f"{name} is {value!r}, but must be {wanted}")


def _spelt(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and number < 2**53 else f"{number:g}"
