"""One writer at a time: of a statistics file, or of a bundle."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import filelock

from lssgen.durable import clear_partial, locked
from lssgen.errors import CalibrationError


@contextmanager
def written_alone(path: Path) -> Generator[None]:
    """Be the only one that writes there, with what killed writers left of it gone.

    Raises:
        CalibrationError: Another calibration writes there.
    """
    file = path.with_name(f".{path.name}.lock")
    lock = locked(file, wait=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise CalibrationError(f"another calibration writes {path}; wait for it, or choose another --output") from error
    try:
        clear_partial(path)
        yield
    finally:
        lock.release()
        file.unlink(missing_ok=True)
