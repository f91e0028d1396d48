"""Values of flags, read from text. What cannot be read raises argparse's own error, which becomes one line."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from lssgen.choices import leaves, spelt_limit
from lssgen.errors import LssgenError
from lssgen.lora.asked import Lora

Reader = Callable[[str], Any]
"""Function from a flag's text to its value."""


_DIGITS = 20
"""Digits of more than any number of pixels has."""


def integer(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:  # or more digits than Python reads
        raise ArgumentTypeError(f"{short(text)} is not a whole number") from None


def number(text: str) -> float:
    """A number, neither infinite nor NaN."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{short(text)} is not a number") from None
    if not isfinite(value):
        raise ArgumentTypeError(f"{short(text)} is not a finite number")
    return value


def number_or(words: Iterable[str]) -> Reader:
    """A number, or one of some words."""
    known = tuple(words)

    def read(text: str) -> float | str:
        try:
            return text if text in known else number(text)
        except ArgumentTypeError as error:
            raise ArgumentTypeError(f"{error}; nor is it {' or '.join(known)}") from None

    return read


def size(text: str) -> tuple[int, int]:
    """(width, height) of "1280x768", or of "1024", which is both."""
    sides = text.lower().split("x")
    # Digits are counted, since Python refuses to read more than 4300 of them with an error of its own.
    if len(sides) > 2 or not all(side.strip().isdecimal() and len(side) < _DIGITS for side in sides):
        raise ArgumentTypeError(f"{short(text)} is not a size; write 1024, or 1280x768 for width x height")
    return int(sides[0]), int(sides[-1])


def rows_first(text: str) -> tuple[int, int]:
    """(height, width) of what a person writes as width x height, for the many places that count rows first."""
    width, height = size(text)
    return height, width


def one_of(names: Iterable[str]) -> Reader:
    """One of some words."""
    known = tuple(names)

    def read(text: str) -> str:
        if text in known:
            return text
        near = get_close_matches(text, known, 1)
        raise ArgumentTypeError(
            f"there is no {text!r}; " + (f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}")
        )

    return read


def several(read: Reader) -> Reader:
    """Values with commas between them, each as `read` takes it: a tuple."""

    def read_all(text: str) -> tuple[Any, ...]:
        return tuple(read(part.strip()) for part in text.split(","))

    return read_all


def within(least: float | None, most: float | None, read: Reader) -> Reader:
    """Numbers, or several, of which none is smaller than `least` or larger than `most`, where these are limits."""

    def read_checked(text: str) -> Any:
        value = read(text)
        for one in leaves(value):
            if least is not None and one < least:
                raise ArgumentTypeError(f"{short(text, quoted=False)} is too small; give {spelt_limit(least)} or more")
            if most is not None and one > most:
                raise ArgumentTypeError(f"{short(text, quoted=False)} is too large; give {spelt_limit(most)} at most")
        return value

    return read_checked


def short(text: str, *, quoted: bool = True) -> str:
    """A value as it came, with its middle left out where it is long."""
    shown = text if len(text) <= 60 else f"{text[:30]}...{text[-10:]}"
    return repr(shown) if quoted else shown


def named_file(text: str) -> tuple[str, Path]:
    """Name and file of "depth=depth.png"."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ArgumentTypeError(f"{short(text)} is not NAME=FILE, such as depth=depth.png")
    return name, Path(file)


def control_file(text: str) -> tuple[str, Path]:
    """Name and file of a control picture: `named_file` for the one name that has a flag of its own."""
    return "control", Path(text)


def named(text: str) -> tuple[str, str]:
    """Both sides of "dall-e-3=painter"."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ArgumentTypeError(f"{short(text)} is not NAME=MODEL, such as dall-e-3=sd3")
    return name, value


def named_lora(text: str) -> tuple[str, Lora]:
    """Name, file and strength of "style=style.safetensors:0.8"."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ArgumentTypeError(f"{short(text)} is not NAME=FILE or NAME=FILE:STRENGTH")
    return name, reads_itself(Lora)(file)


def reads_itself(made: Any) -> Reader:
    """What a class makes of text by its `from_text`."""

    def read(text: str) -> Any:
        try:
            return made.from_text(text)
        except LssgenError as error:
            raise ArgumentTypeError(str(error)) from error

    return read
