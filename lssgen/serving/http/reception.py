"""Between HTTP and the engine room: takes orders, knows every job, lets go of what is old."""

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from lssgen.errors import LssgenError, RefusedError
from lssgen.jsons import JsonError
from lssgen.serving.api import Event, ImageRequest, Progress
from lssgen.serving.http.jobs import Job, Painted, Pump, failure, told_before
from lssgen.serving.http.journal import MOST_STARTS, JobRecord, Journal
from lssgen.serving.http.keys import Client
from lssgen.serving.http.limits import KeyLimits, Limits, Meter
from lssgen.serving.http.orders import Asked, Order, at_size_of_its_picture, order_from
from lssgen.serving.http.records import begin_again, ended_record, job_of, lost_record, record_of, settle
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.http.sizes import other_size
from lssgen.serving.http.store import Store
from lssgen.serving.server import Server
from lssgen.serving.status import ModelInfo
from lssgen.serving.ticket import Ticket

_LOG = logging.getLogger("lssgen.serve")

MOST_REMEMBERED = 100_000
"""Jobs that are gone, which are told from those that never were."""

GRACE_S = 15.0
"""Seconds for which a request with an idempotency key goes on after its client left, for the client's next try."""

SWEEP_EVERY_S = 1.0

FULL_S = 0.1
"""Seconds for which a queue that was full is taken to be so still. Reading a request costs milliseconds, which would be
spent on every one of a flood only to refuse it."""

T = TypeVar("T")


class Reception:
    """Takes orders to a server of the engine room. Belongs to one event loop.

    Args:
        room: The server.
        limits: What is taken.
        state: Folder of jobs and pictures; None: in memory, and a restart loses them.
        keep_seconds, keep_bytes: How long, and how much of, what is finished is kept.
        ended: Called when a job has ended.

    Raises:
        OSError: The folder cannot be used.
    """

    def __init__(
        self,
        room: Server,
        limits: Limits,
        *,
        state: Path | None,
        keep_seconds: float,
        keep_bytes: int,
        ended: Callable[[Job], None],
    ) -> None:
        self.room = room
        self.limits = limits
        self.store = Store(state and state / "pictures", seconds=keep_seconds, most=keep_bytes)
        self._journal = Journal(state / "jobs") if state else None
        self._keep_seconds = keep_seconds
        self._told_ended = ended
        self._meter = Meter()
        self._jobs: dict[str, Job] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._keys: dict[tuple[str, str], tuple[str, asyncio.Task[Job]]] = {}
        self._steps: dict[str, int] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(4, "reception")
        self._encoders = ThreadPoolExecutor(2, "encode")
        self._pump = Pump(encoders=self._encoders, keep=self.store.put, ended=self._ended)
        self._full: HttpError | None = None
        self._full_until = 0.0
        self._resuming: asyncio.Task[None] | None = None
        self.closing = False

    # --- Taking -------------------------------------------------------------------------------------------------------

    async def take(self, asked: Asked, client: Client, *, kept: bool = False, idempotency: str = "") -> Job:
        """Take a request; one with an idempotency key that is known is the job that it was.

        Args:
            asked: What is asked for.
            client: Whose it is.
            kept: Let it go on without anybody who waits, and over a restart.
            idempotency: Key that tells a repetition from another request; empty: it has none.

        Raises:
            HttpError, LssgenError: It is refused.
        """
        if not idempotency:
            return await self._begin(asked, client, kept=kept)
        place, digest = (client.name, idempotency), asked.digest()
        if found := self._keys.get(place):
            if found[0] != digest:
                message = "this idempotency key was used for another request; use a new one for each request"
                raise HttpError("idempotency_conflict", message, param="Idempotency-Key")
            return await asyncio.shield(found[1])
        task = asyncio.create_task(self._begin(asked, client, kept=kept, idempotency=idempotency, digest=digest))
        self._keys[place] = (digest, task)
        try:
            return await asyncio.shield(task)
        except (HttpError, LssgenError):
            self._keys.pop(place, None)  # nothing was begun: the next try may go better
            raise

    async def refine(self, draft: Job, keep: list[int], client: Client) -> Job:
        """Finish some pictures of a draft, as a job of its own.

        Raises:
            HttpError, LssgenError: It is not a draft, or is refused.
        """
        if not draft.draft or draft.order is None:
            raise HttpError("not_found", f"job {draft.id} left no draft; create it with draft: true", param="id")
        order = replace(draft.order, room=replace(draft.order.room, n=len(keep), draft=False))
        job = Job(id=secrets.token_hex(16), order=order, client=client, created=time.time(), kept=True, stored=True)
        job.answer, word = told_before(order), draft.draft
        await self._submit(job, lambda hear: self.room.refine(word, keep, previews=True, hear=hear))
        job.written.set()  # the latents that it goes on from do not outlive the server
        self._jobs[job.id] = job
        return job

    async def _begin(self, asked: Asked, client: Client, *, kept: bool, idempotency: str = "", digest: str = "") -> Job:
        if self.closing:
            raise HttpError("stopping", "the server is stopping; ask again in a moment", retry_after_ms=2000)
        if self._full is not None and time.monotonic() < self._full_until:
            raise self._full
        order = await self._understood(asked)
        job = Job(
            id=secrets.token_hex(16),
            order=order,
            client=client,
            created=time.time(),
            kept=kept,
            stored=kept or bool(idempotency) or order.respond == "url",
            idempotency=idempotency,
            digest=digest,
            answer=told_before(order),
        )
        await self._submit(job, lambda hear: self.room.submit(order.room, hear))
        _see_size(job)
        if kept:
            self._jobs[job.id] = job
            await self._note_begin(job, record_of(job, order), order)
        return job

    async def _understood(self, asked: Asked) -> Order:
        """A request as the engine room is asked.

        Raises:
            HttpError, LssgenError: It makes no sense, or cannot be done.
        """
        model = self.model(asked.fields.model)
        steps = await self._steps_of(model)
        order = await self._in_thread(order_from, asked, model, steps, self.limits)
        order = await self._at_own_size(order, model)
        return await self._with_estimates(order)

    async def _submit(self, job: Job, submit: Callable[[Callable[[Event], None]], Ticket]) -> None:
        """Give it to the room, and carry what it tells into the job."""
        assert job.order is not None
        free = self._meter.begin(job.client.name, job.client.limits, job.order.pixels)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def hear(event: Event) -> None:
            if not isinstance(event, Progress):  # a step of every picture; whoever wants it asks the ticket
                with suppress(RuntimeError):  # the loop is closed: nobody is there any more
                    loop.call_soon_threadsafe(events.put_nowait, event)

        submitted = loop.run_in_executor(self._threads, submit, hear)
        try:
            job.ticket = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_take_back)
            free()
            raise
        except BaseException as error:
            free()
            if isinstance(error, RefusedError) and error.code == "queue_full":
                self._full, self._full_until = failure(error), time.monotonic() + FULL_S
            raise
        pump = asyncio.create_task(self._pump.run(job, events))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        pump.add_done_callback(lambda _: free())

    async def _at_own_size(self, order: Order, model: ModelInfo) -> Order:
        """An edit without a size has that of its picture, where it can be painted; else the model's own."""
        own = at_size_of_its_picture(order, model)
        if own is None:
            return order
        try:
            await self._in_thread(self.room.quote, own.room)
        except RefusedError:
            return order
        return own

    async def _with_estimates(self, order: Order) -> Order:
        """Ask for so many estimates that, with the pictures of the small stages, there are as many as are wanted."""
        if not order.partials:
            return order
        plan = (await self._in_thread(self.room.quote, order.room)).request.plan
        missing = order.partials - (len(plan.stages) - 1)
        if missing <= 0:
            return order
        every = max(1, plan.evaluations // (missing + 1))
        return replace(order, room=replace(order.room, estimate_every=every))

    def model(self, name: str | None) -> ModelInfo:
        """The model of a name; the first, where there is none.

        Raises:
            HttpError: There is no such model.
        """
        models = self.room.models()
        if not name:
            return models[0]
        for model in models:
            if name == model.name or name in model.aliases:
                return model
        for model in models:
            if name.startswith(f"{model.name}@"):  # a style that the room looks for
                return replace(model, name=name)
        there = ", ".join(model.name for model in models)
        raise HttpError("model_not_found", f"there is no model {name[:64]!r}, but {there}", param="model")

    async def _steps_of(self, model: ModelInfo) -> int:
        """Steps that a model takes of itself."""
        if model.name not in self._steps:
            quote = await self._in_thread(self.room.quote, ImageRequest(prompt="", model=model.name))
            self._steps[model.name] = quote.request.plan_options.num_inference_steps
        return self._steps[model.name]

    # --- Knowing ------------------------------------------------------------------------------------------------------

    def job(self, name: str, client: Client) -> Job:
        """A job of a client's.

        Raises:
            HttpError: It is gone, or not the client's, or never was.
        """
        job = self._jobs.get(name)
        if job is None and name in self._gone:
            raise HttpError(
                "gone", f"job {name} is gone; it was kept for {self._keep_seconds:g} s after its end", param="id"
            )
        if job is None or job.client.name != client.name:
            raise HttpError("not_found", f"there is no job {name[:64]!r}", param="id")
        return job

    def jobs(self, client: Client) -> list[Job]:
        """The jobs of a client, newest first."""
        own = [job for job in self._jobs.values() if job.client.name == client.name]
        return sorted(own, key=lambda job: -job.created)

    async def contents(self, picture: Painted) -> bytes:
        """The file of a finished picture.

        Raises:
            HttpError: It is gone.
        """
        if picture.data is not None:
            return picture.data
        return (await self._in_thread(self.store.get, picture.name))[0]

    def left(self, job: Job) -> None:
        """Somebody who waited for a job has gone: it is cancelled where nobody else waits, and nobody will."""
        job.waiters -= 1
        if job.waiters or job.kept or not job.open:
            return
        if job.idempotency:
            asyncio.get_running_loop().call_later(GRACE_S, _cancel_unless_awaited, job)
        else:
            job.cancel()

    async def forget(self, job: Job) -> None:
        """Cancel a job, and let go of it."""
        job.cancel()
        await job.wait()
        self._let_go(job)

    # --- Beginning and end --------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Know the jobs of an earlier run of the server, and go on with those that are open, in the background."""
        if self._journal is None:
            return
        waiting: list[Job] = []
        for record in await self._in_thread(self._journal.records):
            if record.state != "open" and record.ended + self._keep_seconds <= time.time():
                self._remember(record.id)
                self._journal.forget(record.id)
                continue
            job = job_of(record, Client(record.client, KeyLimits()))  # what was taken once is not refused now
            self._jobs[job.id] = job
            self._remember_key(job)
            if job.open:
                waiting.append(job)
        self._resuming = asyncio.create_task(self._resume(waiting, self._journal))

    async def _resume(self, waiting: list[Job], journal: Journal) -> None:
        for job in waiting:
            assert job.record is not None
            record = msgspec.structs.replace(job.record, starts=job.record.starts + 1)
            try:
                asked = await self._in_thread(_asked_again, record, journal)
                await self._again(job, record, asked)
            except (HttpError, LssgenError, JsonError, OSError) as error:
                said = failure(error) if isinstance(error, HttpError | LssgenError) else HttpError("lost", str(error))
                lost = lost_record(record, said)
                settle(job, lost)
                await self._in_thread(journal.note, lost)
                _LOG.warning("job %s is lost: %s", record.id, said.message)

    async def _again(self, job: Job, record: JobRecord, asked: Asked) -> None:
        """Begin a job again, as soon as there is room for it."""
        order = await self._understood(asked)
        begin_again(job, order)
        while job.open and not self.closing:
            try:
                await self._submit(job, lambda hear: self.room.submit(order.room, hear))
            except RefusedError as error:
                if error.code != "queue_full":
                    raise
                await asyncio.sleep(error.retry_after_s or 0.5)
            else:
                await self._note_begin(job, record, order)
                return
        if not job.open and self._journal is not None:  # it was cancelled while it waited
            await self._in_thread(self._note_end, job, record, self._journal)

    async def sweep(self) -> None:
        """Let go of what is too old, for ever."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.store.sweep()
            too_old = time.time() - self._keep_seconds
            for job in [job for job in self._jobs.values() if not job.open and job.ended < too_old]:
                self._let_go(job)
            for place, (_, task) in list(self._keys.items()):
                if task.done() and (task.exception() or (not (job := task.result()).open and job.ended < too_old)):
                    self._keys.pop(place)

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, and wait for what was taken; whether all of it has ended."""
        self.closing = True
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=seconds)
        return not self._pumps

    async def close(self) -> None:
        """End. Jobs that are open stay so in the journal, for the next run of the server."""
        self.closing = True
        going = [*self._pumps, *([self._resuming] if self._resuming else [])]
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _remember_key(self, job: Job) -> None:
        if job.idempotency:

            async def itself() -> Job:
                return job

            self._keys[job.client.name, job.idempotency] = (job.digest, asyncio.create_task(itself()))

    async def _note_begin(self, job: Job, record: JobRecord, order: Order) -> None:
        if self._journal is None:
            job.written.set()
            return
        job.record = record
        try:
            await self._in_thread(self._journal.begin, record, order.asked)
        except OSError as error:
            job.record = None
            job.cancel()
            self._jobs.pop(job.id, None)
            raise HttpError("internal_error", f"the job cannot be written down: {error.strerror}") from error
        finally:
            job.written.set()

    async def _ended(self, job: Job) -> None:
        self._told_ended(job)
        if not job.kept and job.idempotency and job.error is not None:
            self._keys.pop((job.client.name, job.idempotency), None)  # the next try is a new one
        if job.kept:
            await job.written.wait()  # a quick one may end before it is written down that it began
        if self._journal is None or job.record is None or (self.closing and job.state != "done"):
            return
        if job.id in self._jobs:
            await self._in_thread(self._note_end, job, job.record, self._journal)

    def _note_end(self, job: Job, record: JobRecord, journal: Journal) -> None:
        ended = ended_record(job, record)
        try:
            journal.note(ended)
            journal.drop_inputs(ended)
        except OSError as error:
            _LOG.error("the end of job %s cannot be written down: %s", job.id, error)

    def _let_go(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        self._keys.pop((job.client.name, job.idempotency), None)
        self._remember(job.id)
        for picture in job.pictures.values():
            self.store.drop(picture.name)
        if self._journal is not None:
            self._journal.forget(job.id)

    def _remember(self, name: str) -> None:
        self._gone[name] = None
        while len(self._gone) > MOST_REMEMBERED:
            self._gone.popitem(last=False)

    async def _in_thread(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)


def _asked_again(record: JobRecord, journal: Journal) -> Asked:
    """What a job of an earlier run asked for; its deadline counts from then.

    Raises:
        HttpError: It is too late, or was begun too often.
        JsonError, OSError: The journal is damaged.
    """
    if record.starts > MOST_STARTS:
        raise HttpError("lost", f"the server went down {MOST_STARTS} times while this job was open")
    asked = journal.asked(record)
    if asked.fields.deadline_ms:
        left = asked.fields.deadline_ms - 1000 * (time.time() - record.created)
        if left < 1:
            raise HttpError("deadline_passed", "the server was down when its time ran out")
        return replace(asked, fields=msgspec.structs.replace(asked.fields, deadline_ms=int(left)))
    return asked


def _take_back(submitted: "asyncio.Future[Ticket]") -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def _cancel_unless_awaited(job: Job) -> None:
    if not job.waiters:
        job.cancel()


def _see_size(job: Job) -> None:
    """Refuse a size that would be rounded: some models do that where others refuse.

    Raises:
        HttpError: It would be.
    """
    assert job.order is not None
    assert job.ticket is not None
    plan = job.ticket.request.plan
    if job.order.size and job.order.asked.fields.size and job.order.size != (plan.width_px, plan.height_px):
        job.cancel()
        raise other_size(*job.order.size, plan.width_px, plan.height_px, "sides that every stage can halve")
