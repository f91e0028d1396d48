"""What is painted: a job for every request, and a piece for each of its pictures, wherever it is on its way."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from time import monotonic
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lssgen.engines.demand import Demand
from lssgen.manifest import Picture as PictureFeed
from lssgen.plan import Plan, Stage
from lssgen.ports import Array
from lssgen.runtime.conditioning import Conditioning
from lssgen.runtime.loras import Adapter
from lssgen.runtime.noise import NoiseStream, StageNoise
from lssgen.runtime.options import Request
from lssgen.runtime.origin import Start
from lssgen.runtime.results import Picture
from lssgen.runtime.sampler import Floats, Origin
from lssgen.runtime.text import Lengths
from lssgen.runtime.workspace import Branches, ToldSizes
from lssgen.serving.api import Span
from lssgen.serving.ticket import Ticket


@dataclass(frozen=True, slots=True)
class Crowd:
    """What must be equal for pictures to share engine calls, whatever their steps, schedules, seeds and guidance.

    Attributes:
        model: Name of the model.
        height, width: Latent size in cells.
        branches: Guidance branches of the step.
        lengths: Tokens that prompts fill up to, one number a tokenizer.
        told: Sizes that a network is told.
    """

    model: str
    height: int
    width: int
    branches: Branches
    lengths: Lengths
    told: ToldSizes


@dataclass(frozen=True, slots=True)
class StageTable:
    """A stage as its lane takes it, made once for all pictures of a job.

    Attributes:
        stage: The stage.
        rows: (steps, 7 + K) float32.
        weights: (branches,) float32 of every step.
        branches: Guidance branches of every step.
        draws: True for steps that draw noise, one entry a step.
    """

    stage: Stage
    rows: NDArray[np.float32]
    weights: tuple[NDArray[np.float32], ...]
    branches: tuple[Branches, ...]
    draws: tuple[bool, ...]

    @classmethod
    def of(cls, stage: Stage, history: int) -> "StageTable":
        return cls(
            stage=stage,
            rows=np.stack([step.row(history) for step in stage.steps]),
            weights=tuple(np.asarray([weight for _, weight in step.guidance], np.float32) for step in stage.steps),
            branches=tuple(tuple(branch for branch, _ in step.guidance) for step in stage.steps),
            draws=tuple(step.noise is not None for step in stage.steps),
        )


class Job:
    """A request that was taken.

    Attributes:
        number: Order of arrival.
        ticket: Handle that its caller holds.
        request, plan: The run.
        tables: Its stages as lanes take them.
        text_tokens, cells_per_token: Tokens of its prompts, and latent cells of a picture's token, for `Usage`.
        start: Picture that it starts from.
        deadline: Moment by which it must be done, on the clock of `time.monotonic`; infinity: none.
        pieces: Its pictures.
        total: Steps that it takes.
        painted: Part of its run that it paints.
        demand: Needs of the engines; None until somebody asks.
        draft: Word for its drafts; "" where it makes none.
        loras: LoRAs that it is painted with, in its model's slots.
        text: Conditioning that its branches hear; None until it is begun, as the next two.
        origin, values: Start of its pictures, and the pictures that condition them.
    """

    def __init__(
        self,
        *,
        number: int,
        ticket: Ticket,
        tables: tuple[StageTable, ...],
        lengths: Lengths,
        text_tokens: int,
        cells_per_token: int = 1,
        start: Start | None = None,
        conditions: Mapping[str, Image.Image] = MappingProxyType({}),
        deadline: float = inf,
        draft: str = "",
        loras: tuple[Adapter, ...] = (),
    ) -> None:
        self.number = number
        self.ticket = ticket
        self.request: Request = ticket.request
        self.plan: Plan = ticket.request.plan
        self.tables = tables
        self.lengths = lengths
        self.text_tokens = text_tokens
        self.cells_per_token = cells_per_token
        self.start = start
        self.conditions = conditions
        self.deadline = deadline
        self.draft = draft
        self.loras = loras
        self.text: Conditioning | None = None
        self.origin: Origin | None = None
        self.values: Mapping[PictureFeed, tuple[Array, ...]] = {}
        self.demand: Demand | None = None
        self.pieces: tuple[Piece, ...] = ()
        self.total = 0
        self.painted = self.plan
        self.spans: list[Span] = []
        self.submitted = monotonic()
        self.begun = False
        self.steps = 0
        self.passes = 0
        self.device_seconds = 0.0
        self.pixels = 0

    def continued(self, *, number: int, ticket: Ticket, deadline: float) -> "Job":
        """A job that goes on with what this one has left; its pieces are for the caller to choose."""
        job = Job(
            number=number,
            ticket=ticket,
            tables=self.tables,
            lengths=self.lengths,
            text_tokens=self.text_tokens,
            cells_per_token=self.cells_per_token,
            start=self.start,
            conditions=self.conditions,
            deadline=deadline,
            loras=self.loras,
        )
        job.text, job.origin, job.values = self.text, self.origin, self.values
        return job

    @cached_property
    def stages(self) -> int:
        """Stages that it paints."""
        return 1 if self.draft else len(self.plan.stages)

    def has(self, pieces: tuple["Piece", ...]) -> "Job":
        """Give it its pictures; nothing of them is done that is not done for others."""
        self.pieces = pieces
        self.total = sum(piece.steps_ahead for piece in pieces)
        first = min((piece.stage for piece in pieces), default=0)
        self.painted = replace(self.plan, stages=self.plan.stages[first : self.stages])
        return self

    @cached_property
    def crowds(self) -> tuple[Crowd, ...]:
        """Where each stage is painted, by the branches of its first step."""
        return tuple(self.crowd(index, 0) for index in range(len(self.tables)))

    @cached_property
    def told(self) -> ToldSizes:
        request = self.request
        return ToldSizes(original=request.original_size, target=request.target_size, crop=request.crops_coords_top_left)

    def crowd(self, index: int, turn: int) -> Crowd:
        """Who shares the step number `turn` of a stage."""
        table = self.tables[index]
        return Crowd(
            self.ticket.model, table.stage.height, table.stage.width, table.branches[turn], self.lengths, self.told
        )

    def shows(self, piece: "Piece") -> bool:
        """Whether somebody wants to see what a picture will be, after the step that it has just taken."""
        every = self.ticket.asked.estimate_every
        return piece.wished or bool(every and piece.turn % every == 0)

    def since(self, moment: float) -> float:
        """Seconds from `submit` to a moment."""
        return moment - self.submitted

    def note(self, name: str, index: int, began: float, *, size: tuple[int, int] = (0, 0), steps: int = 0) -> float:
        """Remember a span that ends now; its seconds."""
        now = monotonic()
        height, width = size
        self.spans.append(
            Span(
                name=name,  # pyright: ignore[reportArgumentType]
                index=index,
                began_s=self.since(began),
                ended_s=self.since(now),
                height_px=height,
                width_px=width,
                steps=steps,
            )
        )
        return now - began

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that are finished, in the order of their numbers."""
        return tuple(piece.picture for piece in self.pieces if piece.picture is not None)


@dataclass(slots=True, eq=False)
class Piece:
    """One picture on its way.

    Attributes:
        job: Request that it belongs to.
        index: Its number there.
        seed: Its seed.
        stage, turn: Step that it takes next.
        stream: Its random numbers.
        ahead: Noise that the next stage to be entered begins with, where it is drawn already or being drawn.
        latent: (C, h, w) that it enters the stage with, or that the stage before left, see `entered`.
        entered: True where `latent` is of this stage's size already.
        states: Values of the step's states, where it was taken off the device in the middle of a stage.
        entries: Noise that its stages begin with.
        noise: (C, h, w) that the stage began with.
        drawn: (C, h, w) that its last step drew.
        wished: True where somebody wants to see what it will be, once.
        passed: True once it had to make way; it does not have to again.
        stage_began: Moment at which the stage's first step was asked for.
        picture: Set at the end.
    """

    job: Job
    index: int
    seed: int
    stage: int = 0
    turn: int = 0
    stream: NoiseStream | None = None
    ahead: Future[Floats] | None = None
    latent: Floats | None = None
    entered: bool = False
    states: dict[str, Array] | None = None
    entries: StageNoise | None = None
    noise: Floats | None = None
    drawn: Floats | None = None
    wished: bool = False
    passed: bool = False
    stage_began: float = 0.0
    picture: Picture | None = None

    @property
    def table(self) -> StageTable:
        return self.job.tables[self.stage]

    @property
    def crowd(self) -> Crowd:
        return self.job.crowds[self.stage] if self.turn == 0 else self.job.crowd(self.stage, self.turn)

    @property
    def ends_stage(self) -> bool:
        return self.turn == len(self.table.stage.steps)

    @property
    def changes(self) -> bool:
        """Whether its next step has other branches than the one before, in the same stage."""
        branches, turn = self.table.branches, self.turn
        return 0 < turn < len(branches) and branches[turn] != branches[turn - 1]

    @property
    def steps_ahead(self) -> int:
        """Steps that it still takes."""
        stages = self.job.tables[self.stage : self.job.stages]
        return sum(len(table.stage.steps) for table in stages) - self.turn

    @property
    def rank(self) -> tuple[float, int, int]:
        """Its place among others: the earliest deadline, then the oldest request."""
        return self.job.deadline, self.job.number, self.index

    @property
    def size_px(self) -> tuple[int, int]:
        """(height, width) of the stage's picture."""
        stage, cell = self.table.stage, self.job.plan.cell_px
        return stage.height * cell, stage.width * cell

    @property
    def host_bytes(self) -> int:
        """Memory of what it keeps while it waits."""
        kept = (self.latent, self.noise, self.drawn, *(self.states or {}).values())
        field = 0 if self.entries is None else self.entries.nbytes
        return field + sum(array.nbytes for array in kept if array is not None)

    def draw_ahead(self, stage: int, channels: int, pool: Executor) -> None:
        """Let others draw the noise of a stage that nothing is drawn before: a large picture's takes milliseconds, in
        which the device would wait.

        Args:
            stage: The next to be entered.
            channels: Of the latent.
            pool: Draws.
        """
        if stage < self.job.stages:
            shape = self.job.tables[stage].stage
            size, below = (channels, shape.height, shape.width), self.job.plan.kept_size(stage)
            with suppress(RuntimeError):  # the program ends, and so has whoever draws; it is drawn when it is needed
                self.ahead = pool.submit(self._entries(channels).draw, size, below)

    def noise_of(self, shape: Sequence[int]) -> Floats:
        """(C, h, w) noise that the stage begins with."""
        ahead, self.ahead = self.ahead, None
        if ahead is not None:
            return ahead.result()
        return self._entries(shape[0]).draw(shape, self.job.plan.kept_size(self.stage))

    def _entries(self, channels: int) -> StageNoise:
        self.stream = self.stream or NoiseStream(self.seed, self.job.plan.noise_patch)
        if self.entries is None:
            last = self.job.tables[-1].stage
            whole = (channels, last.height, last.width)
            self.entries = StageNoise(self.stream, self.job.request.noise_field, whole)
        return self.entries

    def next_stage(self, latent: Floats) -> None:
        """Go on to the next stage from the clean latent of this one."""
        self.stage += 1
        self.turn = 0
        self.latent, self.entered = latent, False
        self.states = self.noise = self.drawn = None

    def copy_for(self, job: Job, index: int) -> "Piece":
        """The same picture for another request, to go on independently."""
        # Together: the noise of stages to come is drawn from the same stream.
        stream, entries = deepcopy((self.stream, self.entries))
        return Piece(
            job=job,
            index=index,
            seed=self.seed,
            stage=self.stage,
            turn=self.turn,
            stream=stream,
            entries=entries,
            latent=self.latent,
        )


def pieces_of(job: Job, count: int) -> tuple[Piece, ...]:
    """The pictures of a new request."""
    return tuple(Piece(job, index, job.request.seed + index) for index in range(count))


def pixels_of(plan: Plan, pictures: int | Sequence[object]) -> int:
    """Pixels of finished pictures."""
    count = pictures if isinstance(pictures, int) else len(pictures)
    return count * plan.height_px * plan.width_px
