"""Compiled models on disk, a folder for each: written by one process at a time, and used only as they were written.

OpenVINO writes into such a folder in place, and looks at little of what it reads back: two processes that compile at
once disturb each other, and numbers that were changed in a kept model become pictures. So a folder has a lock while
something is compiled into it, and a seal afterwards.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree

import msgspec

from lssgen.bundle import sha256_of
from lssgen.durable import locked, write_whole
from lssgen.jsons import JsonError, read_json

SEAL = "seal.json"


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was written.

    Attributes:
        name: Its name in the folder.
        size: Size in bytes.
        mtime_ns: Time of its last change.
        sha256: Hash of its contents.
    """

    name: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Sealed":
        found = path.stat()
        return cls(name=path.name, size=found.st_size, mtime_ns=found.st_mtime_ns, sha256=sha256_of(path))

    def fits(self, folder: Path) -> bool:
        """Whether the file is still that one. It is read only where its time says otherwise, as after a copy."""
        path = folder / self.name
        try:
            found = path.stat()
            same = (found.st_size, found.st_mtime_ns) == (self.size, self.mtime_ns)
            return same or (found.st_size == self.size and sha256_of(path) == self.sha256)
        except OSError:
            return False


@contextmanager
def kept(folder: Path, tell: Callable[[str], object]) -> Generator[Path | None]:
    """A folder to compile into or to read from, as OpenVINO's CACHE_DIR; None where nothing can be kept.

    Args:
        folder: The folder of one compiled model.
        tell: Hears why nothing can be kept.
    """
    if is_whole(folder):
        yield folder
        return
    try:
        lock = locked(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        tell(f"compiled models cannot be kept in {folder.parent} ({error.strerror}), so every start compiles them")
        yield None
        return
    with lock:
        lock.release()  # one of the two that are held now
        if not is_whole(folder):  # nobody has compiled it while this one waited
            rmtree(folder, ignore_errors=True)
        yield folder
        with suppress(OSError):  # a full disk: without a seal it is compiled again
            seal(folder)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a compiled model that is as it was written."""
    try:
        files = read_json(folder / SEAL, tuple[Sealed, ...])
    except JsonError:
        return False
    return bool(files) and all(file.fits(folder) for file in files)


def seal(folder: Path) -> None:
    """Note what was written.

    Raises:
        OSError: It cannot be read, or the note not be written.
    """
    files = [Sealed.of(path) for path in sorted(folder.glob("*.blob"))]
    if files and not is_whole(folder):
        write_whole(folder / SEAL, msgspec.json.encode(files))
