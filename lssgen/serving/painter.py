"""What the device does for a picture besides its steps: text, what it starts from, how stages begin, decoding."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from lssgen.manifest import Precision
from lssgen.ports import Array
from lssgen.runtime.conditions import condition_values
from lssgen.runtime.origin import origin_of
from lssgen.runtime.sampler import Floats, first_latent
from lssgen.runtime.workspace import Geometry, Workspace
from lssgen.serving.memory import fitting
from lssgen.serving.model import Model
from lssgen.serving.times import Call
from lssgen.serving.work import Job, Piece

Size = tuple[int, int]


class Painter:
    """Does it for the pictures of one model.

    Args:
        model: Ready for them.
        batches: Numbers of pictures that its engines have profiles for.
        note: Told of every call, its seconds, and the pictures in it.
        pool: Draws noise ahead.
    """

    def __init__(
        self,
        model: Model,
        batches: Sequence[int],
        note: Callable[[Model, Call, float, int], None],
        pool: Executor,
    ) -> None:
        self._pool = pool
        self._channels = model.bundle.manifest.facts.channels
        self._model = model
        self._batches = batches
        self._note = note

    @property
    def precision(self) -> Precision:
        """What the model's steps compute in."""
        return self._model.bundle.manifest.graphs["step"].precision

    def begin(self, job: Job) -> None:
        """Encode what a job's branches hear, and its pictures.

        Raises:
            EngineError, BundleError, PromptError: It cannot be done.
        """
        if job.text is not None:
            return
        began = monotonic()
        model = self._model
        loras = model.loras.heard(job.loras)
        text = model.words.heard(model.engines["text"], job.request, job.ticket.asked.prompt, job.lengths, loras)
        self._note(model, Call("text"), job.note("text", -1, began), 1)
        job.text = text
        if job.start is None and not job.conditions:
            return
        began = monotonic()
        sizes = tuple((stage.height, stage.width) for stage in job.plan.stages)
        space = self._space(job, sizes, 1)
        job.origin = origin_of(space, job.plan, job.start) if job.start else None
        job.values = condition_values(space, job.plan, job.conditions, job.start)
        seconds = job.note("encode", -1, began)
        self._note(model, Call("encode", *sizes[-1]), seconds / len(sizes), 1)

    def enter(self, pieces: Sequence[Piece]) -> None:
        """Make the latents that pictures begin their stage with; those that have theirs are left alone.

        Raises:
            EngineError: The graph fails.
        """
        by_way: dict[str, list[Piece]] = defaultdict(list)
        for piece in pieces:
            if not piece.entered:
                by_way[piece.job.plan.scaling_space if piece.stage else ""].append(piece)
        for space, several in by_way.items():
            if not space:
                for piece in several:
                    self._begin_first(piece)
            else:
                most = self._batches[-1]
                for first in range(0, len(several), most):
                    self._enlarge(several[first : first + most])
        for piece in pieces:
            piece.stage_began = piece.stage_began or monotonic()

    def decode(self, piece: Piece, latent: Floats) -> NDArray[np.uint8]:
        """(height, width, 3) picture of a latent of the piece's stage.

        Raises:
            EngineError: The graph fails.
        """
        began = monotonic()
        stage = piece.table.stage
        size = (stage.height, stage.width)
        pixels = self._space(piece.job, (size,), 1).decode(0, latent)
        self._note(self._model, Call("decode", *size), monotonic() - began, 1)
        return pixels

    def _begin_first(self, piece: Piece) -> None:
        stage = piece.table.stage
        noise = piece.noise_of((self._channels, stage.height, stage.width))
        self._entered(piece, noise, first_latent(stage, noise, piece.job.origin))

    def _enlarge(self, pieces: Sequence[Piece]) -> None:
        """The transition, for pictures that come from one size and go to one."""
        began = monotonic()
        first = pieces[0]
        batch = fitting(len(pieces), self._batches)
        stages = [first.job.tables[index].stage for index in (first.stage - 1, first.stage)]
        space = self._space(first.job, tuple((stage.height, stage.width) for stage in stages), batch)
        noises = [piece.noise_of(space.latent(1, 0).shape[1:]) for piece in pieces]
        space.noise(1).write(_filled(noises, batch))
        if space.draws_posterior:
            space.noise(1, "posterior").write(_filled([self._draw(piece, space) for piece in pieces], batch))
        space.latent(0, 0).write(_filled([_latent(piece) for piece in pieces], batch))
        space.transition(
            1, 0, _filled([np.asarray(space.mix(piece.table.stage), np.float32) for piece in pieces], batch)
        )()
        enlarged = space.latent(1, 0).read()
        for piece, noise, latent in zip(pieces, noises, enlarged, strict=False):
            self._entered(piece, noise, latent.copy())
            piece.job.note("transition", piece.index, began, size=piece.size_px)
        call = Call("transition", stages[1].height, stages[1].width)
        self._note(self._model, call, (monotonic() - began) / len(pieces), len(pieces))

    def _entered(self, piece: Piece, noise: Floats, latent: Floats) -> None:
        stage, origin = piece.table.stage, piece.job.origin
        if origin is not None and origin.keeps(piece.stage):
            latent = origin.put_back(piece.stage, (stage.image, stage.noise), noise, latent)
        piece.noise, piece.latent, piece.entered = noise, latent, True
        following = piece.job.tables[piece.stage + 1 : piece.stage + 2]
        if following and not any(piece.table.draws):
            piece.draw_ahead(piece.stage + 1, self._channels, self._pool)

    def _draw(self, piece: Piece, space: Workspace) -> Floats:
        assert piece.stream is not None, "a picture that has ended a stage has its random numbers"
        return piece.stream.draw(space.latent(1, 0).shape[1:])

    def _space(self, job: Job, sizes: tuple[Size, ...], batch: int) -> Workspace:
        assert job.text is not None, "a job is begun before its pictures are touched"
        text = tuple((port, value.shape) for port, value in job.text["positive"].items())
        return self._model.workspace(
            Geometry(sizes=sizes, batch=batch, text=text, scaling_space=job.plan.scaling_space, told=job.told)
        )


def _latent(piece: Piece) -> Floats:
    assert piece.latent is not None, "a picture that has ended a stage has its latent"
    return piece.latent


def _filled(arrays: Sequence[Floats], batch: int) -> Array:
    """Arrays as one batch, filled up with zeros."""
    every = np.zeros((batch, *arrays[0].shape), np.float32)
    every[: len(arrays)] = np.stack(arrays)
    return every
