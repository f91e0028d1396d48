"""Files and folders that are whole or not there, whatever happens, and locks between processes.

Everything that counts is written beside its place, flushed to the disk, and renamed. What a kill leaves behind has a
name that begins with a dot and ends in PARTIAL. Whoever holds the lock of a place removes it (`clear_partial`); where
there is no lock, the next writer of the place does, a day later.
"""

import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import filelock

PARTIAL, ASIDE = ".partial", ".old"
UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{16}(\.old)?\.partial")
"""Names of unfinished files and folders; the first group is the name of their place."""

SWEEP_EVERY_S = 3600.0
"""Seconds between two looks for abandoned files in one folder."""

ABANDONED_S = 24 * 3600.0
"""Seconds without a write after which an unfinished file is taken for that of a killed process."""


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Give a file to write in place of `path`, which it becomes when the block ends well; else nothing is left of it.

    The file that is given is there already, empty, so that no other file, and no link to one, can be in its place.

    Raises:
        OSError: It cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    draft = _new_file(path)
    try:
        yield draft
        put(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is whole, or as it was before.

    Raises:
        OSError: It cannot be written.
    """
    with whole_file(path) as draft:
        draft.write_bytes(content)


def put(source: Path, target: Path) -> None:
    """Rename a finished file to its place on the same disk, once its contents are safe there.

    Raises:
        OSError: It cannot be done; `target` is as it was.
    """
    flush(source)
    source.replace(target)
    flush(target.parent)


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Give a new folder in place of `path`, which it becomes when the block ends well; what was there goes.

    For whoever holds the lock of that place, where others may write it too: a folder cannot take another's name in one
    step, so between two renames it has none. After a kill just there, `clear_partial` brings the old folder back.

    Raises:
        OSError: It cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _beside(path)
    draft.mkdir()  # fails where anything has that name, a link included
    try:
        yield draft
        # Files before their folder is renamed, or a power cut could leave the new name with empty files.
        for file in (*draft.rglob("*"), draft):
            flush(file)
        _exchange(draft, path)
        flush(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_partial(path: Path) -> None:
    """Remove what killed writers of `path` left behind. Only for whoever holds the lock of that place."""
    for aside in _left(path, ASIDE):
        if not os.path.lexists(path):
            aside.rename(path)  # killed between two renames: the old one is the only one
        else:
            _remove(aside)
    for draft in _left(path):
        _remove(draft)


def clear_folder(folder: Path) -> None:
    """Remove what killed writers left of any place in a folder, if it is there. Only for whoever holds its lock."""
    if not folder.is_dir():
        return
    unfinished = (UNFINISHED.fullmatch(path.name) for path in folder.iterdir())
    for name in sorted({found[1] for found in unfinished if found}):
        clear_partial(folder / name)


def check_writable(folder: Path) -> None:
    """See that files can be made in a folder, which is made where it does not exist; leaves no file.

    Raises:
        OSError: They cannot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _new_file(folder / "trial").unlink()


def locked(path: Path, *, wait: bool = True) -> "filelock.BaseFileLock":
    """A lock that at most one process, and one thread of it, holds at a time; a context manager.

    It ends with its holder's process, however that ends.

    Args:
        path: The lock's file; its folder is made. It stays afterwards, empty.
        wait: Wait for whoever holds it; else raise at once.

    Raises:
        filelock.Timeout: Somebody holds it, and `wait` is False. (Raised on entering.)
        OSError: The file cannot be made.
    """
    import filelock  # a sixth of what importing the runtime takes, and most processes lock nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    # Not local to a thread: a generator that holds it may be closed by another thread than the one that began it.
    return filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False)


def flush(path: Path) -> None:
    """Let the disk have what was written to a file, or which names a folder holds.

    Raises:
        OSError: A file's contents cannot be written.
    """
    if path.is_dir():
        with suppress(
            OSError
        ):  # Windows and some network shares do not flush folders; the names are there all the same
            _flush(path, os.O_RDONLY)
    else:
        _flush(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes only what it may write


def _flush(path: Path, how: int) -> None:
    handle = os.open(path, how)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(path: Path, suffix: str = "") -> Path:
    """A name beside `path` that nobody can foresee, so that two writers never share one."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}{PARTIAL}")


def _new_file(path: Path) -> Path:
    """An empty file beside `path` that was not there before; O_EXCL fails where anything has its name, a link included.

    Not `tempfile.mkstemp`, whose files nobody else may read, not even after the rename.
    """
    draft = _beside(path)
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return draft


def _exchange(draft: Path, path: Path) -> None:
    """Rename a folder to `path`; what was there goes, or comes back where that fails."""
    if not os.path.lexists(path):
        draft.rename(path)
        return
    aside = _beside(path, ASIDE)
    path.rename(aside)
    try:
        draft.rename(path)
    # Ctrl-C too: between the two renames the place is empty.
    except BaseException:
        aside.rename(path)
        raise
    _remove(aside)


def _left(path: Path, suffix: str = "") -> list[Path]:
    """What is unfinished of `path`, or with ASIDE what was put aside for it."""
    try:
        with os.scandir(path.parent) as entries:
            found = [(entry.path, UNFINISHED.fullmatch(entry.name)) for entry in entries]
    except OSError:  # a folder that is not there, or that one may write into but not list
        return []
    return [Path(full) for full, match in found if match and match[1] == path.name and (match[2] or "") == suffix]


_SWEPT: dict[Path, float] = {}
"""Time at which this process last looked for abandoned files in a folder. Looking at every file of a folder whenever
one is written would make a thousand pictures a million looks."""


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder a day ago or more; looks once an hour."""
    now = time.time()
    # 0 <=: a clock that was set back would else keep it from looking until it has caught up.
    if 0 <= now - _SWEPT.get(folder, 0) < SWEEP_EVERY_S:
        return
    _SWEPT[folder] = now
    with suppress(OSError), os.scandir(folder) as entries:  # one may be able to write into a folder but not list it
        left = [Path(entry.path) for entry in entries if UNFINISHED.fullmatch(entry.name)]
        for draft in left:
            with suppress(OSError):  # another writer was quicker, or it is somebody else's
                # Files only: a folder's own time stands still while its files are written; whoever has the lock clears
                # those.
                if draft.is_file() and now - draft.lstat().st_mtime > ABANDONED_S:
                    draft.unlink()


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
