"""JSON files that somebody else may have written, read with care; all that lssgen reads are read here.

What is under a seal of ours, and the lines of a training's log, are read where they are written.

A file may begin with a mark of its byte order, as some editors write it. It must be an ordinary file of at most
`MOST_BYTES`, in UTF-8, nested no deeper than `DEEPEST`, and what it holds must be of the type that is asked for.
"""

import codecs
import re
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, cast, overload

import msgspec

from lssgen.files import read_regular

MOST_BYTES = 64 * 2**20
"""Size of the largest file that is read. The largest of ours, the record of 100,000 pictures, has a third of it."""

DEEPEST = 64
"""Lists and objects within each other. Ours have ten; decoders give up at about a thousand, in ways of their own."""

LONGEST_REASON = 300
"""Characters of a reason that are told."""

T = TypeVar("T")

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or what is left of the text where it does not end: so the time stays in proportion to the size."""
# What Notepad and PowerShell's > write; the decoder would only say that the first byte is wrong.
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class JsonError(Exception):
    """JSON that cannot be used. The message says why, and goes on after the file's name: "is not JSON: ..."."""


class NoFileError(JsonError):
    """There is no file that could be read."""


def read_json(path: Path, kind: type[T], *, most: int = MOST_BYTES) -> T:
    """The contents of a JSON file.

    Args:
        path: An ordinary file.
        kind: What it should hold: anything that msgspec decodes into.
        most: Largest size in bytes.

    Raises:
        NoFileError: It cannot be read.
        JsonError: It holds something else.
    """
    return decode_json(read_bytes(path, most=most), kind)


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file, for `decode_json`.

    Raises:
        NoFileError: It cannot be read.
    """
    try:
        return read_regular(path, most)
    except OSError as error:
        raise NoFileError(f"cannot be read ({error.strerror})") from error


def decode_json(data: bytes, kind: type[T]) -> T:
    """The value that JSON text stands for.

    Raises:
        JsonError: It is not JSON, or stands for something else.
    """
    try:
        return msgspec.json.decode(_unmarked(data), type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:  # the last, of text that is not UTF-8
        raise JsonError(f"is not what it should be: {_shortened(error)}") from error


@overload
def convert_json(value: object, kind: type[T]) -> T: ...
@overload
def convert_json(value: object, kind: UnionType) -> Any: ...
def convert_json(value: object, kind: Any) -> Any:
    """A decoded value as another type.

    Raises:
        JsonError: It does not fit.
    """
    try:
        return msgspec.convert(value, kind)
    # RecursionError: an object given from Python has been through no `_depth`.
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JsonError(f"is not what it should be: {_shortened(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The contents of a JSON file that should hold an object, with whatever keys.

    Raises:
        NoFileError: It cannot be read.
        JsonError: It holds something else.
    """
    return cast(dict[str, Any], read_json(path, dict[str, object]))


def _unmarked(data: bytes) -> bytes:
    """The text without its byte order mark.

    Raises:
        JsonError: It is in another encoding, or nested too deeply.
    """
    if data.startswith(_OTHER_MARKS):
        raise JsonError("is not what it should be: it is in UTF-16; save it as UTF-8")
    if _depth(data) > DEEPEST:
        raise JsonError(f"is not what it should be: lists and objects are nested more than {DEEPEST} deep")
    return data.removeprefix(codecs.BOM_UTF8)


def _depth(data: bytes) -> int:
    # Most files end here, without their strings being taken out.
    if data.count(b"[") + data.count(b"{") <= DEEPEST:
        return 0  # whatever is a string
    deepest = depth = 0
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", data)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _shortened(error: Exception) -> str:
    """The decoder's words, which repeat what came."""
    said = str(error)
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]}..."
