"""The loop that owns the device: hear callers, let pictures join, take one step of one lane, see who has ended.

Everything here happens in one thread. The device is kept at most one step ahead of what is known, so that a request
that is taken back costs at most one step.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from threading import Condition
from time import monotonic

from lssgen.engines.base import Backend, Mark
from lssgen.errors import CancelledError, EngineError, LssgenError, RefusedError
from lssgen.runtime.checking import Guard
from lssgen.runtime.sampler import Floats
from lssgen.serving.admission import Admission
from lssgen.serving.desk import Desk
from lssgen.serving.drafts import Drafts
from lssgen.serving.finish import Finisher
from lssgen.serving.lane import Lane
from lssgen.serving.lanes import Lanes
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.options import ServerOptions
from lssgen.serving.painter import Painter
from lssgen.serving.status import Observation
from lssgen.serving.times import Call
from lssgen.serving.work import Job, Piece

_IDLE_S = 1.0
"""Seconds between two looks at drafts and deadlines where nothing else happens."""


@dataclass(slots=True)
class Flight:
    """A step that the device was asked for.

    Attributes:
        lane: Whose.
        pieces: Its pictures then.
        turns: The step of each.
        batch: Rows in the call.
        began, ended: Marks around it.
    """

    lane: Lane
    pieces: Sequence[Piece]
    turns: Sequence[int]
    batch: int
    began: Mark
    ended: Mark


class Scheduler:
    """Paints what was taken.

    Args:
        backend: The device.
        models: What is painted with.
        desk: The books.
        drafts: Where drafts are kept.
        options: Limits and policies.
        budget: Bytes that weights and buffers may take.
        guard: Hooks that every picture passes.

    Attributes:
        lanes: Who is on the device.
        busy_since: Moment at which the present call of the device was made; None between calls.
    """

    def __init__(
        self,
        backend: Backend,
        models: Models,
        desk: Desk,
        drafts: Drafts,
        options: ServerOptions,
        budget: int,
        guard: Guard,
    ) -> None:
        self.busy_since: float | None = None
        self.lanes = Lanes(options, budget)
        self._backend = backend
        self._models = models
        self._desk = desk
        self._drafts = drafts
        self._batches = options.batches
        self._finisher = Finisher(desk, drafts, guard)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lssgen-noise")
        self._admission = Admission(
            models,
            self.lanes,
            desk,
            options,
            budget,
            painter=self.painter,
            busy=self._busy,
            settle=lambda: self._settle(0),
        )
        self._flights: deque[Flight] = deque()
        self._deadlines: list[tuple[float, str]] = []
        self._wake = Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._stopped = False

    # --- From any thread ---

    def call(self, work: Callable[[], None]) -> None:
        """Let the scheduler's thread do something between two steps."""
        with self._wake:
            self._inbox.append(work)
            self._wake.notify()

    def paint(self, job: Job) -> None:
        """A request was taken."""
        channels = self._models[job.ticket.model].bundle.manifest.facts.channels
        for piece in job.pieces:
            if piece.stage == 0:
                piece.draw_ahead(0, channels, self._pool)
        self.call(lambda: self._take(job))

    def cancel(self, job: Job, error: LssgenError | None = None) -> None:
        """A request was taken back, or ends for another reason."""
        reason = error or CancelledError(f"request {job.ticket.id} was taken back")
        self.call(lambda: self._admission.end(job, reason))

    def estimate(self, job: Job) -> None:
        """Show what a request's pictures will be, after their next step."""

        def wish() -> None:
            for piece in job.pieces:
                piece.wished = True

        self.call(wish)

    def forget_ended(self) -> None:
        """Let go of pictures whose requests were ended by somebody else."""

        def forget() -> None:
            for piece in [*self._admission.everybody, *self.lanes.everybody]:
                if not self._desk.holds(piece.job):
                    self._admission.take_off(piece)

        self.call(forget)

    def stop(self) -> None:
        """End the loop, within a step."""
        self.call(lambda: setattr(self, "_stopped", True))

    # --- The loop ---

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            Exception: A mistake of ours. Nothing is painted any more.
        """
        while not self._stopped:
            self._turn()

    def end(self) -> None:
        """Free what is not the device's; for after `run`, however it ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _turn(self) -> None:
        for work in self._calls():
            work()
        self._expire()
        self._admission.admit()
        self._busy(self.lanes.tidy)
        lane = self.lanes.next()
        if lane is None:
            self._settle(0)
        else:
            self._step(lane)

    def _calls(self) -> list[Callable[[], None]]:
        """What callers want; waits for it where there is nothing else to do."""
        with self._wake:
            if not self._inbox and not len(self.lanes) and not self._flights and not len(self._admission):
                self._wake.wait(min(_IDLE_S, max(self._deadlines[0][0] - monotonic(), 0) if self._deadlines else inf))
            found = list(self._inbox)
            self._inbox.clear()
        return found

    def _take(self, job: Job) -> None:
        if job.deadline < inf:
            heappush(self._deadlines, (job.deadline, job.ticket.id))
        if self._desk.holds(job):
            for piece in job.pieces:
                self._admission.add(piece)

    def _expire(self) -> None:
        """End what cannot be done in time any more."""
        now = monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id_ = heappop(self._deadlines)
            job = self._desk.find(id_)
            if job is None:
                continue
            self._admission.end(
                job,
                RefusedError(
                    f"the deadline passed when {job.steps} of {job.total} steps were done; give it more time, or ask "
                    "for fewer steps or smaller pictures",
                    code="deadline_passed",
                    param="deadline_ms",
                ),
            )
        self._drafts.sweep()

    def _fail_all(self, pieces: Sequence[Piece], error: EngineError) -> None:
        for piece in pieces:
            self._admission.end(piece.job, error)

    def painter(self, model: Model) -> Painter:
        """Does what comes beside steps."""
        return Painter(model, self._batches, self._note, self._pool)

    # --- Steps ---

    def _step(self, lane: Lane) -> None:
        pieces = lane.pieces
        turns = [piece.turn for piece in pieces]
        self.busy_since = monotonic()
        try:
            began = self._backend.mark()
            lane.step()
            self._flights.append(Flight(lane, pieces, turns, lane.batch, began, self._backend.mark()))
        except EngineError as error:
            self._fail_all(pieces, error)
            return
        finally:
            self.busy_since = None
        if any(piece.ends_stage or piece.changes or piece.job.shows(piece) for piece in pieces):
            self._settle(0)
            self._look(lane, pieces)
        else:
            self._settle(1)

    def _settle(self, ahead: int) -> None:
        """Tell of steps that the device has done; waits until at most so many are on their way."""
        while self._flights and (len(self._flights) > ahead or self._flights[0].ended.reached()):
            flight = self._flights.popleft()
            try:
                self._busy(flight.ended.wait)
                self._told(flight, flight.ended.seconds_since(flight.began))
            except EngineError as error:
                self._fail_all(flight.pieces, error)

    def _told(self, flight: Flight, seconds: float) -> None:
        lane, crowd = flight.lane, flight.lane.crowd
        model = self._models[crowd.model]
        share = seconds / len(flight.pieces)
        lane.share += share
        model.times.note(Call("step", crowd.height, crowd.width, len(crowd.branches), flight.batch), seconds)
        self._desk.called(flight.pieces, flight.batch, seconds)
        for piece, turn in zip(flight.pieces, flight.turns, strict=True):
            if self._desk.holds(piece.job):
                self._desk.step(piece, turn, share)

    def _look(self, lane: Lane, pieces: Sequence[Piece]) -> None:
        """See to pictures whose stage has ended, which go to another lane, or which somebody wants to see."""
        here = [piece for piece in pieces if self.lanes.of(piece) is lane]
        painter = self.painter(self._models[lane.crowd.model])
        for piece in here:
            if not piece.ends_stage and piece.job.shows(piece):
                self._guarded(piece.job, lambda piece=piece: self._finisher.estimate(piece, lane, painter))
        ended = [piece for piece in here if piece.ends_stage and self.lanes.of(piece) is lane]
        for piece in ended:
            if self.lanes.of(piece) is lane:  # another picture of its request may have ended it
                latents = lane.latent(piece), lane.shown(piece)
                self.lanes.leave(piece)
                self._guarded(piece.job, lambda piece=piece, latents=latents: self._ended(piece, *latents, painter))
        for piece in here:
            if self.lanes.of(piece) is lane and piece.changes:
                self.lanes.park(piece)
                self._admission.add(piece)

    def _ended(self, piece: Piece, latent: Floats, shown: Floats, painter: Painter) -> None:
        if self._finisher.stage(piece, latent, shown, painter):
            self._admission.add(piece)

    def _guarded(self, job: Job, work: Callable[[], None]) -> None:
        """Do something for a request, which ends where that fails."""
        try:
            self._busy(work)
        except LssgenError as error:
            self._admission.end(job, error)

    def _busy(self, work: Callable[[], None]) -> None:
        """Work of the device, timed by the watch."""
        self.busy_since = monotonic()
        try:
            work()
        finally:
            self.busy_since = None

    def _note(self, model: Model, call: Call, seconds: float, pictures: int) -> None:
        """A call beside the steps was made."""
        model.times.note(call, seconds)
        cell = model.bundle.manifest.facts.cell_px
        self._desk.observe(
            Observation(
                kind=call.kind,
                model=model.name,
                seconds=seconds,
                height_px=call.height * cell,
                width_px=call.width * cell,
                rows=pictures,
            )
        )
