"""Built engines on disk, addressed by content.

    <folder>/<key>/report.json    what it is and how it was built
    <folder>/<key>/engine.plan    the engine
    <folder>/<key>.lock           held while somebody builds or removes it; empty
    <folder>/timings-*.cache      what TensorRT measured on this GPU (`lssgen.engines.trt.timings`)

An entry is a folder that appears in one rename, so it is whole or not there. What a killed build leaves behind is
removed by the next one of the same engine, and by `Cache.prune`.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import msgspec

from lssgen.bundle import sha256_of
from lssgen.durable import PARTIAL, UNFINISHED, clear_partial, locked, whole_folder
from lssgen.engines.trt.report import Report
from lssgen.errors import BuildError
from lssgen.jsons import JsonError, read_json

PLAN, REPORT = "engine.plan", "report.json"
DAY = 86400.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A built engine.

    Attributes:
        key: Name of its folder.
        folder: Path of its folder.
        report: Record of what it is and how it was built.
        used: Time of its last use, in seconds since 1970.
    """

    key: str
    folder: Path
    report: Report
    used: float = field(compare=False)

    @property
    def plan(self) -> Path:
        return self.folder / PLAN


@dataclass(frozen=True, slots=True)
class Fault:
    """A folder of the cache that holds no engine that could be used.

    Attributes:
        key: Name of the folder.
        reason: End of a sentence that begins with its name and says what is wrong with it.
    """

    key: str
    reason: str


def key_of(*parts: object) -> str:
    """A key from everything that decides an engine's bytes."""
    # Sorted: in which order a mapping was filled says nothing about what is needed.
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def entry_at(folder: Path) -> Entry | None:
    """The engine in a folder, or None where there is none, or only a part of one."""
    try:
        report = read_json(folder / REPORT, Report)
        # By size, since this is asked of every entry at every start; by hash where one is opened (`order._found`).
        whole = (folder / PLAN).stat().st_size == report.plan_bytes
        # The report's, which `touch` moves; the plan's must not move, or it would be hashed again at the next start.
        used = (folder / REPORT).stat().st_mtime
    except (OSError, JsonError):
        return None
    return Entry(folder.name, folder, report, used) if whole else None


def damaged(entry: Entry) -> bool:
    """Whether an engine's bytes are not those that were built. Reads all of them."""
    return sha256_of(entry.plan) != entry.report.plan_sha256


def touch(entry: Entry) -> None:
    """Remember that an engine is used now, for `Cache.prune`."""
    with suppress(OSError):  # a folder one may only read
        os.utime(entry.folder / REPORT)


def file_name(*words: str) -> str:
    """A name for a file, from words with any characters: those that every file system takes, dashes for the others."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


class Cache:
    """A folder of engines. Several processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Entry | None:
        """The engine with this key, or None; one that is not whole counts as none."""
        return entry_at(self.folder / key)

    def entries(self) -> list[Entry]:
        """Every engine, longest unused first."""
        found = [entry for key in self._keys() if (entry := self.get(key)) is not None]
        return sorted(found, key=lambda entry: (entry.used, entry.key))

    @contextmanager
    def building(self, key: str) -> Generator[None]:
        """Be the only one that makes or removes this engine, in any process; others wait.

        Raises:
            BuildError: The folder cannot be written to.
        """
        with _write_problems(self.folder), locked(self._lock(key)):
            clear_partial(self.folder / key)  # of builds that were killed, since nobody else builds it now
            yield

    @contextmanager
    def draft(self, key: str) -> Generator[Path]:
        """A folder to make an engine in, which it is when the block ends well; else nothing is left.

        Raises:
            BuildError: There is no space.
        """
        with _write_problems(self.folder), whole_folder(self.folder / key) as folder:
            yield folder

    def remove(self, key: str, *, used_before: float = float("inf")) -> bool:
        """Delete an engine, whole or damaged; waits for a build of it.

        Args:
            used_before: Leave it if it was used after this time, in seconds since 1970.

        Returns:
            Whether there was one to delete.
        """
        with self.building(key):
            entry = self.get(key)  # it may have been used, or removed, since it was listed
            if entry is not None and entry.used > used_before:
                return False
            doomed = self.folder / f".{key}.{'0' * 16}{PARTIAL}"  # left by a kill, it is cleared like a draft
            try:
                # Renamed before it is deleted: a reader finds a whole engine or none.
                (self.folder / key).rename(doomed)
            except FileNotFoundError:
                return False
            shutil.rmtree(doomed, ignore_errors=True)
            return True

    def prune(self, *, keep: Sequence[str] = (), unused_days: float = 0.0) -> list[Entry]:
        """Delete engines that are not kept and were not used for some days, and what killed builds left.

        Returns:
            The engines that are gone.
        """
        latest = time.time() - unused_days * DAY
        doomed = [entry for entry in self.entries() if entry.key not in keep and entry.used <= latest]
        self._sweep()
        return [entry for entry in doomed if self.remove(entry.key, used_before=latest)]

    def faults(self) -> list[Fault]:
        """What is damaged; reads every byte of every engine. `remove` it, and it will be built again."""
        found: list[Fault] = []
        for key in self._keys():
            entry = self.get(key)
            if entry is None and (self.folder / key).is_dir():
                found.append(Fault(key, "is not whole: its report cannot be read, or its plan has another size"))
            elif entry is not None and _differs(entry):
                found.append(Fault(key, f"is damaged: {PLAN} is not what was built"))
        return found

    def _keys(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*/") if path.is_dir() and not path.name.startswith("."))

    def _lock(self, key: str) -> Path:
        return self.folder / f"{key}.lock"

    def _sweep(self) -> None:
        """Remove what killed builds left, unless somebody is at it now."""
        drafts = [UNFINISHED.fullmatch(path.name) for path in self.folder.glob(f".*{PARTIAL}") if path.is_dir()]
        for key in {draft[1] for draft in drafts if draft}:
            # Whoever holds the lock is building, and its draft is alive.
            with suppress(filelock.Timeout), locked(self._lock(key), wait=False):
                clear_partial(self.folder / key)


def _differs(entry: Entry) -> bool:
    try:
        return damaged(entry)
    except OSError:  # removed by somebody else in the meantime
        return False


@contextmanager
def _write_problems(folder: Path) -> Generator[None]:
    """Say in words what keeps engines from being written.

    Raises:
        BuildError: The disk is full, or a file of that folder is in trouble. Other errors pass: a block may do more
            than write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):  # Windows has no quotas
            free = shutil.disk_usage(folder).free
            raise BuildError(
                f"the disk of {folder} is full ({free / 1e6:.0f} MB free); make room, remove engines with "
                "lssgen-build --prune, or set LSSGEN_HOME to another disk"
            ) from error
        # The block may read weights or run a compiler, whose troubles are none of this folder's.
        if not str(error.filename).startswith(str(folder)):
            raise
        raise BuildError(
            f"engines cannot be written to {folder} ({error.strerror}); set LSSGEN_HOME to a folder you may write to"
        ) from error
