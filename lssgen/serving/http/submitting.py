"""The way to the engine room: jobs go in, counted by key, and what the room tells of them comes back."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress

from lssgen.errors import RefusedError
from lssgen.serving.api import Event, Hear, Progress
from lssgen.serving.http.jobs import Job, Pump, failure
from lssgen.serving.http.limits import Meter
from lssgen.serving.http.refusals import HttpError, stopping
from lssgen.serving.ticket import Ticket

FULL_S = 0.1
"""Seconds for which a queue that was full is taken to be so still. Reading a request costs milliseconds, which would be
spent on every one of a flood only to refuse it."""

Submit = Callable[[Hear], Ticket]
"""Asks the engine room for something, in a thread."""

Events = asyncio.Queue[Event]


class Submitter:
    """Gives jobs to the engine room. Belongs to one event loop.

    Args:
        pump: Carries what the room tells into a job.
        threads: Where the room is asked.
    """

    def __init__(self, pump: Pump, threads: Executor) -> None:
        self._pump = pump
        self._threads = threads
        self._meter = Meter()
        self._going: set[asyncio.Task[None]] = set()
        self._full: HttpError | None = None
        self._full_until = 0.0
        self.closing = False

    def see_open(self) -> None:
        """Refuse what would be refused after it was read.

        Raises:
            HttpError: The server stops, or was full a moment ago.
        """
        if self.closing:
            raise stopping()
        if self._full is not None and time.monotonic() < self._full_until:
            raise self._full

    async def submit(self, job: Job, submit: Submit) -> None:
        """Give a job to the room.

        Raises:
            HttpError, LssgenError: It is refused.
        """
        assert job.order is not None
        free = self._meter.begin(job.client.name, job.client.limits, job.order.pixels)
        try:
            job.ticket, events = await self.ask(submit)
        except BaseException as error:
            free()
            if isinstance(error, RefusedError) and error.code == "queue_full":
                self._full, self._full_until = failure(error), time.monotonic() + FULL_S
            raise
        self.go(self._pump.run(job, events), then=free)

    async def ask(self, submit: Submit) -> tuple[Ticket, Events]:
        """Ask the room; its ticket, and what it tells but for steps. Whoever stops waiting takes the request back.

        Raises:
            LssgenError: It is refused.
        """
        loop = asyncio.get_running_loop()
        events: Events = asyncio.Queue()

        def hear(event: Event) -> None:
            if not isinstance(event, Progress):  # a step of every picture; whoever wants it asks the ticket
                with suppress(RuntimeError):  # the loop is closed: nobody is there any more
                    loop.call_soon_threadsafe(events.put_nowait, event)

        submitted = loop.run_in_executor(self._threads, submit, hear)
        try:
            return await asyncio.shield(submitted), events
        except asyncio.CancelledError:
            submitted.add_done_callback(_take_back)
            raise

    async def patiently(self, job: Job, submit: Callable[[], Coroutine[None, None, None]]) -> bool:
        """Try until the queue is not full; False where the job was cancelled meanwhile, or the server stops.

        Raises:
            HttpError, LssgenError: It is refused for another reason.
        """
        while job.open and not self.closing:
            try:
                await submit()
            except RefusedError as error:
                if error.code != "queue_full":
                    raise
                await asyncio.sleep(error.retry_after_s or 0.5)
            else:
                return True
        return False

    def go(self, work: Coroutine[None, None, None], then: Callable[[], object] = lambda: None) -> None:
        """Do something for a job in the background; `drain` waits for it."""
        task = asyncio.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._going.discard)
        task.add_done_callback(lambda _: then())

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, and wait for what was taken; whether all of it has ended."""
        self.closing = True
        if self._going:
            await asyncio.wait(self._going, timeout=seconds)
        return not self._going

    async def close(self) -> None:
        """End whatever still goes on."""
        self.closing = True
        going = list(self._going)
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)


def _take_back(submitted: "asyncio.Future[Ticket]") -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
