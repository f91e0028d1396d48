"""Whether files are still what was written: against their hashes, once on every machine.

A flipped bit in a weight paints a wrong picture without a word, so every file of a bundle, and every compiled engine,
is hashed when it is first opened on a machine. What was found whole is remembered by inode, size and time of change; as
long as these stay, a start costs a look at each file's entry and no more.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from lssgen import paths
from lssgen.bundle import Bundle, hashes, see_seal, sha256_of
from lssgen.durable import write_whole
from lssgen.errors import BundleError
from lssgen.jsons import JsonError, read_json

Verify = Literal["always", "once", "never"]
"""Occasions to hash: at every start, when files are new or have changed, or never."""

State = Literal["whole", "damaged", "missing", "unreadable", "unknown"]
"""Finding about a file of a bundle; unknown where the manifest has no hash of it."""

SILENT_BYTES = 2**30
"""Size up to which files are hashed in a second or two, and nothing is said of it."""

_LOG = logging.getLogger("lssgen")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Files that were found whole.

    Attributes:
        hashes: Expected hash of every file, by name.
        files: (inode, size in bytes, time of change in ns) of every file, by name.
    """

    hashes: Mapping[str, str]
    files: Mapping[str, tuple[int, int, int]]


def see_whole(bundle: Bundle, when: Verify = "once") -> None:
    """See that a bundle is what was exported.

    Raises:
        BundleError: Names the first file that is not.
    """
    if when != "never":
        # Even of what is remembered: the hashes themselves come from the manifest, and reading it costs nothing.
        see_seal(bundle.folder)
    changed = first_changed(bundle.folder, hashes(bundle.manifest), when)
    if changed:
        raise BundleError(
            f"{bundle.path(changed)} has changed since the export; run the same lssgen-export again, or fetch the "
            "bundle again"
        )


def first_changed(folder: Path, expected: Mapping[str, str], when: Verify = "once") -> str:
    """Name of the first of some files that is not what it should be; empty where all are.

    Args:
        folder: Their folder.
        expected: Hash of every file, by name; a file whose hash is empty is not read.
        when: Occasion to hash.

    Raises:
        OSError: A file cannot be read.
    """
    if when == "never":
        return ""
    # Looked at before they are read: what changes while it is hashed has another entry next time.
    now = Seen(hashes=dict(expected), files={name: _entry(folder / name) for name in expected})
    if when == "once" and _remembered(folder) == now:
        return ""
    from tqdm import tqdm  # a fifth of what importing the runtime takes, for a bar that is seldom shown

    size = sum(entry[1] for entry in now.files.values())
    if size > SILENT_BYTES:
        _LOG.info("comparing %.1f GB in %s with their hashes, once on this machine", size / 1e9, folder)
    hidden = size <= SILENT_BYTES or None  # None: shown on a terminal
    with tqdm(total=size, unit="B", unit_scale=True, leave=False, disable=hidden, desc="comparing") as bar:
        for name, sha256 in expected.items():
            if sha256 and sha256_of(folder / name) != sha256:
                return name
            bar.update(now.files[name][1])
    # Only here: where a file differs, nothing is noted, so that the next start finds it again.
    _remember(folder, now)
    return ""


def states(bundle: Bundle) -> Iterator[tuple[str, State, int]]:
    """Compare every file of a bundle with its hash: name, state and size in bytes, one after another.

    A bundle that is found whole is remembered as such.

    Raises:
        BundleError: The manifest itself has changed.
    """
    see_seal(bundle.folder)
    expected = hashes(bundle.manifest)
    found: dict[str, tuple[int, int, int]] = {}
    whole = True
    for name, sha256 in expected.items():
        path = bundle.path(name)
        with suppress(OSError):
            found[name] = _entry(path)
        state = _state(path, sha256)
        whole = whole and state in ("whole", "unknown")
        yield name, state, found.get(name, (0, 0, 0))[1]
    if whole:
        _remember(bundle.folder, Seen(hashes=expected, files=found))


def _state(path: Path, sha256: str) -> State:
    try:
        if sha256:
            return "whole" if sha256_of(path) == sha256 else "damaged"
        return "unknown" if path.is_file() else "missing"
    except FileNotFoundError:
        return "missing"
    except OSError:  # a disk that fails, a file that belongs to somebody else, a folder in its place
        return "unreadable"


def _entry(path: Path) -> tuple[int, int, int]:
    entry = path.stat()
    return entry.st_ino, entry.st_size, entry.st_mtime_ns


def _note(folder: Path) -> Path:
    # Names of folders on Linux are bytes, and need not be text.
    place = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()[:32]
    return paths.home() / "verified" / f"{place}.json"


def _remembered(folder: Path) -> Seen | None:
    try:
        return read_json(_note(folder), Seen)
    except JsonError:  # a note that is missing or cannot be read is none: the files are hashed again
        return None


def _remember(folder: Path, seen: Seen) -> None:
    with suppress(OSError):  # a home that one may only read costs the next start its time, and nothing else
        write_whole(_note(folder), msgspec.json.encode(seen))
