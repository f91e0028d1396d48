"""Built engines on disk, addressed by content.

    <folder>/<key>/report.json    what it is and how it was built
    <folder>/<key>/engine.plan    the engine
    <folder>/<key>.lock           held while somebody builds it; empty
    <folder>/timings-*.cache      what TensorRT measured on this GPU (`lssgen.engines.trt.timings`)

An entry is a folder that appears in one rename, so it is whole or not there. A crash leaves a folder whose name
starts with a dot, which the next holder of the key's lock removes.
"""

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lssgen.bundle import sha256_of
from lssgen.engines.trt.report import Report
from lssgen.errors import BuildError, EngineError

PLAN, REPORT = "engine.plan", "report.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """A built engine."""

    key: str
    folder: Path
    report: Report

    @property
    def plan(self) -> Path:
        return self.folder / PLAN


def key_of(*parts: object) -> str:
    """A key from everything that decides an engine's bytes."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()[:32]


def entry_at(folder: Path) -> Entry | None:
    """The engine in a folder, or None where there is none, or only a part of one."""
    try:
        report = msgspec.json.decode((folder / REPORT).read_bytes(), type=Report)
        whole = (folder / PLAN).stat().st_size == report.plan_bytes
    except (OSError, msgspec.MsgspecError):
        return None
    return Entry(folder.name, folder, report) if whole else None


def damaged(entry: Entry) -> bool:
    """Whether an engine's bytes are not those that were built. Reads all of them."""
    return sha256_of(entry.plan) != entry.report.plan_sha256


def used(entry: Entry) -> float:
    """When an engine was last used, in seconds since 1970."""
    return (entry.folder / REPORT).stat().st_mtime


def touch(entry: Entry) -> None:
    """Remember that an engine was used now, for `Cache.prune`."""
    with suppress(OSError):  # a folder one may only read
        os.utime(entry.folder / REPORT)


def write_whole(path: Path, data: Any) -> None:
    """Write a file that is whole or not there. Where that fails the file stays as it was: it is only a convenience."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    with suppress(OSError):
        partial.write_bytes(data)
        partial.replace(path)
    with suppress(OSError):
        partial.unlink()


class Cache:
    """A folder of engines. Several processes may use it at the same time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Entry | None:
        """The engine with this key, or None; a damaged one counts as none."""
        return entry_at(self.folder / key)

    def get_or_build(self, key: str, build: Callable[[], tuple[Any, Callable[[int, str], Report]]]) -> Entry:
        """The engine with this key, built if it is not there. If another process is building it, wait for that one.

        Args:
            build: Returns the engine's bytes, and what makes its report from their number and hash.

        Raises:
            BuildError: No space, or no right to write. Nothing is left behind.
        """
        found = self.get(key)
        if found is not None:
            return found
        with self._lock(key):
            found = self.get(key)
            if found is not None:
                return found
            for leftover in self.folder.glob(f".{key}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            plan, report_of = build()
            return self._store(key, plan, report_of)

    def entries(self) -> list[Entry]:
        """Every engine, longest unused first."""
        keys = [path.parent.name for path in self.folder.glob(f"*/{REPORT}") if not path.parent.name.startswith(".")]
        found = [entry for key in keys if (entry := self.get(key)) is not None]
        return sorted(found, key=lambda entry: (used(entry), entry.key))

    def remove(self, key: str) -> None:
        """Delete an engine, whole or damaged. Waits for a build of it."""
        with self._lock(key):
            doomed = self.folder / f".{key}-removed"
            if (self.folder / key).exists():
                (self.folder / key).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def prune(self, *, keep: Sequence[str] = (), unused_days: float = 0.0) -> list[Entry]:
        """Delete engines that are not kept and were not used for some days; returns them."""
        latest = time.time() - unused_days * 86400
        doomed = [entry for entry in self.entries() if entry.key not in keep and used(entry) <= latest]
        for entry in doomed:
            self.remove(entry.key)
        return doomed

    def _store(self, key: str, plan: Any, report_of: Callable[[int, str], Report]) -> Entry:
        view = memoryview(plan)
        report = report_of(view.nbytes, hashlib.sha256(view).hexdigest())
        partial, place = self.folder / f".{key}-{os.getpid()}", self.folder / key
        try:
            partial.mkdir(parents=True)
            with (partial / PLAN).open("wb") as file:
                file.write(view)
                file.flush()
                os.fsync(file.fileno())
            (partial / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
            if place.exists():  # damaged, or `get` had found it
                shutil.rmtree(place)
            partial.rename(place)
        except OSError as error:
            reason = f"{_write_problem(error, self.folder)}; the engine has {view.nbytes / 1e6:.0f} MB"
            raise BuildError(reason) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return Entry(key, place, report)

    def _lock(self, key: str) -> AbstractContextManager[None]:
        return locked(self.folder / f"{key}.lock")


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock that at most one process has, as long as the block runs; others wait.

    Raises:
        BuildError: The lock's file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise BuildError(_write_problem(error, path.parent)) from error
    with file:
        _hold(file)
        yield  # closing the file lets go, and so does the death of the process


def file_name(*words: str) -> str:
    """A name for a file, from words with any characters: those that every file system takes, dashes for the others."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")


def _write_problem(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):  # Windows has no quotas
        free = shutil.disk_usage(folder).free
        return (
            f"the disk of {folder} is full ({free / 1e6:.0f} MB free); make room, remove engines with "
            "lssgen-export --prune, or set LSSGEN_HOME to another disk"
        )
    return f"engines cannot be written to {folder} ({error.strerror}); set LSSGEN_HOME to a folder you may write to"


def _hold(file: Any) -> None:
    """Wait for an exclusive lock on an open file."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
                return
            except OSError as error:  # it gives up after ten seconds
                if error.errno not in (errno.EACCES, errno.EDEADLK):
                    raise EngineError(f"{file.name} cannot be locked: {error}") from error
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
