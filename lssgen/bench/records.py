"""Files of the bench, as JSON: whole or not there, and read by the lssgen that knows their format."""

from pathlib import Path
from typing import TypeVar

import msgspec

from lssgen.durable import check_writable, write_whole
from lssgen.errors import BenchError
from lssgen.jsons import JsonError, NoFileError, read_json

T = TypeVar("T")


def see_place(path: Path, *, folder: bool = False) -> None:
    """See that a file, or files in a folder, can be written there: found out before the work and not after it.

    Raises:
        BenchError: They cannot.
    """
    try:
        check_writable(path if folder else path.parent)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}; choose another place") from error
    if not folder and path.is_dir():
        raise BenchError(f"{path} cannot be written: it is a folder; name a file")


class _Head(msgspec.Struct):
    format: object = None


def write_record(record: msgspec.Struct, path: Path) -> None:
    """Write a record, indented, whole or not at all.

    Raises:
        BenchError: The file cannot be written.
    """
    try:
        write_whole(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def read_record(
    path: Path, kind: type[T], form: int, *, make: str, again: str, other: type[BenchError] = BenchError
) -> T:
    """Read what `write_record` wrote.

    Args:
        path: The file.
        kind: What it holds.
        form: Format that this lssgen reads.
        make: What to do where there is none.
        again: What to do where it cannot be used.
        other: Error for another format.

    Raises:
        BenchError: It is missing, damaged, or of another format.
    """
    try:
        head = read_json(path, _Head)
        if head.format != form:
            raise other(f"{path} has format {str(head.format)[:20]}, and this lssgen reads format {form}; {again}")
        return read_json(path, kind)
    except NoFileError as error:
        raise BenchError(f"{path} {error}; {make}") from error
    except JsonError as error:
        raise BenchError(f"{path} is damaged: it {error}; {again}") from error
