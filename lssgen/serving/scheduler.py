"""The loop that owns the device: hear callers, let pictures join, take one step of one lane, see who has ended.

Everything here happens in one thread. The device is kept at most one step ahead of what is known, so that a request
that is taken back costs at most one step.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from threading import Condition
from time import monotonic

from lssgen.engines.base import Backend, Mark
from lssgen.errors import BackendError, CancelledError, EngineError, LssgenError, RefusedError
from lssgen.runtime.sampler import Floats
from lssgen.serving.api import Observation
from lssgen.serving.desk import Desk
from lssgen.serving.drafts import Drafts
from lssgen.serving.finish import Finisher
from lssgen.serving.lane import Lane
from lssgen.serving.lanes import Lanes
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.options import ServerOptions
from lssgen.serving.painter import Painter
from lssgen.serving.queues import Queues, Waiting
from lssgen.serving.times import Call
from lssgen.serving.work import Crowd, Job, Piece

_LOG = logging.getLogger("lssgen")

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

    Attributes:
        busy_since: Moment at which the present call of the device was made; None between calls.
    """

    def __init__(
        self, backend: Backend, models: Models, desk: Desk, drafts: Drafts, options: ServerOptions, budget: int
    ) -> None:
        self.busy_since: float | None = None
        self.lanes = Lanes(options, budget)
        self._backend = backend
        self._models = models
        self._desk = desk
        self._drafts = drafts
        self._batches = options.batches
        self._budget = budget
        self._finisher = Finisher(desk, drafts)
        self._queues = Queues(options.patience)
        self._queued: set[Piece] = set()
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
        self.call(lambda: self._take(job))

    def cancel(self, job: Job, error: LssgenError | None = None) -> None:
        """A request was taken back, or ends for another reason."""
        reason = error or CancelledError(f"request {job.ticket.id} was taken back")
        self.call(lambda: self._end(job, reason))

    def estimate(self, job: Job) -> None:
        """Show what a request's pictures will be, after their next step."""

        def wish() -> None:
            for piece in job.pieces:
                piece.wished = True

        self.call(wish)

    def forget_ended(self) -> None:
        """Let go of pictures whose requests were ended by somebody else."""

        def forget() -> None:
            for piece in [*self._queued, *self.lanes.everybody]:
                if not self._desk.holds(piece.job):
                    self._take_off(piece)

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
            for work in self._calls():
                work()
            self._expire()
            self._admit()
            self._busy(self.lanes.tidy)
            lane = self.lanes.next()
            if lane is None:
                self._settle(0)
            else:
                self._step(lane)

    def _calls(self) -> list[Callable[[], None]]:
        """What callers want; waits for it where there is nothing else to do."""
        with self._wake:
            if not self._inbox and not len(self.lanes) and not self._flights and not len(self._queues):
                self._wake.wait(min(_IDLE_S, max(self._deadlines[0][0] - monotonic(), 0) if self._deadlines else inf))
            found = list(self._inbox)
            self._inbox.clear()
        return found

    def _take(self, job: Job) -> None:
        if job.deadline < inf:
            heappush(self._deadlines, (job.deadline, job.ticket.id))
        if self._desk.holds(job):
            for piece in job.pieces:
                self._queue(piece)

    def _expire(self) -> None:
        """End what cannot be done in time any more."""
        now = monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id_ = heappop(self._deadlines)
            job = self._desk.find(id_)
            if job is None:
                continue
            self._end(
                job,
                RefusedError(
                    f"the deadline passed when {job.steps} of {job.total} steps were done; give it more time, or ask "
                    "for fewer steps or smaller pictures",
                    code="deadline_passed",
                    param="deadline_ms",
                ),
            )
        self._drafts.sweep()

    def _end(self, job: Job, error: LssgenError) -> None:
        """A request ends before its pictures are finished."""
        for piece in job.pieces:
            self._take_off(piece)
        self._desk.fail(job, error)

    def _take_off(self, piece: Piece) -> None:
        """A picture is painted no more."""
        if piece in self._queued:
            self._queued.remove(piece)
            self._queues.remove(piece)
        elif self.lanes.of(piece):
            self.lanes.leave(piece)

    def _queue(self, piece: Piece) -> None:
        self._queued.add(piece)
        self._queues.add(piece)

    # --- Admission ---

    def _admit(self) -> None:
        """Let those who wait join, in the order of their rank, as far as there is room.

        Where a model is not loaded and finds no room, nobody new of lower rank is begun, so that those who are in the
        way end, and it gets its turn.
        """
        stalled = ""
        for crowd, waiting in self._queues.by_rank() if len(self._queues) else ():
            if stalled and crowd.model != stalled and not waiting.first().job.begun:
                continue
            if not self._make_ready(waiting.first().job):
                stalled = stalled or crowd.model
                continue
            if joining := self._taken(crowd, waiting):
                self._join(crowd, joining)

    def _taken(self, crowd: Crowd, waiting: Waiting) -> list[Piece]:
        """Whose turn it is to join a crowd's lane."""
        model = self._models[crowd.model]
        room = self.lanes.room(model, crowd, self._models.loaded_bytes)
        if room <= 0 and self._make_way(crowd, waiting.first()):
            room = 1
        taken: list[Piece] = []
        while room > 0 and len(waiting):
            piece = self._queues.pop(crowd)
            self._queued.remove(piece)
            taken.append(piece)
            room -= 1
        return taken

    def _make_way(self, crowd: Crowd, comer: Piece) -> bool:
        """Take a picture without a deadline, or with a later one, off the device for one that is in more of a hurry.

        Nobody makes way twice, so nobody starves.
        """
        later = [
            piece
            for piece in self.lanes.pieces(crowd)
            if piece.job.deadline > comer.job.deadline and not piece.passed and not piece.ends_stage
        ]
        if not later:
            return False
        self._settle(0)
        chosen = max(later, key=lambda piece: piece.rank)
        if self.lanes.of(chosen) is None:  # it ended its stage while we waited
            return True
        chosen.passed = True
        self.lanes.park(chosen)
        self._queue(chosen)
        return True

    def _make_ready(self, job: Job) -> bool:
        """Load what a request needs; False where there is no room for it yet. One that cannot be loaded ends here."""
        model = self._models[job.ticket.model]
        if job.demand is None:
            job.demand = model.demand(job.request, self._batches, starts=job.start is not None)
        demand = job.demand
        if model.holds(demand):
            model.used = monotonic()
            return True
        if not model.loaded and not self._models.make_room(model, self._budget, self.lanes.uses):
            return False
        began = monotonic()
        try:
            model.require(demand)
        except LssgenError as error:
            code = "too_large" if isinstance(error, BackendError) and model.loaded else "broken_model"
            refusal = RefusedError(f"{model.name} cannot be made ready for this request: {error}", code=code)
            refusal.__cause__ = error
            self._end(job, refusal)
            return False
        seconds = job.note("load", -1, began)
        self._desk.observe(Observation(kind="load", model=model.name, seconds=seconds))
        return True

    def _join(self, crowd: Crowd, pieces: list[Piece]) -> None:
        model = self._models[crowd.model]
        painter = self.painter(model)
        for piece in pieces:
            self._begin(painter, piece.job)
        self._settle(0)  # what is read off the device is what was told
        pieces = [piece for piece in pieces if self._desk.holds(piece.job)]
        if not pieces:
            return
        staying = self.lanes.pieces(crowd)
        try:
            self._busy(lambda: painter.enter(pieces))
            self._busy(lambda: self.lanes.join(model, crowd, pieces))
        except BackendError as error:
            self._without_room(crowd, len(staying), pieces, error)
        except EngineError as error:
            self._fail_all(pieces, error)

    def _begin(self, painter: Painter, job: Job) -> None:
        if not self._desk.holds(job):
            return
        self._desk.begin(job)
        try:
            self._busy(lambda: painter.begin(job))
        except LssgenError as error:
            self._end(job, error)

    def _without_room(self, crowd: Crowd, staying: int, joining: Sequence[Piece], error: BackendError) -> None:
        """The device is full after all: those who want to join wait until others have gone, if there are others."""
        self._models[crowd.model].clear()
        self.lanes.refuse(crowd, staying + len(joining))
        if len(self.lanes) or len(joining) > self._batches[0]:
            for piece in joining:
                self._queue(piece)
        else:
            self._fail_all(joining, error)

    def _fail_all(self, pieces: Sequence[Piece], error: EngineError) -> None:
        for piece in pieces:
            self._end(piece.job, error)

    def painter(self, model: Model) -> Painter:
        """Does what comes beside steps."""
        return Painter(model, self._batches, self._note)

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
        if any(piece.ends_stage or piece.crowd != lane.crowd or piece.job.shows(piece) for piece in pieces):
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
                latent = lane.latent(piece)
                self.lanes.leave(piece)
                self._guarded(piece.job, lambda piece=piece, latent=latent: self._ended(piece, latent, painter))
        for piece in here:
            if self.lanes.of(piece) is lane and piece.crowd != lane.crowd:
                self.lanes.park(piece)
                self._queue(piece)

    def _ended(self, piece: Piece, latent: Floats, painter: Painter) -> None:
        if self._finisher.stage(piece, latent, painter):
            self._queue(piece)

    def _guarded(self, job: Job, work: Callable[[], None]) -> None:
        """Do something for a request, which ends where that fails."""
        try:
            self._busy(work)
        except LssgenError as error:
            self._end(job, error)

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
