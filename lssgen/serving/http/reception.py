"""Between HTTP and the engine room: takes requests as jobs, answers for them, and goes on with them after a restart."""

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import msgspec

from lssgen.errors import LssgenError
from lssgen.jsons import JsonError
from lssgen.serving.http.archive import Archive
from lssgen.serving.http.jobs import Job, Painted, Pump, told_before
from lssgen.serving.http.journal import JobRecord, Journal
from lssgen.serving.http.keys import Client
from lssgen.serving.http.known import Known
from lssgen.serving.http.limits import KeyLimits, Limits
from lssgen.serving.http.orders import Asked
from lssgen.serving.http.reading import Reader
from lssgen.serving.http.records import begin_again, job_of, record_of
from lssgen.serving.http.refining import Refiner
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.http.sizes import other_size
from lssgen.serving.http.store import Store
from lssgen.serving.http.submitting import Submitter
from lssgen.serving.server import Server
from lssgen.serving.status import ModelInfo

GRACE_S = 15.0
"""Seconds for which a request with an idempotency key goes on after its client left, for the client's next try."""

SWEEP_EVERY_S = 1.0

MOST_DECODED = 4
"""Requests whose pictures are in memory decoded, of up to 100 MB each; the others that came with pictures wait."""


class Reception:
    """Takes requests to a server of the engine room. Belongs to one event loop.

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
        self.store = Store(state and state / "pictures", seconds=keep_seconds, most=keep_bytes)
        self._keep_seconds = keep_seconds
        self._told_ended = ended
        self._threads = ThreadPoolExecutor(4, "reception")
        self._encoders = ThreadPoolExecutor(2, "encode")
        self._archive = Archive(Journal(state / "jobs") if state else None, self._threads)
        self._known = Known(keep_seconds, self._forgotten)
        self._reader = Reader(room, limits, self._threads)
        pump = Pump(encoders=self._encoders, keep=self.store.put, ended=self._ended)
        self._submitter = Submitter(pump, self._threads)
        self._refiner = Refiner(room, self._submitter, self._ended)
        self._decoded = asyncio.Semaphore(MOST_DECODED)
        self._resuming: asyncio.Task[None] | None = None

    @property
    def closing(self) -> bool:
        """Whether nothing is taken any more."""
        return self._submitter.closing

    # --- Taking -------------------------------------------------------------------------------------------------------

    async def take(
        self, asked: Asked, client: Client, *, kept: bool = False, idempotency: str = "", draft: str = ""
    ) -> Job:
        """Take a request; one with an idempotency key that is known is the job that it was.

        Args:
            asked: What is asked for.
            client: Whose it is.
            kept: Let it go on without anybody who waits, and over a restart.
            idempotency: Key that tells a repetition from another request; empty: it has none.
            draft: The room's word for the draft that is finished, if one is.

        Raises:
            HttpError, LssgenError: It is refused.
        """
        if not idempotency:
            return await self._begin(asked, client, kept=kept, draft=draft)
        digest = asked.digest()
        if (begun := self._known.repeated(client, idempotency, digest)) is not None:
            return await asyncio.shield(begun)
        task = asyncio.create_task(
            self._begin(asked, client, kept=kept, idempotency=idempotency, digest=digest, draft=draft)
        )
        self._known.begun(client, idempotency, digest, task)
        try:
            return await asyncio.shield(task)
        except (HttpError, LssgenError):
            self._known.free_key(client, idempotency)  # nothing was begun: the next try may go better
            raise

    async def refine(self, draft: Job, keep: list[int], client: Client, *, idempotency: str = "") -> Job:
        """Finish some pictures of a draft, as a job of its own.

        Raises:
            HttpError, LssgenError: It is not a draft, or is refused.
        """
        if not draft.drafted:
            raise HttpError("not_found", f"job {draft.id} left no draft; create it with draft: true", param="id")
        first = draft.order.asked if draft.order else await self._archive.asked(draft.noted)
        count = first.fields.n or 1
        if max(keep) >= count:
            message = f"keep has {max(keep)}; the draft has {count} pictures, counted from 0"
            raise HttpError("invalid_value", message, param="keep")
        asked = replace(first, keep=tuple(keep))
        return await self.take(asked, client, kept=True, idempotency=idempotency, draft=draft.draft)

    async def _begin(
        self, asked: Asked, client: Client, *, kept: bool, idempotency: str = "", digest: str = "", draft: str = ""
    ) -> Job:
        self._submitter.see_open()
        async with self._decoded if asked.images else nullcontext():
            return await self._begun(asked, client, kept, idempotency, digest, draft)

    async def _begun(self, asked: Asked, client: Client, kept: bool, idempotency: str, digest: str, draft: str) -> Job:
        order = await self._reader.understood(asked)
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
        await self._to_the_room(job, draft)
        _see_size(job)
        job.order = order.without_pictures()
        if kept:
            self._known.add(job)
            try:
                await self._archive.begin(job, record_of(job, order), order.asked)
            except HttpError:
                self._known.drop(job)
                raise
        return job

    async def _to_the_room(self, job: Job, draft: str = "") -> None:
        """Give a job to the room.

        Raises:
            HttpError, LssgenError: It is refused.
        """
        assert job.order is not None
        asked = job.order.room
        if job.order.asked.keep:
            await self._refiner.begin(job, draft)
        else:
            await self._submitter.submit(job, lambda hear: self.room.submit(asked, hear))

    # --- Knowing ------------------------------------------------------------------------------------------------------

    def job(self, name: str, client: Client) -> Job:
        """A job of a client's.

        Raises:
            HttpError: It is gone, or not the client's, or never was.
        """
        return self._known.find(name, client)

    def jobs(self, client: Client) -> list[Job]:
        """The jobs of a client, newest first."""
        return self._known.of(client)

    async def model(self, name: str) -> ModelInfo:
        """The model of a name.

        Raises:
            HttpError, LssgenError: There is no such model.
        """
        return await self._reader.model(name)

    async def contents(self, picture: Painted) -> bytes:
        """The file of a finished picture.

        Raises:
            HttpError: It is gone.
        """
        if picture.data is not None:
            return picture.data
        return (await asyncio.get_running_loop().run_in_executor(self._threads, self.store.get, picture.name))[0]

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
        self._known.let_go(job)

    # --- Beginning and end --------------------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Know the jobs of an earlier run of the server, and go on with those that are open, in the background."""
        waiting: list[Job] = []
        for record in await self._archive.records():
            if record.state != "open" and record.ended + self._keep_seconds <= time.time():
                self._known.remember(record.id)
                self._archive.forget(record.id)
                continue
            job = job_of(record, Client(record.client, KeyLimits()))  # what was taken once is not refused now
            self._known.add(job)
            self._known.begun_before(job)
            if job.open:
                waiting.append(job)
        self._resuming = asyncio.create_task(self._resume(waiting))

    async def _resume(self, waiting: list[Job]) -> None:
        for job in waiting:
            record = msgspec.structs.replace(job.noted, starts=job.noted.starts + 1)
            try:
                await self._again(job, record, await self._archive.asked_again(record))
            except (HttpError, LssgenError, JsonError, OSError) as error:
                await self._archive.lose(job, record, error)

    async def _again(self, job: Job, record: JobRecord, asked: Asked) -> None:
        """Begin a job again, as soon as there is room for it."""
        order = await self._reader.understood(asked)
        begin_again(job, order)
        if await self._submitter.patiently(job, lambda: self._to_the_room(job)):
            job.order = order.without_pictures()
            await self._archive.begin(job, record, order.asked)
        elif not job.open:  # it was cancelled while it waited
            await self._archive.end(job)

    async def sweep(self) -> None:
        """Let go of what is too old, for ever."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.store.sweep()
            self._known.sweep()

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, and wait for what was taken; whether all of it has ended."""
        return await self._submitter.drain(seconds)

    async def close(self) -> None:
        """End. Jobs that are open stay so in the journal, for the next run of the server."""
        await self._submitter.close()
        if self._resuming is not None:
            self._resuming.cancel()
            await asyncio.gather(self._resuming, return_exceptions=True)
        self._reader.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)

    async def _ended(self, job: Job) -> None:
        self._told_ended(job)
        if not job.kept:
            if job.error is not None:
                self._known.forget_key(job)  # the next try is a new one
            return
        await job.written.wait()  # a quick one may end before it is written down that it began
        if job in self._known and (job.state == "done" or not self.closing):
            await self._archive.end(job)

    def _forgotten(self, job: Job) -> None:
        for picture in job.pictures.values():
            self.store.drop(picture.name)
        self._archive.forget(job.id)


def _cancel_unless_awaited(job: Job) -> None:
    if not job.waiters:
        job.cancel()


def _see_size(job: Job) -> None:
    """Refuse a size that would be rounded: some models do that where others refuse.

    Raises:
        HttpError: It would be.
    """
    assert job.order is not None
    if job.ticket is None or not job.order.size or not job.order.asked.fields.size:
        return
    plan = job.ticket.request.plan
    if job.order.size != (plan.width_px, plan.height_px):
        job.cancel()
        raise other_size(*job.order.size, plan.width_px, plan.height_px, "sides that every stage can halve")
