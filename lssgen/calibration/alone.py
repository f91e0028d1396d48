"""One writer at a time: of a statistics file, or of a bundle, which takes the place of no other thing."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import filelock

from lssgen.bundle import MANIFEST, Bundle, files, read_manifest
from lssgen.durable import clear_partial, locked, whole_folder
from lssgen.errors import BundleError, CalibrationError
from lssgen.measured import MEASURED
from lssgen.schedules import SCHEDULES

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of systems where nothing more can be written."""


@contextmanager
def written_alone(path: Path) -> Generator[None]:
    """Be the only one that writes there, with what killed writers left of it gone.

    Raises:
        CalibrationError: Another calibration writes there, one may not write there, or the disk is full.
    """
    file = path.with_name(f".{path.name}.lock")
    try:
        lock = locked(file, wait=False)
        lock.acquire()
    except filelock.Timeout as error:
        raise CalibrationError(f"another calibration writes {path}; wait for it, or choose another --output") from error
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written ({error.strerror}); choose another --output") from error
    try:
        clear_partial(path)
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CalibrationError(
            f"there is no room for {path} ({error.strerror}); make some, or choose another --output"
        ) from error
    finally:
        lock.release()
        file.unlink(missing_ok=True)


@contextmanager
def bundle_in_place_of(output: Path, source: Bundle) -> Generator[Path]:
    """Be the only one that writes a bundle there: a folder to write it in, which takes the place when all went well.

    Raises:
        CalibrationError: The place holds something else than a quantised bundle, which nobody wants to lose; or
            another calibration writes there.
        OSError: It cannot be written.
    """
    _see_free(output, source)
    place = output.absolute()  # "." has no name that others could lie beside
    with written_alone(place), whole_folder(place) as draft:
        yield draft


def _see_free(output: Path, source: Bundle) -> None:
    if not output.exists():
        return
    if source.folder.resolve().is_relative_to(output.resolve()):
        raise CalibrationError(
            f"{output} holds the bundle that it would be made from, {source.folder}; choose another --output"
        )
    if not output.is_dir() or (any(output.iterdir()) and not _is_replaceable(output)):
        raise CalibrationError(
            f"{output} is there and is not a quantised bundle, so nothing takes its place; choose a new or an empty "
            "folder for --output"
        )


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder holds a quantised bundle, and nothing beside what lssgen writes into bundles."""
    try:
        manifest = read_manifest(folder)
    except BundleError:
        return False
    own = {MANIFEST, MEASURED, SCHEDULES, *(Path(name).parts[0] for name in files(manifest))}
    quantised = manifest.graphs["step"].quantisation is not None
    return quantised and all(entry.name in own for entry in folder.iterdir())
