"""Files that know whether they are still what was written: a line with the hash of the rest, then the rest."""

import hashlib
from pathlib import Path

from lssgen.durable import whole_file
from lssgen.files import open_regular

_BEGIN = b"lssgen sha256 "
_LINE_BYTES = len(_BEGIN) + 64 + 1


def write_sealed(path: Path, kind: str, content: bytes | memoryview) -> None:
    """Write a file, whole or not at all.

    Args:
        kind: What it is, and of what; goes into the hash, so that a file in another's place is noticed too.

    Raises:
        OSError: It cannot be written; `path` is as it was.
    """
    with whole_file(path) as draft, draft.open("wb") as file:
        file.write(_seal(kind, content))
        file.write(content)


def read_sealed(path: Path, kind: str) -> memoryview | None:
    """What was written there, or None where the file is damaged or is not of this kind.

    Raises:
        OSError: It cannot be read. (FileNotFoundError: it is not there.)
    """
    with open_regular(path) as file:
        whole = memoryview(file.read())
    line, content = whole[:_LINE_BYTES], whole[_LINE_BYTES:]
    return content if bytes(line) == _seal(kind, content) else None


def _seal(kind: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(kind.encode() + b"\n")
    digest.update(content)
    return _BEGIN + digest.hexdigest().encode() + b"\n"
