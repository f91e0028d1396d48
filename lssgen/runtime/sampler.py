"""The loop: a plan's stages and steps, one engine call a step.

The loop knows no family and no solver. A step is a row of numbers for the step graph, a transition two numbers for
the transition graph; all tensors stay where they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import NonFiniteError
from lssgen.plan.table import Plan, Stage
from lssgen.ports import Array
from lssgen.runtime.noise import NoiseStream, draw_each
from lssgen.runtime.workspace import Workspace

Floats = NDArray[np.float32]
OnStep = Callable[[int, int, int], None]
"""Called after every step with the stage's index, the step's index in it, and how many steps the stage has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The picture that a run starts from, and what of it stays.

    Attributes:
        latents: (C, h, w) of every stage, encoded at the stage's size.
        kept: (h, w) of every stage: 1 where the picture stays, 0 where it may change.
    """

    latents: tuple[Floats, ...]
    kept: tuple[Floats, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures that are painted at the same time.

    Attributes:
        seeds: One a picture.
        text: (batch, ...) conditioning, by branch and port.
        guidance_scale: For networks that take the scale itself as an input.
        guidance_rescale: phi of guidance rescale, in [0, 1]; 0 is off.
        origin: None: from noise alone.
        noise: (batch, C, h, w) that every stage begins with, smallest first; empty: drawn from the seeds.
    """

    seeds: tuple[int, ...]
    text: Mapping[str, Mapping[str, Array]]
    guidance_scale: float
    guidance_rescale: float = 0.0
    origin: Origin | None = None
    noise: tuple[Floats, ...] = ()


@dataclass(slots=True, kw_only=True)
class StageTimes:
    """Seconds of one stage.

    Attributes:
        height_px, width_px: Picture size of the stage.
        entry: Drawing noise, and the transition from the stage before.
        steps: One number a step. Where the backend runs ahead of the host, a step's time is that of its launch.
        total: From the stage's beginning until its last latent was read back.
    """

    height_px: int
    width_px: int
    entry: float = 0.0
    steps: list[float] = field(default_factory=list[float])
    total: float = 0.0


def sample(
    workspace: Workspace, plan: Plan, batch: Batch, *, history: int, on_step: OnStep
) -> tuple[Floats, list[StageTimes]]:
    """Run a whole plan.

    Args:
        workspace: Its geometry is that of the plan and the batch.
        plan: What to do.
        batch: What to paint.
        history: Estimates that the bundle's step graph carries.
        on_step: Told about every step that is done. May raise to stop the run.

    Returns:
        (batch, C, h, w) float32 final latents in the model's own space, and the time every stage took.

    Raises:
        NonFiniteError: A latent is not finite; says after which step of which stage.
        EngineError: A graph cannot be bound or fails.
    """
    try:
        return _Run(workspace, plan, batch, history, on_step).stages(look=False)
    except NonFiniteError:
        # Looking at every latent costs a wait and a copy a step, so it is done only here: the same run once more.
        _Run(workspace, plan, batch, history, no_one).stages(look=True)
        raise


class _Run:
    def __init__(self, workspace: Workspace, plan: Plan, batch: Batch, history: int, on_step: OnStep) -> None:
        self._space = workspace
        self._plan = plan
        self._history = history
        self._on_step = on_step
        self._origin = batch.origin
        self._noise = batch.noise
        self._streams = [NoiseStream(seed) for seed in batch.seeds]
        for branches in {tuple(b for b, _ in step.guidance) for stage in plan.stages for step in stage.steps}:
            workspace.write_text(branches, batch.text)
        workspace.guidance.write(np.full(len(batch.seeds), batch.guidance_scale, np.float32))
        workspace.guidance_rescale.write(np.asarray([batch.guidance_rescale], np.float32))

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
        return latents, times

    def _enter(self, index: int, stage: Stage) -> Floats:
        """Make the stage's first latent; returns the noise in it."""
        self._space.forget(index)
        noise = self._noise[index] if self._noise else self._draw(index)
        if index == 0:
            start = 0 if self._origin is None else np.float32(stage.image) * self._origin.latents[0]
            self._space.latent(0, 0).write(np.float32(stage.noise) * noise + start)
            return noise
        self._space.noise(index).write(noise)
        if self._plan.scaling_space == "pixel":
            self._space.posterior_noise(index).write(self._draw(index))
        self._space.mix.write(np.asarray([stage.image, stage.noise], np.float32))
        self._space.transition(index, len(self._plan.stages[index - 1].steps))()
        return noise

    def _steps(self, index: int, stage: Stage, noise: Floats, clock: StageTimes, *, look: bool) -> None:
        rows = [step.row(self._history) for step in stage.steps]
        for turn, (step, row) in enumerate(zip(stage.steps, rows, strict=True)):
            began = perf_counter()
            branches = tuple(branch for branch, _ in step.guidance)
            self._space.row.write(row)
            self._space.weights(branches).write(np.asarray([weight for _, weight in step.guidance], np.float32))
            if step.noise is not None:
                self._space.noise(index).write(self._draw(index))
            self._space.step(index, turn, branches)()
            if self._origin is not None:
                self._keep(self._origin, index, turn + 1, stage.levels[turn], noise)
            if look:
                self._read(index, turn + 1)
            clock.steps.append(perf_counter() - began)
            self._on_step(index, turn, len(stage.steps))

    def _keep(self, origin: Origin, index: int, turns: int, level: tuple[float, float], noise: Floats) -> None:
        """Put the origin, as noisy as the latent is by now, back where it stays."""
        kept = origin.kept[index] == 1
        if not kept.any():
            return
        image, amount = map(np.float32, level)
        latent = self._space.latent(index, turns)
        latent.write(np.where(kept, image * origin.latents[index] + amount * noise, latent.read()))

    def _draw(self, index: int) -> Floats:
        return draw_each(self._streams, self._space.latent(index, 0).shape[1:])

    def _read(self, index: int, turns: int) -> Floats:
        latent = self._space.latent(index, turns).read()
        if np.isfinite(latent).all():
            return latent
        stage = self._plan.stages[index]
        pictures = sorted({int(picture) for picture in np.argwhere(~np.isfinite(latent))[:, 0]})
        where = f"after step {turns} of {len(stage.steps)}" if turns else "at the transition into it"
        raise NonFiniteError(
            f"stage {index + 1} of {len(self._plan.stages)} ({stage.width} x {stage.height} cells) holds NaN or "
            f"infinity {where}, in picture {', '.join(map(str, pictures))} of the batch; a network that overflows in "
            "half precision does this: export it with --precision bf16 or fp32"
        )


def no_one(stage: int, step: int, steps: int) -> None:
    """An `OnStep` that does nothing."""
    del stage, step, steps
