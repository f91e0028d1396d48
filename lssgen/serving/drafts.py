"""Small pictures that may be finished later: their latents, random numbers and words, for a while."""

from collections import OrderedDict
from threading import Lock
from time import monotonic

from lssgen.serving.work import Job


class Drafts:
    """Keeps the jobs of drafts, bounded by time and memory; the oldest go first. Any thread may ask.

    Args:
        seconds: Time that one is kept.
        most_bytes: Memory of all.
    """

    def __init__(self, seconds: float, most_bytes: float) -> None:
        self._seconds = seconds
        self._most = most_bytes
        self._lock = Lock()
        self._kept: OrderedDict[str, tuple[float, Job]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory of all that are kept."""
        return sum(_bytes(job) for _, job in list(self._kept.values()))

    def keep(self, job: Job) -> None:
        """Keep a draft that was just made."""
        with self._lock:
            self._kept[job.draft] = (monotonic(), job)
            while len(self._kept) > 1 and self.bytes > self._most:
                self._kept.popitem(last=False)

    def get(self, draft: str) -> Job | None:
        """A draft, if it is still there."""
        self.sweep()
        with self._lock:
            return self._kept[draft][1] if draft in self._kept else None

    def forget(self, draft: str) -> bool:
        """Let go of a draft; whether it was there."""
        with self._lock:
            return self._kept.pop(draft, None) is not None

    def sweep(self) -> None:
        """Let go of those whose time is over."""
        over = monotonic() - self._seconds
        with self._lock:
            while self._kept and next(iter(self._kept.values()))[0] < over:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._kept.clear()


def _bytes(job: Job) -> int:
    """Memory of a draft: its latents, its small pictures, and what its branches hear."""
    pictures = sum(piece.picture.image.width * piece.picture.image.height * 3 for piece in job.pieces if piece.picture)
    text = sum(value.nbytes for heard in (job.text or {}).values() for value in heard.values())
    return sum(piece.host_bytes for piece in job.pieces) + pictures + text
