"""Who is let in: pictures that wait get rows, in the order of their rank, as far as there is room for them."""

from collections.abc import Callable, Sequence
from time import monotonic

from lssgen.errors import BackendError, EngineError, LssgenError, ModelError, RefusedError
from lssgen.serving.desk import Desk
from lssgen.serving.lanes import Lanes
from lssgen.serving.model import Model
from lssgen.serving.models import Models
from lssgen.serving.options import ServerOptions
from lssgen.serving.painter import Painter
from lssgen.serving.queues import Queues, Waiting
from lssgen.serving.status import Observation
from lssgen.serving.work import Crowd, Job, Piece

Busy = Callable[[Callable[[], None]], None]
"""Does work of the device, timed by the watch."""


class Admission:
    """Pictures that wait, and the way to the lanes.

    Args:
        models: What is painted with.
        lanes: Where pictures have rows.
        desk: The books.
        options: Batches and patience.
        budget: Bytes that weights and buffers may take.
        painter: Does what comes beside steps.
        busy: Does work of the device.
        settle: Sees to what the device has been asked for, so that nothing is on its way.
    """

    def __init__(
        self,
        models: Models,
        lanes: Lanes,
        desk: Desk,
        options: ServerOptions,
        budget: int,
        *,
        painter: Callable[[Model], Painter],
        busy: Busy,
        settle: Callable[[], None],
    ) -> None:
        self._models = models
        self._lanes = lanes
        self._desk = desk
        self._batches = options.batches
        self._budget = budget
        self._painter = painter
        self._busy = busy
        self._settle = settle
        self._queues = Queues(options.patience)
        self._waiting: set[Piece] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def everybody(self) -> list[Piece]:
        """Every picture that waits."""
        return list(self._waiting)

    def add(self, piece: Piece) -> None:
        """A picture comes."""
        self._waiting.add(piece)
        self._queues.add(piece)

    def end(self, job: Job, error: LssgenError) -> None:
        """A request ends before its pictures are finished."""
        for piece in job.pieces:
            self.take_off(piece)
        self._desk.fail(job, error)

    def take_off(self, piece: Piece) -> None:
        """A picture is painted no more."""
        if piece in self._waiting:
            self._waiting.remove(piece)
            self._queues.remove(piece)
        elif self._lanes.of(piece):
            self._lanes.leave(piece)

    def admit(self) -> None:
        """Let those who wait join, as far as there is room.

        Where the first of a crowd finds no memory, for its model or for a row, nobody new of lower rank is begun: so
        those who are in the way end, and it gets its turn.
        """
        if not self._waiting:
            return
        held = False
        for crowd, waiting in self._queues.by_rank():
            if not len(waiting) or (held and not waiting.first().job.begun):
                continue
            job = waiting.first().job
            if not self._make_ready(job):
                held = held or self._desk.holds(job)
            elif not self._has_slots(job):
                # Those who hold the slots end within a stage, if nobody takes their place.
                held = True
                waiting.short += 1
            elif joining := self._taken(crowd, waiting, begun_only=held):
                self._join(crowd, joining)
            elif not self._lanes.pieces(crowd):
                held = True
                waiting.short += 1

    def _taken(self, crowd: Crowd, waiting: Waiting, *, begun_only: bool) -> list[Piece]:
        """Whose turn it is to join a crowd's lane."""
        room = self._lanes.room(self._models[crowd.model], crowd, self._models.loaded_bytes)
        if room <= 0 and self._make_way(crowd, waiting.first()):
            room = 1
        taken: list[Piece] = []
        while len(taken) < room and len(waiting) and (waiting.first().job.begun or not begun_only):
            if not self._has_slots(waiting.first().job, taken):
                break
            piece = self._queues.pop(crowd)
            self._waiting.remove(piece)
            taken.append(piece)
        return taken

    def _make_way(self, crowd: Crowd, comer: Piece) -> bool:
        """Take a picture without a deadline, or with a later one, off the device for one that is in more of a hurry.

        Nobody makes way twice, so nobody starves.
        """
        later = [
            piece
            for piece in self._lanes.pieces(crowd)
            if piece.job.deadline > comer.job.deadline and not piece.passed and not piece.ends_stage
        ]
        if not later:
            return False
        self._settle()
        chosen = max(later, key=lambda piece: piece.rank)
        if self._lanes.of(chosen) is not None:  # else it ended while we waited
            chosen.passed = True
            self._lanes.park(chosen)
            self.add(chosen)
        return True

    def _make_ready(self, job: Job) -> bool:
        """Load what a request needs; False where there is no room for it yet. One that cannot be loaded ends here."""
        model = self._models[job.ticket.model]
        if job.demand is None:
            job.demand = model.demand(job.request, self._batches, starts=job.start is not None)
        if model.holds(job.demand):
            model.used = monotonic()
            return True
        if not model.loaded and not self._models.make_room(model, self._budget, self._lanes.uses):
            return False
        self._settle()  # weights are not exchanged, nor kernels measured, beside work in flight
        began = monotonic()
        try:
            model.require(job.demand)
        except LssgenError as error:
            code = "no_memory" if isinstance(error, BackendError) and model.loaded else "broken_model"
            refusal = RefusedError(f"{model.name} cannot be made ready for this request: {error}", code=code)
            refusal.__cause__ = error
            self.end(job, refusal)
            return False
        seconds = job.note("load", -1, began)
        self._desk.observe(Observation(kind="load", model=model.name, seconds=seconds))
        return True

    def _has_slots(self, job: Job, joining: Sequence[Piece] = ()) -> bool:
        """Put a job's LoRAs into the slots of its model, besides those of the pictures that have rows, or are to join;
        False where they do not fit yet. A job whose LoRA cannot be read any more ends here."""
        if not job.loras:
            return True
        model = self._models[job.ticket.model]
        others = [*self._lanes.everybody, *joining]
        in_use = {one.stamp for piece in others if piece.job.ticket.model == model.name for one in piece.job.loras}
        try:
            return model.loras.place(job.loras, in_use)
        except (ModelError, EngineError) as error:
            refusal = RefusedError(f"{job.ticket.name} cannot be painted: {error}", code="broken_model")
            refusal.__cause__ = error
            self.end(job, refusal)
            return False

    def _join(self, crowd: Crowd, pieces: list[Piece]) -> None:
        model = self._models[crowd.model]
        painter = self._painter(model)
        for piece in pieces:
            self._begin(painter, piece.job)
        self._settle()  # what is read off the device is what was told
        pieces = [piece for piece in pieces if self._desk.holds(piece.job)]
        if not pieces:
            return
        staying = len(self._lanes.pieces(crowd))
        try:
            self._busy(lambda: painter.enter(pieces))
            self._busy(lambda: self._lanes.join(model, crowd, pieces))
        except BackendError as error:
            self._without_room(crowd, staying, pieces, error)
        except EngineError as error:
            self._fail(pieces, error)

    def _begin(self, painter: Painter, job: Job) -> None:
        if not self._desk.holds(job):
            return
        self._desk.begin(job)
        try:
            self._busy(lambda: painter.begin(job))
        except LssgenError as error:
            self.end(job, error)

    def _without_room(self, crowd: Crowd, staying: int, joining: Sequence[Piece], error: BackendError) -> None:
        """The device is full after all: those who want to join wait until others have gone, if there are others."""
        self._models[crowd.model].clear()
        self._lanes.refuse(crowd, staying + len(joining))
        if len(self._lanes) or len(joining) > self._batches[0]:
            for piece in joining:
                self.add(piece)
        else:
            self._fail(joining, error)

    def _fail(self, pieces: Sequence[Piece], error: EngineError) -> None:
        for piece in pieces:
            self.end(piece.job, error)
