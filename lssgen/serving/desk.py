"""The books: which requests were taken, what they cost, and how they ended. Every one ends exactly once."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition, RLock
from time import monotonic, time

from lssgen.errors import CancelledError, LssgenError, NonFiniteError, RefusedError
from lssgen.serving.api import Answer, Done, Failed, Progress, Timings, Usage
from lssgen.serving.options import ServerOptions
from lssgen.serving.status import Observation, Observe
from lssgen.serving.ticket import outcome_of
from lssgen.serving.work import Job, Piece, pixels_of

_LOG = logging.getLogger("lssgen")


@dataclass(slots=True)
class Counts:
    """What a server has done since it began; see `lssgen.serving.status.Stats`."""

    accepted: int = 0
    done: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    pictures: int = 0
    pixels: int = 0
    steps: int = 0
    calls: int = 0
    previews: int = 0
    nonfinite: int = 0
    busy_seconds: float = 0.0


class Desk:
    """Keeps the books. Any thread may ask; requests are begun and ended by the scheduler, or by whoever finds it dead.

    Args:
        options: Limits of the queue.
        observe: Given what is measured.

    Attributes:
        counts: Work that was done, and requests by their end.
    """

    def __init__(self, options: ServerOptions, observe: Observe | None) -> None:
        self.counts = Counts()
        self._options = options
        self._observe = observe
        self._lock = Condition(RLock())
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def jobs(self) -> list[Job]:
        """Requests that have not ended, the oldest first."""
        return list(self._jobs.values())

    @property
    def waiting(self) -> list[Job]:
        """Those none of whose pictures was begun."""
        return [job for job in self.jobs if not job.begun]

    @property
    def waiting_pixels(self) -> int:
        """Pixels of the pictures of these."""
        return sum(list(self._waiting.values()))

    def take(self, job: Job, retry_after_s: float) -> None:
        """Put a request on the books.

        Raises:
            RefusedError: Too many wait.
        """
        pixels = pixels_of(job.plan, job.pieces)
        with self._lock:
            full = len(self._waiting) >= self._options.most_requests
            if full or (self._waiting and self.waiting_pixels + pixels > self._options.most_queued_pixels):
                raise self.refused(
                    RefusedError(
                        f"{len(self._waiting)} requests of {self.waiting_pixels:,} pixels wait already; this server "
                        f"lets {self._options.most_requests} of {self._options.most_queued_pixels:,} pixels wait: try "
                        f"again in {retry_after_s:.0f} s",
                        code="queue_full",
                        retry_after_s=retry_after_s,
                    )
                )
            self._jobs[job.ticket.id] = job
            self._waiting[job.ticket.id] = pixels
            self.counts.accepted += 1

    def refused(self, error: RefusedError) -> RefusedError:
        """Count a refusal; it is for the caller to raise."""
        with self._lock:
            self.counts.refused[error.code] += 1
        return error

    def find(self, id: str) -> Job | None:  # noqa: A002
        """The request of a ticket, if it has not ended."""
        return self._jobs.get(id)

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until every request has ended; whether all have in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._jobs, timeout)

    def holds(self, job: Job) -> bool:
        """Whether a request has not ended."""
        return job.ticket.id in self._jobs

    def begin(self, job: Job) -> None:
        """The first of a request's pictures is begun."""
        if job.begun:
            return
        job.begun = True
        with self._lock:
            self._waiting.pop(job.ticket.id, None)
        seconds = job.note("queue", -1, job.submitted)
        self.observe(Observation(kind="queue", model=job.ticket.model, seconds=seconds))

    def called(self, pieces: Sequence[Piece], batch: int, seconds: float) -> None:
        """The device has taken a step of some pictures, in buffers for `batch`."""
        self.counts.calls += 1
        self.counts.steps += len(pieces)
        self.counts.busy_seconds += seconds
        if self._observe is not None:
            height, width = pieces[0].size_px
            self.observe(
                Observation(
                    kind="step",
                    model=pieces[0].job.ticket.model,
                    seconds=seconds,
                    height_px=height,
                    width_px=width,
                    rows=len(pieces),
                    batch=batch,
                )
            )

    def step(self, piece: Piece, turn: int, seconds: float) -> None:
        """A picture's step was done.

        Args:
            piece: The picture.
            turn: Number of the step in the picture's stage.
            seconds: Its share of the call.
        """
        job, stage = piece.job, piece.table.stage
        job.steps += 1
        job.passes += len(stage.steps[turn].guidance)
        job.device_seconds += seconds
        height, width = piece.size_px
        job.ticket.tell(
            Progress(
                index=piece.index,
                stage=piece.stage,
                stages=len(job.tables),
                step=turn,
                steps=len(stage.steps),
                height_px=height,
                width_px=width,
                done=job.steps,
                total=job.total,
            )
        )

    def end(self, job: Job) -> None:
        """All pictures of a request are finished."""
        with self._lock:
            if self._jobs.pop(job.ticket.id, None) is None:
                return
            self._waiting.pop(job.ticket.id, None)
            self._lock.notify_all()
            self.counts.done += 1
            self.counts.pictures += len(job.pictures)
            self.counts.pixels += job.pixels
        self._observe_end(job, "drafted" if job.draft else "done")
        job.ticket.tell(Done(answer=answer_of(job)))

    def fail(self, job: Job, error: LssgenError) -> None:
        """A request ends otherwise."""
        with self._lock:
            if self._jobs.pop(job.ticket.id, None) is None:
                return
            self._waiting.pop(job.ticket.id, None)
            self._lock.notify_all()
            if isinstance(error, CancelledError):
                self.counts.cancelled += 1
            else:
                self.counts.failed += 1
                self.counts.refused[outcome_of(error)] += isinstance(error, RefusedError)
            self.counts.nonfinite += isinstance(error, NonFiniteError)
        self._observe_end(job, "cancelled" if isinstance(error, CancelledError) else "failed")
        job.ticket.tell(Failed(error=error))

    def fail_all(self, error: LssgenError) -> None:
        """Everything that was taken ends."""
        for job in self.jobs:
            self.fail(job, error)

    def observe(self, seen: Observation) -> None:
        """Hand on what was measured."""
        if self._observe is None:
            return
        try:
            self._observe(seen)
        except BaseException:  # SystemExit too would end the scheduler's thread
            _LOG.exception("the observer of this server failed; it is told nothing more")
            self._observe = None

    def _observe_end(self, job: Job, outcome: str) -> None:
        seconds = monotonic() - job.submitted
        seen = Observation(kind="request", model=job.ticket.model, seconds=seconds, outcome=outcome)
        self.observe(seen)


def answer_of(job: Job) -> Answer:
    """What a request gives at its end."""
    total = monotonic() - job.submitted
    queue = next((span.seconds for span in job.spans if span.name == "queue"), total)
    facts = job.plan.stages[-1]
    return Answer(
        pictures=job.pictures,
        request=job.request,
        model=job.ticket.name,
        draft=job.draft,
        timings=Timings(queue=queue, total=total, submitted=time() - total, spans=tuple(job.spans)),
        usage=Usage(
            text_tokens=job.text_tokens,
            image_tokens=len(job.pictures) * facts.height * facts.width // job.cells_per_token,
            pixels=job.pixels,
            steps=job.steps,
            passes=job.passes,
            device_seconds=job.device_seconds,
        ),
        notes=job.ticket.notes,
    )
