"""What a server gives for a request: where it is, what it tells, how to take it back, and its pictures at the end."""

import logging
from collections.abc import Callable, Iterator
from itertools import count
from threading import Condition
from time import monotonic

from lssgen.errors import CancelledError, LssgenError, RefusedError
from lssgen.runtime.options import Request
from lssgen.serving.api import Answer, Done, Event, Failed, Hear, ImageRequest, Progress, Queued, State

_LOG = logging.getLogger("lssgen")


class Ticket:
    """A request that a server has taken. Any thread may ask it anything.

    Attributes:
        id: 32 hexadecimal digits.
        asked: Request as it came, without its pictures.
        request: Run that is carried out, every choice made; its seed is that of the first picture.
        model: Name of the model that paints it.
        name: Name of the model with the LoRA that the request asks for, "sd3@style"; without one the same.
        notes: Sentences that the caller should read, as far as they are known by now.
    """

    def __init__(
        self,
        *,
        id: str,  # noqa: A002
        asked: ImageRequest,
        request: Request,
        model: str,
        notes: tuple[str, ...],
        name: str = "",
        position: Callable[["Ticket"], Queued],
        wish: Callable[["Ticket", str], None],
    ) -> None:
        self.id = id
        self.asked = asked
        self.request = request
        self.model = model
        self.name = name or model
        self.notes = notes
        self._position = position
        self._wish = wish
        self._changed = Condition()
        self._events: list[Event] = []
        self._progress: Progress | None = None
        self._hearers: list[Hear] = []
        self._state: State = "queued"

    @property
    def state(self) -> State:
        return self._state

    @property
    def ended(self) -> bool:
        """Whether it is done, failed or cancelled; nothing more is told then."""
        return self._state not in ("queued", "running")

    @property
    def progress(self) -> Progress | None:
        """The last step that the device has done; None: none yet."""
        return self._progress

    def queued(self) -> Queued:
        """Where it waits now; position 0 once it is painted."""
        return self._position(self)

    def cancel(self) -> None:
        """Take it back: the device takes at most one more step for it. Nothing happens to one that has ended."""
        if not self.ended:
            self._wish(self, "cancel")

    def estimate(self) -> None:
        """Ask for a `Preview` of kind "estimate" of every picture that is painted, after its next step."""
        if not self.ended:
            self._wish(self, "estimate")

    def listen(self, hear: Hear) -> None:
        """Let somebody hear everything: first what has been told, then what comes.

        See `lssgen.serving.api.Hear` for how it is called.
        """
        with self._changed:
            for event in self._events:
                hear(event)
            self._hearers.append(hear)

    def events(self, timeout: float | None = None) -> Iterator[Event]:
        """Everything that is told, in order, from the first event on; `Done` or `Failed` is the last.

        Args:
            timeout: Most seconds to wait for an event.

        Raises:
            TimeoutError: None came.
        """
        for number in count():
            event = self._nth(number, timeout)
            yield event
            if isinstance(event, Done | Failed):
                return

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the end.

        Raises:
            RefusedError, CancelledError, EngineError, BundleError: Why it did not end well.
            TimeoutError: It has not ended yet; it goes on.
        """
        until = None if timeout is None else monotonic() + timeout
        with self._changed:
            if not self._changed.wait_for(lambda: self.ended, None if until is None else until - monotonic()):
                raise TimeoutError(f"request {self.id} has not ended after {timeout:g} s")
            end = self._events[-1]
        if isinstance(end, Failed):
            raise end.error
        assert isinstance(end, Done)
        return end.answer

    def tell(self, event: Event) -> None:
        """For the server: let everybody hear. After an end nothing is told any more."""
        with self._changed:
            if self.ended:
                return
            if isinstance(event, Progress):
                self._progress = event
            self._events.append(event)
            self._state = _state_after(event, self._state, draft=self.asked.draft)
            self._changed.notify_all()
            for hear in list(self._hearers):
                self._call(hear, event)

    def _nth(self, number: int, timeout: float | None) -> Event:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._events) > number, timeout):
                raise TimeoutError(f"request {self.id} told nothing for {timeout:g} s")
            return self._events[number]

    def _call(self, hear: Hear, event: Event) -> None:
        try:
            hear(event)
        except KeyboardInterrupt:  # of the main thread, which submits
            raise
        except BaseException:  # SystemExit and asyncio's CancelledError too would end the scheduler's thread
            _LOG.exception("a listener of request %s failed; it hears nothing more", self.id)
            self._hearers.remove(hear)

    def __repr__(self) -> str:
        return f"<Ticket {self.id[:8]} {self._state}>"


def _state_after(event: Event, state: State, *, draft: bool) -> State:
    match event:
        case Done():
            return "drafted" if draft else "done"
        case Failed(error=error):
            return "cancelled" if isinstance(error, CancelledError) else "failed"
        case Queued():
            return state
        case _:
            return "running"


def outcome_of(error: LssgenError) -> str:
    """A word for counting: the code of a refusal, or the error's kind."""
    return error.code if isinstance(error, RefusedError) else type(error).__name__
