"""The loop: a plan's stages and steps, one engine call a step.

The loop knows no family and no solver. A step is a row of numbers for the step graph, a transition two numbers for
the transition graph; all tensors stay where they are.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from lssgen.engines.base import Mark
from lssgen.errors import NonFiniteError
from lssgen.manifest import Picture, Precision
from lssgen.plan.table import Plan, Stage, Step
from lssgen.ports import Array
from lssgen.runtime.noise import Field, NoiseStream, StageNoise, draw_each
from lssgen.runtime.workspace import Branches, Workspace

Floats = NDArray[np.float32]


_ADVICE: Mapping[Precision, str] = {
    "fp16": "a network that overflows in fp16 does this: export it with --precision bf16 or fp32",
    "bf16": "a network that overflows in half precision does this: export it with --precision fp32",
    "fp32": "a checkpoint whose weights hold such numbers does this, or guidance far from the usual",
}
"""Advice about a latent that is not finite, by the precision of the step; damaged files have been ruled out."""


def _silent(*_: object) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """Who hears what a run does.

    Attributes:
        step: Called when a step is done, with the indices of its stage and of itself, and the number of steps.
        stage: Called when a stage that is not the last is done, with its index and its (batch, C, h, w) latents; where
            it ends with a noisy state, with what that moved towards.
    """

    step: Callable[[int, int, int], None] = _silent
    stage: Callable[[int, Floats], None] = _silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The picture that a run starts from, and what of it stays.

    Attributes:
        latents: (C, h, w) of every stage, encoded at the stage's size.
        kept: (h, w) of every stage: 1 where the picture stays, 0 where it may change.
    """

    latents: tuple[Floats, ...]
    kept: tuple[Floats, ...]

    def keeps(self, stage: int) -> bool:
        """Whether anything stays at a stage."""
        return bool((self.kept[stage] == 1).any())

    def put_back(self, stage: int, level: tuple[float, float], noise: Floats, latent: Floats) -> Floats:
        """A stage's latent, with the origin where it stays, as noisy as the latent is by now.

        Args:
            stage: Index of the stage.
            level: (image, noise) weights in the latent.
            noise: What the stage began with, shaped like the latent.
            latent: (..., C, h, w).
        """
        image, amount = map(np.float32, level)
        return np.where(self.kept[stage] == 1, image * self.latents[stage] + amount * noise, latent)


def first_latent(stage: Stage, noise: Floats, origin: Origin | None) -> Floats:
    """The latent that a run's first stage begins with, from noise of its shape."""
    start = 0 if origin is None else np.float32(stage.image) * origin.latents[0]
    return np.float32(stage.noise) * noise + start


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures that are painted at the same time.

    Attributes:
        seeds: One a picture.
        text: (batch, ...) conditioning, by branch and port.
        guidance_scale: Scale for networks that take it as an input.
        guidance_rescale: phi of guidance rescale, in [0, 1]; 0 is off.
        pictures: Values of the step's picture feeds, one a stage.
        references: Tokens of reference pictures and their places, see `Workspace.write_references`; None: there are
            none.
        origin: None: from noise alone.
        noise: (batch, C, h, w) that every stage begins with, smallest first; empty: drawn from the seeds.
        field: Source of the noise that stages begin with.
        loras: (batch, ranks) strengths of what is in the slots for LoRAs, one a stage; empty: there are no slots.
    """

    seeds: tuple[int, ...]
    text: Mapping[str, Mapping[str, Array]]
    guidance_scale: float
    guidance_rescale: float = 0.0
    pictures: Mapping[Picture, tuple[Array, ...]] = field(default_factory=dict[Picture, tuple[Array, ...]])
    references: tuple[Array, Array] | None = None
    origin: Origin | None = None
    noise: tuple[Floats, ...] = ()
    field: Field = "stage"
    loras: tuple[Floats, ...] = ()


@dataclass(slots=True, kw_only=True)
class StageTimes:
    """Seconds of one stage.

    Attributes:
        height_px, width_px: Picture size of the stage.
        entry: Drawing noise, and the transition from the stage before.
        steps: One number a step, between the marks of its beginning and its end on the device.
        total: Time from the stage's beginning until its last latent was read back.
    """

    height_px: int
    width_px: int
    entry: float = 0.0
    steps: list[float] = field(default_factory=list[float])
    total: float = 0.0


def sample(
    workspace: Workspace, plan: Plan, batch: Batch, *, history: int, hear: Listeners
) -> tuple[Floats, list[StageTimes]]:
    """Run a whole plan.

    Args:
        workspace: Its geometry is that of the plan and the batch.
        plan: What to do.
        batch: What to paint.
        history: Estimates that the bundle's step graph carries.
        hear: Told what is done. May raise to stop the run.

    Returns:
        (batch, C, h, w) float32 final latents in the model's own space, and the time every stage took.

    Raises:
        NonFiniteError: A latent is not finite; says after which step of which stage.
        EngineError: A graph cannot be bound or fails.
    """
    try:
        return _Run(workspace, plan, batch, history, hear).stages(look=False)
    except NonFiniteError:
        # Looking at every latent costs a wait and a copy a step, so it is done only here: the same run once more.
        _Run(workspace, plan, batch, history, Listeners()).stages(look=True)
        raise


class _Pace:
    """Keeps the host at most one step ahead of the device, and tells of a step when it is done and not before."""

    def __init__(self, workspace: Workspace, clock: StageTimes, tell: Callable[[int], None]) -> None:
        self._space = workspace
        self._clock = clock
        self._tell = tell
        self._last = workspace.mark()
        self._turn = 0
        self._queued: deque[Mark] = deque()

    def queued(self) -> None:
        """Another step is on its way."""
        # One step ahead keeps the device busy while the host writes the next row; more would delay what the user is
        # told, and a stop.
        self._queued.append(self._space.mark())
        self._settle(1)

    def end(self) -> None:
        """Wait for what is still on its way."""
        self._settle(0)

    def _settle(self, ahead: int) -> None:
        while self._queued and (len(self._queued) > ahead or self._queued[0].reached()):
            mark = self._queued.popleft()
            mark.wait()
            self._clock.steps.append(mark.seconds_since(self._last))
            self._last = mark
            self._turn += 1
            self._tell(self._turn - 1)


class _Run:
    def __init__(self, workspace: Workspace, plan: Plan, batch: Batch, history: int, hear: Listeners) -> None:
        self._space = workspace
        self._plan = plan
        self._history = history
        self._hear = hear
        self._origin = batch.origin
        self._noise = batch.noise
        # New streams for every run: the second one, that looks for a NaN, must draw the same numbers.
        self._streams = [NoiseStream(seed, plan.noise_patch) for seed in batch.seeds]
        whole = (workspace.latent(0, 0).shape[1], plan.stages[-1].height, plan.stages[-1].width)
        self._entries = [StageNoise(stream, batch.field, whole) for stream in self._streams]
        self._pictures = batch.pictures
        if batch.references is not None:
            workspace.write_references(*batch.references)
        self._loras = batch.loras
        # Skip-layer guidance changes the branches within a run; each set has its own stacked text, written once.
        for branches in {_branches(step) for stage in plan.stages for step in stage.steps}:
            workspace.write_text(branches, batch.text)
        every = np.ones(len(batch.seeds), np.float32)
        workspace.write_guidance(batch.guidance_scale * every, batch.guidance_rescale * every)

    def stages(self, *, look: bool) -> tuple[Floats, list[StageTimes]]:
        """All stages; with `look`, every latent is checked, else the last of each stage."""
        times: list[StageTimes] = []
        latents = np.empty(0, np.float32)
        for index, stage in enumerate(self._plan.stages):
            cell = self._plan.cell_px
            clock = StageTimes(height_px=stage.height * cell, width_px=stage.width * cell)
            began = perf_counter()
            noise = self._enter(index, stage)
            if self._origin is not None:
                self._keep(self._origin, index, 0, (stage.image, stage.noise), noise)
            clock.entry = perf_counter() - began
            if look:
                self._read(index, 0)
            self._steps(index, stage, noise, clock, look=look)
            latents = self._read(index, len(stage.steps))
            clock.total = perf_counter() - began
            times.append(clock)
            if index < len(self._plan.stages) - 1:
                self._hear.stage(index, self._shown(index, latents))
        return latents, times

    def _shown(self, index: int, latents: Floats) -> Floats:
        """Latents to show of a stage that has ended: its own, or where these are noisy, what they moved towards."""
        if not self._plan.keeps_state(index):
            return latents
        stage = self._plan.stages[index]
        last = len(stage.steps) - 1
        drawn = self._space.noise(index).read() if stage.steps[last].noise else None
        found = stage.estimate(last, self._space.latent(index, last).read(), latents, drawn)
        return latents if found is None else found

    def _enter(self, index: int, stage: Stage) -> Floats:
        """Make the stage's first latent; returns the noise in it."""
        self._space.begin_stage(index, _branches(stage.steps[0]))
        for feed, values in self._pictures.items():
            self._space.write_picture(index, feed, values[index])
        if self._loras:
            self._space.write_loras(self._loras[index])
        noise = self._noise[index] if self._noise else self._entry(index)
        if index == 0:
            self._space.latent(0, 0).write(first_latent(stage, noise, self._origin))
            return noise
        self._space.noise(index).write(noise)
        # After the stage's own noise: the published order, in which one generator draws for the whole run.
        if self._space.draws_posterior:
            self._space.noise(index, "posterior").write(self._draw(index))
        mix = self._each(self._space.mix(stage))
        self._space.transition(index, len(self._plan.stages[index - 1].steps), mix)()
        return noise

    def _steps(self, index: int, stage: Stage, noise: Floats, clock: StageTimes, *, look: bool) -> None:
        pace = _Pace(self._space, clock, lambda turn: self._hear.step(index, turn, len(stage.steps)))
        for turn, step in enumerate(stage.steps):
            branches = _branches(step)
            self._space.write_row(self._each(step.row(self._history)))
            self._space.write_weights(branches, self._each([weight for _, weight in step.guidance]).T)
            if step.noise is not None:
                self._space.noise(index).write(self._draw(index))
            self._space.step(index, turn, branches)()
            if self._origin is not None:
                self._keep(self._origin, index, turn + 1, stage.levels[turn], noise)
            if look:
                self._read(index, turn + 1)
            # Only now: work that `_keep` and `_read` wait for is part of the step's time.
            pace.queued()
        pace.end()

    def _each(self, numbers: Sequence[float] | Floats) -> Floats:
        """The same numbers for every picture: (n,) -> (batch, n)."""
        return np.tile(np.asarray(numbers, np.float32), (len(self._streams), 1))

    def _keep(self, origin: Origin, index: int, turns: int, level: tuple[float, float], noise: Floats) -> None:
        """Put the origin, as noisy as the latent is by now, back where it stays."""
        # On the host, with a wait for every step: inpainting is rare, and a graph for it would be one more to build.
        if origin.keeps(index):
            latent = self._space.latent(index, turns)
            latent.write(origin.put_back(index, level, noise, latent.read()))

    def _entry(self, index: int) -> Floats:
        shape, below = self._space.latent(index, 0).shape[1:], self._plan.kept_size(index)
        return np.stack([entry.draw(shape, below) for entry in self._entries])

    def _draw(self, index: int) -> Floats:
        return draw_each(self._streams, self._space.latent(index, 0).shape[1:])

    def _read(self, index: int, turns: int) -> Floats:
        latent = self._space.latent(index, turns).read()
        if np.isfinite(latent).all():
            return latent
        pictures = sorted({int(picture) for picture in np.argwhere(~np.isfinite(latent))[:, 0]})
        of = f"picture {', '.join(map(str, pictures))} of the batch"
        raise nonfinite(self._plan, index, turns, of, self._space.precision)


def nonfinite(plan: Plan, index: int, turns: int, pictures: str, precision: Precision) -> NonFiniteError:
    """The error for a latent that is not finite.

    Args:
        plan: The run.
        index: Stage where it was seen.
        turns: Steps of the stage that were done.
        pictures: Words for whose latent it is.
        precision: What the step computes in.
    """
    stage = plan.stages[index]
    where = f"after step {turns} of {len(stage.steps)}" if turns else "at the transition into it"
    return NonFiniteError(
        f"stage {index + 1} of {len(plan.stages)} ({stage.width} x {stage.height} cells) holds NaN or "
        f"infinity {where}, in {pictures}; {_ADVICE[precision]}"
    )


def _branches(step: Step) -> Branches:
    return tuple(branch for branch, _ in step.guidance)
