"""Pictures that clients fetch later: by a name that cannot be guessed, for a time, within a limit of bytes."""

import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from lssgen.durable import write_whole
from lssgen.serving.http.refusals import HttpError

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_NAME = re.compile(r"[0-9a-f]{32}\.(png|jpeg|webp)")

MOST_REMEMBERED = 100_000
"""Names of pictures that are gone, which are told from names that never were."""


@dataclass(slots=True)
class _Entry:
    size: int
    until: float
    data: bytes | None


class Store:
    """Finished pictures. For any thread.

    Args:
        folder: Where they are kept, so that a restart finds them again; None: in memory.
        seconds: How long.
        most: Bytes of all of them; the oldest go first.
        clock: Unix time.

    Raises:
        OSError: The folder cannot be read.
    """

    def __init__(
        self, folder: Path | None, *, seconds: float, most: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder = folder
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        self._gone: deque[str] = deque(maxlen=MOST_REMEMBERED)
        self._gone_set: set[str] = set()
        self._lock = RLock()
        if folder is not None:
            self._find(folder)

    @property
    def size(self) -> int:
        """Size of what is kept."""
        return self._bytes

    def put(self, data: bytes, form: str) -> str:
        """Keep a picture; its name.

        Raises:
            OSError: The disk does not take it.
        """
        name = f"{secrets.token_hex(16)}.{form}"
        if self._folder is not None:
            write_whole(self._folder / name, data)
        self._add(name, _Entry(len(data), self._clock() + self._seconds, None if self._folder else data))
        return name

    def get(self, name: str) -> tuple[bytes, str]:
        """A picture and its media type.

        Raises:
            HttpError: It is gone, or never was.
        """
        with self._lock:
            self.sweep()
            entry = self._entries.get(name)
            if entry is None and name in self._gone_set:
                raise HttpError("gone", f"picture {name} is gone; it was kept for {self._seconds:g} s at most")
        if entry is None:
            raise HttpError("not_found", "there is no such picture")
        if entry.data is not None:
            return entry.data, MEDIA_TYPES[name.rpartition(".")[2]]
        assert self._folder is not None
        try:
            return (self._folder / name).read_bytes(), MEDIA_TYPES[name.rpartition(".")[2]]
        except OSError as error:
            self.drop(name)
            raise HttpError("gone", f"picture {name} is gone") from error

    def drop(self, name: str) -> None:
        """Let go of a picture."""
        with self._lock:
            if name in self._entries:
                self._drop(name)

    def sweep(self) -> None:
        """Let go of what is too old, or too much."""
        now = self._clock()
        with self._lock:
            while self._entries:
                name, entry = next(iter(self._entries.items()))
                if entry.until > now and (self._bytes <= self._most or len(self._entries) == 1):
                    return
                self._drop(name)

    def _find(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted((path.stat().st_mtime, path) for path in folder.iterdir() if _NAME.fullmatch(path.name))
        for written, path in found:
            self._add(path.name, _Entry(path.stat().st_size, written + self._seconds, None))

    def _add(self, name: str, entry: _Entry) -> None:
        with self._lock:
            self._entries[name] = entry
            self._bytes += entry.size
            self.sweep()

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name)
        self._bytes -= entry.size
        if self._folder is not None:
            (self._folder / name).unlink(missing_ok=True)
        if len(self._gone) == MOST_REMEMBERED:
            self._gone_set.discard(self._gone[0])
        self._gone.append(name)
        self._gone_set.add(name)
