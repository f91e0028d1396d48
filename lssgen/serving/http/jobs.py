"""A request on its way, whoever waits for it: by one answer, by a stream, or by coming again later.

Everything here happens in the event loop; what blocks is done in threads.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from PIL import Image

from lssgen.errors import CancelledError, LssgenError
from lssgen.runtime.pictures import picture_bytes
from lssgen.runtime.record import parameters_of
from lssgen.serving.api import Answer, Done, Event, Failed, PictureDone, Preview, Progress, Queued
from lssgen.serving.http.journal import JobRecord, PaintedRecord
from lssgen.serving.http.keys import Client
from lssgen.serving.http.orders import Order, Route
from lssgen.serving.http.refusals import HttpError, refusal_of
from lssgen.serving.ticket import Ticket

_LOG = logging.getLogger("lssgen.serve")

JobState = Literal["open", "done", "failed", "cancelled", "lost"]

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A preview, as a file.

    Attributes:
        index: Number of the picture.
        number: Number of the preview of that picture, from 0.
        kind: See `lssgen.serving.api.Preview`.
        data: Contents.
        width, height: Size in pixels.
    """

    index: int
    number: int
    kind: Literal["stage", "estimate"]
    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Painted:
    """A finished picture, as a file.

    Attributes:
        index: Number of the picture.
        data: Contents; None where it lies in the store.
        name: Name in the store; empty where it is not kept.
        seed: Number it was painted with.
        width, height: Size in pixels.
    """

    index: int
    data: bytes | None
    name: str
    seed: int
    width: int
    height: int

    @property
    def record(self) -> PaintedRecord:
        return PaintedRecord(name=self.name, seed=self.seed, width=self.width, height=self.height)


Told = Partial | Painted


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request that the engine room has taken, or had.

    Attributes:
        id: 32 hexadecimal digits.
        order: Request; None of one that ended before the server was started.
        client: Whose it is.
        created: Unix time.
        kept: True where it goes on without anybody who waits.
        stored: True where its pictures are put into the store.
        idempotency, digest: Key that it came with, and what it asked for.
        ticket: Ticket of the engine room, until it has ended.
        last: Last step that was done for it, once it has ended.
        state: End of it; "open" before that.
        ended: Unix time of its end.
        error: Why it did not end well.
        pictures: Finished pictures, by number.
        told: Previews and pictures, in order.
        answer: Rest of the answer: size, usage, timings and so on.
        waiters: Number of those who wait for it.
        draft: The room's word for a draft.
        record: Record in the journal; None where it is in none.
        written: Event of its record being in the journal, or of it being known that it will be in none.
        above: Headers that name the span that it belongs to.
    """

    id: str
    order: Order | None
    client: Client
    created: float
    kept: bool = False
    stored: bool = False
    idempotency: str = ""
    digest: str = ""
    ticket: Ticket | None = None
    last: Progress | None = None
    state: JobState = "open"
    ended: float = 0.0
    error: HttpError | None = None
    pictures: dict[int, Painted] = field(default_factory=dict[int, Painted])
    told: list[Told] = field(default_factory=list[Told])
    answer: dict[str, Any] = field(default_factory=dict[str, Any])
    waiters: int = 0
    draft: str = ""
    record: JobRecord | None = None
    written: asyncio.Event = field(default_factory=asyncio.Event)
    above: dict[str, str] = field(default_factory=dict[str, str])
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def open(self) -> bool:
        return self.state == "open"

    @property
    def route(self) -> Route:
        """Which of the three it was sent to."""
        return self.order.asked.route if self.order else self.noted.route

    @property
    def progress(self) -> Progress | None:
        """The last step that the device has done for it."""
        return self.ticket.progress if self.ticket else self.last

    def queued(self) -> Queued | None:
        """Where it waits; None once it is painted, or over."""
        return self.ticket.queued() if self.ticket and self.ticket.state == "queued" else None

    @property
    def drafted(self) -> bool:
        """Whether it has left a draft, whose pictures can be finished."""
        said = self.order.asked if self.order else self.record
        return self.state == "done" and said is not None and said.draft and not said.keep

    @property
    def noted(self) -> JobRecord:
        """Its record, where it has one for sure."""
        assert self.record is not None, "a job without an order is one of the journal's"
        return self.record

    def cancel(self) -> None:
        """Take it back."""
        if self.open and self.ticket:
            self.ticket.cancel()
        elif self.open:  # it waits to be begun again
            self.end("cancelled", HttpError("cancelled", "the job was cancelled before it was begun again"))
            self.changed()

    def end(self, state: JobState, error: HttpError | None) -> None:
        """Let it have ended; nobody who waits is woken yet."""
        self.state, self.error, self.ended = state, error, time.time()

    def let_go(self) -> None:
        """Keep no more of it than is told once it has ended: a ticket has every picture that it ever told of."""
        if self.ticket is not None:
            self.answer = {"model": self.ticket.model, "notes": list(self.ticket.notes), **self.answer}
            self.last, self.ticket = self.ticket.progress, None

    def let_previews_go(self) -> None:
        """Keep the places of its previews, not what they show."""
        self.told = [replace(one, data=b"") if isinstance(one, Partial) else one for one in self.told]

    def changed(self) -> None:
        """Wake those who wait."""
        before, self._changed = self._changed, asyncio.Event()
        before.set()

    async def wait(self) -> None:
        """Until it has ended."""
        while self.open:
            await self._changed.wait()

    async def events(self, every: float) -> AsyncGenerator[Told | None, None]:
        """Everything that was told and is told; None where nothing was for so many seconds."""
        seen = 0
        while True:
            while seen < len(self.told):
                seen += 1
                if self.told[seen - 1].data != b"":  # a preview that was let go of
                    yield self.told[seen - 1]
            if not self.open:
                return
            changed = self._changed
            try:
                await asyncio.wait_for(changed.wait(), every)
            except TimeoutError:
                yield None


@dataclass(slots=True, kw_only=True)
class Pump:
    """Carries what the engine room tells into a job, previews and pictures as files.

    Attributes:
        encoders: Threads that make files of pictures.
        keep: Puts a finished picture into the store; gives its name.
        ended: Called when a job has.
    """

    encoders: Executor
    keep: Callable[[bytes, str], str]
    ended: Callable[[Job], Any]

    async def run(self, job: Job, events: "asyncio.Queue[Event]") -> None:
        """Until the last event."""
        try:
            while job.open:
                await self._heard(job, await events.get())
                job.changed()
        except Exception as error:
            _LOG.exception("request %s failed", job.id)
            if job.ticket is not None:  # what is painted by now would be heard by nobody
                job.ticket.cancel()
            job.end("failed", refusal_of(error))
        job.let_go()
        await self.ended(job)
        job.changed()

    async def _heard(self, job: Job, event: Event) -> None:
        match event:
            case Preview():
                await self._preview(job, event)
            case PictureDone():
                await self._picture(job, event)
            case Done(answer=answer):
                job.answer = {**job.answer, **_told_at_the_end(answer)}
                job.draft = answer.draft
                job.end("done", None)
            case Failed(error=error):
                job.end("cancelled" if isinstance(error, CancelledError) else "failed", refusal_of(error))
            case _:
                pass

    async def _preview(self, job: Job, event: Preview) -> None:
        assert job.order is not None
        number = sum(isinstance(one, Partial) and one.index == event.index for one in job.told)
        if number >= job.order.partials:
            return
        said = {"stage": event.stage + 1, "kind": event.kind, "prompt": job.order.room.prompt}
        data = await self._encoded(event.image, job.order, said)
        width, height = event.image.size
        told = Partial(index=event.index, number=number, kind=event.kind, data=data, width=width, height=height)
        job.told.append(told)

    async def _picture(self, job: Job, event: PictureDone) -> None:
        assert job.order is not None
        assert job.ticket is not None
        picture, order = event.picture, job.order
        data = await self._encoded(picture.image, order, parameters_of(picture, job.ticket.request))
        name = ""
        if job.stored:
            try:
                name = await asyncio.get_running_loop().run_in_executor(self.encoders, self.keep, data, order.form)
            except OSError as error:
                raise HttpError("internal_error", f"a picture cannot be kept: {error.strerror}") from error
        width, height = picture.image.size
        held = None if name else data
        painted = Painted(index=event.index, data=held, name=name, seed=picture.seed, width=width, height=height)
        job.pictures[event.index] = painted
        job.told.append(painted)

    async def _encoded(self, image: Image.Image, order: Order, said: Mapping[str, object]) -> bytes:
        def encode() -> bytes:
            return picture_bytes(image, SUFFIXES[order.form], said, quality=order.compression)

        return await asyncio.get_running_loop().run_in_executor(self.encoders, encode)


def told_before(order: Order) -> dict[str, Any]:
    """What an answer has besides pictures, as far as it is known when it is asked for."""
    return {"background": "opaque", "output_format": order.form, "quality": order.quality}


def _told_at_the_end(answer: Answer) -> dict[str, Any]:
    """What an answer has besides pictures, in OpenAI's words where it has them."""
    usage, timings = answer.usage, answer.timings
    return {
        "model": answer.model,
        "usage": {
            "total_tokens": usage.text_tokens + usage.image_tokens,
            "input_tokens": usage.text_tokens,
            "output_tokens": usage.image_tokens,
            "input_tokens_details": {"text_tokens": usage.text_tokens, "image_tokens": 0},
            "pixels": usage.pixels,
            "steps": usage.steps,
            "passes": usage.passes,
            "device_seconds": round(usage.device_seconds, 6),
        },
        "timings": {
            "queue_seconds": round(timings.queue, 6),
            "total_seconds": round(timings.total, 6),
            "spans": [
                {
                    "name": span.name,
                    "index": span.index,
                    "began_seconds": round(span.began_s, 6),
                    "seconds": round(span.seconds, 6),
                    "width": span.width_px,
                    "height": span.height_px,
                    "steps": span.steps,
                }
                for span in timings.spans
            ],
        },
        "notes": list(answer.notes),
    }


def failure(error: BaseException) -> HttpError:
    """What is told of an error; one that nobody foresaw is logged."""
    if not isinstance(error, HttpError | LssgenError):
        _LOG.error("a request failed", exc_info=error)
    return refusal_of(error)
