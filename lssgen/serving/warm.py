"""Warming up: engines loaded, and every batch run and timed at every declared size, before the server is ready."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from lssgen.engines.base import Backend
from lssgen.engines.demand import Size
from lssgen.errors import EngineError, PlanError
from lssgen.manifest import Picture
from lssgen.runtime.noise import NoiseStream
from lssgen.runtime.options import Options, request_from_options
from lssgen.runtime.sampler import Floats
from lssgen.serving.api import ImageRequest, Queued
from lssgen.serving.lane import Lane
from lssgen.serving.memory import Scratch, lane_bytes, resident_bytes
from lssgen.serving.model import Model
from lssgen.serving.painter import Painter
from lssgen.serving.ticket import Ticket
from lssgen.serving.times import Call
from lssgen.serving.work import Job, Piece, pieces_of

_STEPS = 3
"""Steps of a stage that are taken; the first sets up what later ones use, so the last is the one that counts."""


@dataclass(frozen=True, slots=True)
class Warmer:
    """Runs a model without anybody waiting for it.

    Attributes:
        backend: The device.
        batches: Numbers of pictures that share a call.
        painter: Does what comes beside steps.
        scratch: Learns what memory networks take.
        most_batch: Pictures of a size, (height, width) in cells, and number of branches, that there is memory for.
    """

    backend: Backend
    batches: Sequence[int]
    painter: Callable[[Model], Painter]
    scratch: Scratch
    most_batch: Callable[[Size, int], int]

    def run(self, model: Model, size: Size) -> None:
        """Load what pictures of a size need, and time it.

        Args:
            model: Which paints.
            size: (height, width) in pixels.

        Raises:
            PlanError: The model does not paint this size.
            EngineError, BundleError: It cannot be loaded or run.
        """
        job = self._job(model, size)
        model.require(model.demand(job.request, self.batches, starts="encode" in model.bundle.manifest.graphs))
        painter = self.painter(model)
        for _ in range(2):  # the second time is the one that counts here, too
            job.text = None
            painter.begin(job)
        before: list[Floats] = []
        for index in range(len(job.tables)):
            latents: list[Floats] = []
            for batch in self.batches:
                if batch <= self.most_batch(_cells(job, index), len(job.crowds[index].branches)):
                    latents = self._stage(model, painter, job, index, batch, before)
            if not latents:
                height, width = size
                raise EngineError(
                    f"the memory of this server does not hold one picture of {width} x {height} px beside "
                    f"{model.name}'s weights, {model.bytes / 1e6:.0f} MB; raise memory_gib, or declare smaller sizes"
                )
            piece = Piece(job, 0, 0, stage=index)
            for _ in range(2):
                painter.decode(piece, latents[0])
            before = latents

    def _stage(
        self, model: Model, painter: Painter, job: Job, index: int, batch: int, latents: Sequence[Floats]
    ) -> list[Floats]:
        pieces = [_at(piece, index, latents) for piece in pieces_of(job, batch)]
        painter.enter(pieces)
        crowd = job.crowds[index]
        lane = Lane(crowd, model)
        lane.arrange(pieces, batch)
        before = resident_bytes()
        for turn in range(min(_STEPS, len(job.tables[index].rows))):
            began = self.backend.mark()
            lane.step()
            ended = self.backend.mark()
            ended.wait()
            if turn:
                model.times.note(
                    Call("step", crowd.height, crowd.width, len(crowd.branches), batch), ended.seconds_since(began)
                )
            if any(piece.crowd != crowd for piece in pieces if not piece.ends_stage):
                break
        self._learn(model, job, index, batch, before)
        found = [lane.latent(piece) for piece in pieces]
        lane.let_go()
        return found

    def _learn(self, model: Model, job: Job, index: int, batch: int, before: int | None) -> None:
        after, crowd = resident_bytes(), job.crowds[index]
        if self.backend.free_bytes() is None or before is None or after is None:
            return
        size, branches = _cells(job, index), len(crowd.branches)
        buffers = lane_bytes(model.bundle.manifest, size, branches, batch)
        self.scratch.note(max(after - before - buffers, 0), size, branches, batch)

    def _job(self, model: Model, size: Size) -> Job:
        height, width = size
        request = request_from_options(model.bundle, Options(height=height, width=width))
        asked = ImageRequest(prompt="a")
        ticket = Ticket(
            id="", asked=asked, request=request, model=model.name, notes=(), position=_nowhere, wish=_nothing
        )
        lengths = model.words.lengths(request, asked.prompt)
        tables = model.plans.tables(request.plan)
        shown = {
            feed.name: Image.new("L" if feed.read_as == "mask" else "RGB", (width, height), "white")
            for feed in model.bundle.manifest.feeds(Picture)
            if isinstance(feed, Picture)
        }
        return Job(number=0, ticket=ticket, tables=tables, lengths=lengths, text_tokens=0, conditions=shown)


def paints(model: Model, size: Size) -> bool:
    """Whether a model can paint pictures of a size, (height, width) in pixels, with its own defaults."""
    try:
        request_from_options(model.bundle, Options(height=size[0], width=size[1]))
    except PlanError:
        return False
    return True


def _at(piece: Piece, index: int, latents: Sequence[Floats]) -> Piece:
    """A picture at the beginning of a stage; one that has no latent of the stage before takes another's."""
    if index:
        piece.stage, piece.stream = index, NoiseStream(piece.seed, piece.job.plan.noise_patch)
        piece.latent = latents[piece.index % len(latents)]
    return piece


def _cells(job: Job, index: int) -> Size:
    stage = job.tables[index].stage
    return stage.height, stage.width


def _nowhere(_: Ticket) -> Queued:
    return Queued(position=0, pixels=0, seconds=None)


def _nothing(*_: object) -> None:
    pass
