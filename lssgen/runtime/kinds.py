"""Whether keywords have the kind of value that they take: a text where a number belongs is refused in words."""

from collections.abc import Callable, Mapping
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from PIL import Image

from lssgen.errors import PlanError, PromptError

_PLAIN: Mapping[Any, tuple[Callable[[object], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    # True is an int to Python, and would be taken for a seed of 1 or a height of 1 px.
    int: (lambda value: not isinstance(value, bool) and isinstance(value, Integral), "a whole number"),
    float: (lambda value: not isinstance(value, bool) and isinstance(value, Real), "a number"),
    str: (lambda value: isinstance(value, str), "a text"),
    NoneType: (lambda value: value is None, "None"),
}
"""Test of a value for each kind, and the kind in words. NumPy's numbers are numbers."""

SHOWN = 40


def refuse_other_kinds(given: Mapping[str, object], declared: type) -> None:
    """See that every value has the kind that a TypedDict declares for its key. None fits everywhere: it is not given.

    Raises:
        PlanError: Says which has not, and what it takes.
    """
    hints = _hints(declared)
    for name, value in given.items():
        if value is not None and not _fits(value, hints[name]):
            text = repr(value)
            shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            raise PlanError(f"{name} is {shown}; it must be {_words(hints[name])}")


def see_kinds(
    init_image: object, mask_image: object, control_image: object, on_step: object, on_preview: object
) -> None:
    """See that what a run is given beside its options is what it should be.

    Raises:
        PromptError: Says what is not.
    """
    for name, image in (("init_image", init_image), ("mask_image", mask_image), ("control_image", control_image)):
        if image is not None and not isinstance(image, Image.Image):
            raise PromptError(f"{name} is a {type(image).__name__}; it must be a picture: PIL.Image.open(...)")
    for name, hear in (("on_step", on_step), ("on_preview", on_preview)):
        if hear is not None and not callable(hear):
            raise PromptError(f"{name} is a {type(hear).__name__}; it must be a function")


@cache
def _hints(declared: type) -> Mapping[str, Any]:
    return get_type_hints(declared)


def _fits(value: object, hint: Any) -> bool:
    inner = get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint][0](value)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if get_origin(hint) is Literal:
        return isinstance(value, str)  # which ones there are is said where the value is looked at
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple | list):
            return False
        values = cast(tuple[object, ...], value)
        return all(_fits(one, inner[0]) for one in values)  # how many there must be is said where they are looked at
    return isinstance(value, hint) if isinstance(hint, type) else True


def _words(hint: Any) -> str:
    inner = get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(one) for one in inner)
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if get_origin(hint) is tuple:
        return (
            f"several values, each {_words(inner[0])}"
            if inner[-1] is ...
            else f"{len(inner)} values, each {_words(inner[0])}"
        )
    return f"a {hint.__name__}" if isinstance(hint, type) else str(hint)
