"""Jobs as the journal has them, and back."""

import time

import msgspec

from lssgen.serving.http.jobs import Job, Painted, told_before
from lssgen.serving.http.journal import JobRecord
from lssgen.serving.http.keys import Client
from lssgen.serving.http.orders import Order
from lssgen.serving.http.refusals import HttpError


def record_of(job: Job, order: Order) -> JobRecord:
    """A job that begins."""
    asked = order.asked
    return JobRecord(
        id=job.id,
        client=job.client.name,
        created=job.created,
        route=asked.route,
        fields=msgspec.to_builtins(asked.fields),
        draft=asked.draft,
        keep=asked.keep,
        images=tuple(upload.name for upload in asked.images),
        mask=asked.mask.name if asked.mask else "",
        idempotency=job.idempotency,
        digest=job.digest,
    )


def ended_record(job: Job, record: JobRecord) -> JobRecord:
    """The same job when it has ended."""
    return msgspec.structs.replace(
        record,
        state=job.state,
        ended=job.ended,
        code=job.error.code if job.error else "",
        message=job.error.message if job.error else "",
        param=job.error.param if job.error else None,
        pictures=tuple(job.pictures[index].record for index in sorted(job.pictures)),
        told=job.answer,
    )


def lost_record(record: JobRecord, error: HttpError) -> JobRecord:
    """A job that cannot go on after a restart."""
    message = f"the server was started again, and this job cannot go on: {error.message}"
    return msgspec.structs.replace(
        record, state="lost", ended=time.time(), code=error.code, message=message, param=error.param
    )


def job_of(record: JobRecord, client: Client) -> Job:
    """A job of an earlier run: one that has ended, or one that waits to be begun again."""
    pictures = {
        index: Painted(index=index, data=None, name=one.name, seed=one.seed, width=one.width, height=one.height)
        for index, one in enumerate(record.pictures)
    }
    job = Job(
        id=record.id,
        order=None,
        client=client,
        created=record.created,
        kept=True,
        stored=True,
        idempotency=record.idempotency,
        digest=record.digest,
        pictures=pictures,
        told=list(pictures.values()),
        answer=record.told,
        record=record,
    )
    settle(job, record)
    return job


def settle(job: Job, record: JobRecord) -> None:
    """Let a job be what its record says."""
    job.record = record
    job.state = record.state  # pyright: ignore[reportAttributeAccessIssue]
    job.ended = record.ended
    job.error = HttpError(record.code, record.message, param=record.param) if record.code else None
    job.changed()


def begin_again(job: Job, order: Order) -> None:
    """Let a job that waits have its order."""
    job.order = order
    job.answer = told_before(order)
