"""The table of a run: stages, and in each the steps as plain numbers.

A step is one affine recurrence, whatever the solver. With the network's output F after guidance, and the
estimates h_1, h_2, ... that earlier steps of the same stage left behind (newest first):

    u  = c_in * x                                   what the network sees
    h0 = h_x * x + h_f * F                          the estimate this step remembers
    x' = keep * x + sum_k blend[k] * h_k + noise * e

Everything is computed in float64 and handed to the engine as one float32 row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.facts import ScalingSpace
from lssgen.plan.transitions import TRANSITIONS, MixValue

ROW = ("label", "c_in", "h_x", "h_f", "keep", "noise", "blend")
"""Columns of a step's row; `blend` stands for 1 + history columns, newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One network evaluation and the move it makes.

    Attributes:
        label: Number that tells the network the noise (the timestep, in the network's own units).
        sigma: Noise level of x, in the schedule's own terms: 1 is pure noise for flow models.
        next_sigma: Noise level of x'.
        keep: Weight of x in x'.
        blend: Weights of the estimates in x', newest first; `blend[0]` weighs this step's own.
        c_in: Factor on x before the network.
        h_x, h_f: Weights of x and of the network's output in the estimate.
        noise: Weight of fresh noise in x'. None: the solver draws none here. 0: it draws, and does not use it,
            which still moves the random stream.
        guidance: (branch, weight) of every branch that is evaluated, in batch order. F is the weighted sum.
            Branches are "negative", "positive" and "skip" (the positive prompt with layers left out).
        control: Scale of what the control picture adds, 0 where it is off; then, for networks that tell kinds of
            control picture apart, a number for each kind: 1 for the picture's, else 0. Empty: there is no ControlNet.
        cached: Noise levels of the cached steps that the move takes along, in order: steps of the schedule whose
            estimate is extrapolated and not evaluated, see `lssgen.plan.caching`.

    Raises:
        PlanError: A number is not finite, or nothing is evaluated.
    """

    label: float
    sigma: float
    next_sigma: float
    keep: float
    blend: tuple[float, ...]
    c_in: float = 1.0
    h_x: float = 0.0
    h_f: float = 1.0
    noise: float | None = None
    guidance: tuple[tuple[str, float], ...] = (("positive", 1.0),)
    control: tuple[float, ...] = ()
    cached: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.label, self.sigma, self.next_sigma, self.c_in, self.h_x, self.h_f, self.keep, *self.blend)
        numbers += self.control
        if not all(isfinite(number) for number in (*numbers, self.noise or 0.0, *(w for _, w in self.guidance))):
            raise PlanError(f"step at sigma {self.sigma:.6g} holds a number that is not finite: {self}")
        if not self.blend or not self.guidance:
            raise PlanError(f"step at sigma {self.sigma:.6g} evaluates nothing: blend and guidance need an entry each")

    def row(self, history: int) -> NDArray[np.float32]:
        """The step as the engine takes it: (7 + history + len(control),) float32, columns as `ROW`, then `control`."""
        blend = (*self.blend, *(0.0,) * (1 + history - len(self.blend)))
        if len(blend) != 1 + history:
            raise PlanError(
                f"this step blends {len(self.blend)} estimates, but the exported step graph keeps {1 + history}; "
                "choose a solver with a shorter memory (docs/schedulers.md), turn cached_steps off, or export again"
            )
        # None and 0 are one to the graph; they differ in whether the runtime draws.
        numbers = (self.label, self.c_in, self.h_x, self.h_f, self.keep, self.noise or 0.0, *blend, *self.control)
        return np.asarray(numbers, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One resolution of the run, and every step taken there.

    The stage starts from x = image * z + noise * e, where z is the clean latent of the stage before, brought to
    this size, and e is fresh Gaussian noise. The first stage's z is the picture that the run starts from; where there
    is none, its `image` is 0. Where the noisy state of the stage before is kept, part of e is the noise in it.

    Attributes:
        height, width: Latent size in cells.
        steps: Steps in order, down to a clean latent or, in a stage that is left early, to what is taken over.
        schedule_steps: Length of the stage's full schedule, before its noisiest part was cut off.
        image, noise: Weights of the picture and of the noise in the stage's first latent.
        gain, low_noise: Factor on the noisy state of the stage before, where a transition keeps it, and weight of fresh
            noise in the frequencies that it has. Else image, and 0.
        levels: (image, noise) weights in the latent that each step leaves; inpainting mixes what it keeps at these.

    Raises:
        PlanError: No steps, or a step that would use an estimate from before the stage's first step.
    """

    height: int
    width: int
    steps: tuple[Step, ...]
    schedule_steps: int
    image: float = 0.0
    noise: float = 1.0
    gain: float = 0.0
    low_noise: float = 0.0
    levels: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not self.steps:
            raise PlanError(f"stage of {self.width} x {self.height} cells has no steps")
        for index, step in enumerate(self.steps):
            if len(step.blend) > 1 + index:
                raise PlanError(
                    f"step {index} of a {self.width} x {self.height} stage blends {len(step.blend)} estimates, but "
                    f"only {1 + index} exist by then: history does not cross stages"
                )

    def mix(self, values: Sequence[MixValue]) -> tuple[float, ...]:
        """Weights of the transition into it, by their names."""
        return tuple(getattr(self, value) for value in values)

    def estimate(
        self, turn: int, before: NDArray[np.float32], after: NDArray[np.float32], fresh: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """The clean latent that a step moved towards; None where it cannot be told.

        Before the step x = a z + s e, after it x' = b z + t e, but for fresh noise: two equations for z.

        Args:
            turn: Number of the step.
            before, after: The latent.
            fresh: Noise that the step drew; None: none.
        """
        a, s = self.levels[turn - 1] if turn else (self.image, self.noise)
        b, t = self.levels[turn]
        drawn = self.steps[turn].noise or 0.0
        t = max(t * t - drawn * drawn, 0.0) ** 0.5
        if abs(t * a - s * b) < 1e-6:
            return None
        left = after if fresh is None else after - np.float32(drawn) * fresh
        return ((t * before - s * left) / (t * a - s * b)).astype(np.float32)

    @property
    def history(self) -> int:
        """How many earlier estimates the stage's steps look back on."""
        return max(len(step.blend) for step in self.steps) - 1

    @property
    def cached_steps(self) -> int:
        """Steps of its schedule that are taken without an evaluation, besides `steps`."""
        return sum(len(step.cached) for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole run as numbers: nothing in it needs a tensor, an engine or a model.

    Attributes:
        stages: Stages, smallest first; each is twice as large as the one before in both axes.
        cell_px: Pixels along one side of a latent cell.
        scaling_space: Way of a latent to the next size, a name in `lssgen.plan.transitions.TRANSITIONS`.
        noise_patch: Cells along one side whose noise is drawn together, see `ModelFacts.noise_patch`.
        notes: Sentences that the user should read (a floored size, a quirk that applies).
        single_stage_passes: Network passes, guidance branches counted, of the same run in one stage at the full size
            with all steps; what `predicted_speedup` compares with.
    """

    stages: tuple[Stage, ...]
    cell_px: int
    scaling_space: ScalingSpace = "resnet"
    noise_patch: int = 1
    notes: tuple[str, ...] = field(default=())
    single_stage_passes: int = 0

    @property
    def height_px(self) -> int:
        return self.stages[-1].height * self.cell_px

    @property
    def width_px(self) -> int:
        return self.stages[-1].width * self.cell_px

    def keeps_state(self, index: int) -> bool:
        """Whether a stage ends with a noisy state, which the next one takes over."""
        return index < len(self.stages) - 1 and TRANSITIONS[self.scaling_space].takes == "state"

    def kept_size(self, index: int) -> tuple[int, int] | None:
        """(height, width) in cells of the noisy state that a stage takes over; None where it starts from a clean
        latent, or from nothing."""
        if not index or not self.keeps_state(index - 1):
            return None
        return self.stages[index - 1].height, self.stages[index - 1].width

    @property
    def evaluations(self) -> int:
        """Engine calls in the whole run, one a step."""
        return sum(len(stage.steps) for stage in self.stages)
