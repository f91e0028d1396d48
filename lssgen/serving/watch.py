"""A watch over the device: a call that does not come back is noticed, and nobody waits for it for ever."""

from collections.abc import Callable
from threading import Event, Thread
from time import monotonic


class Watch:
    """Looks, from a thread of its own, at how long the present call of the device takes.

    Args:
        busy_since: Moment at which the call was made, on the clock of `time.monotonic`; None between calls.
        limit: Seconds that a call may take.
        stuck: Called once when a call takes longer, with its seconds so far.
        free: Called when it has come back after all.
    """

    def __init__(
        self,
        busy_since: Callable[[], float | None],
        limit: float,
        stuck: Callable[[float], None],
        free: Callable[[], None],
    ) -> None:
        self._busy_since = busy_since
        self._limit = limit
        self._stuck = stuck
        self._free = free
        self._ended = Event()
        self._seen: float | None = None
        self._thread = Thread(target=self._watch, name="lssgen-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._limit / 4, 1.0)):
            self.look(monotonic())

    def look(self, now: float) -> None:
        """Look once."""
        since = self._busy_since()
        if self._seen is not None and since != self._seen:
            self._seen = None
            self._free()
        if since is not None and self._seen is None and now - since > self._limit:
            self._seen = since
            self._stuck(now - since)
