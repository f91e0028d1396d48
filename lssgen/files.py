"""Files that somebody else wrote, read with care: ordinary files only, and no larger than what they should be."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
"""Things that a path may be instead of a file."""

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Opening a pipe does not wait for whoever writes into it; on Windows, bytes are left as they are."""


def open_regular(path: Path) -> BinaryIO:
    """Open an ordinary file, or a link to one, for reading.

    Raises:
        OSError: It cannot be read, or is something else: a pipe would make its reader wait, a device may never end.
    """
    try:
        handle = os.open(path, FLAGS)
    except ValueError as error:  # a null byte in the name
        raise OSError(errno.EINVAL, f"its name cannot be one: {error}", str(path)) from error
    # Of what was opened: between a look at a path and its opening it may become something else.
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    what = next((words for matches, words in KINDS if matches(mode)), "something else")
    raise OSError(errno.EINVAL, f"it is {what} and not a file", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """Contents of an ordinary file of at most `most` bytes.

    Raises:
        OSError: It cannot be read, is something else than a file, or is larger.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)  # what the file claims to be may be wrong, as below /proc
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it is larger than the {most:,} bytes that such a file may have", str(path))
    return data


def as_text(name: str | Path) -> str:
    """The name of a file as text that every encoding takes; bytes that are not text are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
