"""What a user may choose, declared once: a field of a dataclass that also says how a command line spells it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from math import isfinite
from numbers import Integral, Real
from types import NoneType
from typing import Any, cast, get_args, get_type_hints


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """How a command line spells a choice.

    Attributes:
        help: Effect of the field, without its default.
        name: The flag, "--steps"; empty: that of the field, with dashes.
        aliases: Further spellings.
        metavar: Word that stands for the value in the help.
        group: Title of the group it is listed in.
        unset: Words for what is so where nothing is given, for a default that does not say it itself, such as None.
        least, most: Smallest and largest number that makes sense; `refuse_outside` and the parser hold values to them.
        words: Words that may stand in the place of a number.
        repeated: True where the flag may be given several times, each time with one entry of the field's tuple.
    """

    help: str
    name: str = ""
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    group: str = ""
    unset: str = ""
    least: float | None = None
    most: float | None = None
    words: tuple[str, ...] = ()
    repeated: bool = False


def choice(default: Any = MISSING, *, default_factory: Any = MISSING, **spelling: Any) -> Any:
    """A dataclass field that is a choice of the user's; `spelling` are the fields of `Flag`."""
    given = {"default": default} if default_factory is MISSING else {"default_factory": default_factory}
    return field(**given, metadata={"flag": Flag(**spelling)})


def flags_of(record: type) -> Mapping[str, tuple[Field[Any], Flag]]:
    """The choices that a dataclass declares, in its order: field and spelling by the field's name."""
    return {one.name: (one, one.metadata["flag"]) for one in fields(record) if "flag" in one.metadata}


def refuse_outside(record: Any, error: type[Exception]) -> None:
    """Refuse choices that should be numbers and are not, are not finite, or lie outside the limits of their flags; and
    those that should be true or false and are something else, such as a text, which Python would take for true.

    Args:
        record: A dataclass; whatever is declared as something else is left alone.
        error: Class of the error that is raised.
    """
    for name, kinds in _numbers(type(record)).items():
        value, flag = getattr(record, name), flags_of(type(record))[name][1]
        if value is None and NoneType in kinds:
            continue
        for number in leaves(value):
            if wanted := _unfit(number, float if float in kinds else int, flag):
                raise error(f"{name} is {_shortened(number)}; it must be {wanted}")
    for name in _truths(type(record)):
        if getattr(record, name) not in (True, False):
            raise error(f"{name} is {_shortened(getattr(record, name))}; it must be True or False")


def _unfit(value: object, kind: type, flag: Flag) -> str:
    """What a number would have to be; "" if it is that."""
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return "a whole number" if kind is int else "a number"
    if kind is float and not _is_finite(cast(float, value)):
        return "a finite number"
    number = cast(float, value)
    if flag.least is not None and number < flag.least:
        return f"at least {spelt_limit(flag.least)}"
    if flag.most is not None and number > flag.most:
        return f"at most {spelt_limit(flag.most)}"
    return ""


def _is_finite(number: float) -> bool:
    try:
        return isfinite(number)
    except OverflowError:  # a whole number that no float holds
        return False


def spelt_limit(number: float) -> str:
    """A limit as people read it."""
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"


_NUMBERS: Collection[frozenset[Any]] = (frozenset({int}), frozenset({float}))


@cache
def _numbers(record: type) -> Mapping[str, frozenset[Any]]:
    """int or float, and the type of None where that is allowed, by name of the choices that are numbers."""
    hints = get_type_hints(record)
    # The ... of tuple[float, ...] comes out among the kinds.
    found = {name: frozenset(_kinds(hints[name])) - {Ellipsis} for name in flags_of(record)}
    return {name: kinds for name, kinds in found.items() if kinds - {NoneType} in _NUMBERS}


@cache
def _truths(record: type) -> tuple[str, ...]:
    """Names of the choices that are true or false, and nothing else."""
    hints = get_type_hints(record)
    return tuple(name for name in flags_of(record) if hints[name] is bool)


def _kinds(hint: Any) -> Iterator[Any]:
    inner = get_args(hint)
    if not inner:
        yield hint
    for one in inner:
        yield from _kinds(one)


def leaves(value: Any) -> Iterator[Any]:
    """The numbers in a value: itself, or those of a tuple or list, of tuples perhaps."""
    if isinstance(value, tuple | list):
        for one in cast(tuple[Any, ...], value):
            yield from leaves(one)
    else:
        yield value
