"""Jobs on disk, as the event loop sees them. Without a folder nothing is written, and a restart loses everything."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import TypeVar

import msgspec

from lssgen.errors import LssgenError
from lssgen.serving.http.jobs import Job, failure
from lssgen.serving.http.journal import MOST_STARTS, JobRecord, Journal
from lssgen.serving.http.orders import Asked
from lssgen.serving.http.records import ended_record, lost_record, settle
from lssgen.serving.http.refusals import HttpError

_LOG = logging.getLogger("lssgen.serve")

T = TypeVar("T")


class Archive:
    """Writes down what becomes of jobs.

    Args:
        journal: Records of a folder; None: there is no folder.
        threads: Where disks are waited for.
    """

    def __init__(self, journal: Journal | None, threads: Executor) -> None:
        self._journal = journal
        self._threads = threads

    async def records(self) -> list[JobRecord]:
        """Every job of an earlier run of the server."""
        return [] if self._journal is None else await self._in_thread(self._journal.records)

    async def begin(self, job: Job, record: JobRecord, asked: Asked) -> None:
        """Write down that a job has begun: after this, a kill does not lose it.

        Raises:
            HttpError: The disk does not take it. The job is cancelled.
        """
        try:
            if self._journal is not None:
                job.record = record
                await self._in_thread(self._journal.begin, record, asked)
        except OSError as error:
            job.record = None
            job.cancel()
            raise HttpError("internal_error", f"the job cannot be written down: {error.strerror}") from error
        finally:
            job.written.set()

    async def end(self, job: Job) -> None:
        """Write down how a job has ended."""
        if self._journal is not None and job.record is not None:
            await self._in_thread(_note, self._journal, ended_record(job, job.record))

    async def lose(self, job: Job, record: JobRecord, error: Exception) -> None:
        """Report a job that cannot go on as lost."""
        said = failure(error) if isinstance(error, HttpError | LssgenError) else HttpError("lost", str(error))
        lost = lost_record(record, said)
        settle(job, lost)
        _LOG.warning("job %s is lost: %s", record.id, said.message)
        if self._journal is not None:
            await self._in_thread(_note, self._journal, lost)

    async def asked_again(self, record: JobRecord) -> Asked:
        """What a job of an earlier run asked for; its deadline counts from then.

        Raises:
            HttpError: It is too late, or was begun too often.
            JsonError, OSError: The journal is damaged.
        """
        if record.starts > MOST_STARTS:
            raise HttpError("lost", f"the server went down {MOST_STARTS} times while this job was open")
        asked = await self.asked(record)
        if not asked.fields.deadline_ms or asked.keep:
            return asked
        left = asked.fields.deadline_ms - 1000 * (time.time() - record.created)
        if left < 1:
            raise HttpError("deadline_passed", "the server was down when its time ran out")
        return replace(asked, fields=msgspec.structs.replace(asked.fields, deadline_ms=int(left)))

    async def asked(self, record: JobRecord) -> Asked:
        """What a job asked for.

        Raises:
            JsonError, OSError: The journal is damaged.
        """
        assert self._journal is not None, "a record is one of the journal's"
        return await self._in_thread(self._journal.asked, record)

    def forget(self, job: str) -> None:
        """Let go of a job."""
        if self._journal is not None:
            self._journal.forget(job)

    async def _in_thread(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)


def _note(journal: Journal, ended: JobRecord) -> None:
    """Write down how a job has ended; where the disk does not take it, the next server begins it again."""
    try:
        journal.note(ended)
        journal.drop_inputs(ended)
    except OSError as error:
        _LOG.error("the end of job %s cannot be written down: %s", ended.id, error)
