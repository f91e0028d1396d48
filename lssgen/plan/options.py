"""Everything a user may choose about a run, resolved: no value here is decided elsewhere."""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any, Literal, get_args

from lssgen.errors import PlanError
from lssgen.plan.facts import Defaults, ScalingSpace

SkipWindow = Literal["published", "stage", "first"]
StartRule = Literal["published", "sigma"]
Injection = Literal["label", "sigma"]
PndmStart = Literal["published", "aligned"]

MOST_STEPS = 10_000
"""A plan has a row for every step, and no model knows more than 1000 levels."""

OWN_SOLVER = "own"
"""Value of `PlanOptions.solver` that stands for the checkpoint's own scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkipLayerGuidance:
    """A third guidance branch, the positive prompt with some layers left out, during part of the run.

    Attributes:
        scale: Weight of (positive - skip).
        start, stop: The window, as shares of the steps; both ends excluded.
        window: What the shares refer to. "published": the stage's own step index against the requested number of
            steps, so that the window opens anew in every stage. "stage": the step index against the length of the
            stage's schedule. "first": as published, in the first stage only.
    """

    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2
    window: SkipWindow = "published"

    def __post_init__(self) -> None:
        if not (isfinite(self.scale) and 0 <= self.start < self.stop <= 1):
            raise PlanError(
                f"skip-layer guidance needs a finite scale and 0 <= start < stop <= 1; got scale {self.scale}, "
                f"start {self.start}, stop {self.stop}"
            )
        _one_of("the skip-layer window", self.window, get_args(SkipWindow))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What to plan. `from_defaults` fills in what the user leaves open.

    The last block holds behaviours of the published LSSGen code that can be repaired; the published one is the default.

    Attributes:
        height, width: Picture size in pixels.
        steps: Length of the full-resolution schedule (`num_inference_steps`).
        guidance_scale: 1 or less turns guidance off.
        start_sigma: Where later stages start, in (0, 1]. 1 asks for a single stage.
        min_resolution: Shortest side in pixels that a first stage may have.
        shorten: Give stages smaller than the base size fewer steps.
        base_height, base_width: Size in pixels at which a stage gets all steps.
        scaling_space: How a latent gets to the next size.
        strength: How far a run that starts from a picture goes away from it, in (0, 1]: where its first stage starts,
            in the terms of `start_sigma`. Up to `start_sigma` the picture enters at the last stage, above it at the
            first. 1 starts from pure noise.
        true_guidance_scale: Classifier-free guidance with a negative prompt, above 1, for models whose
            `guidance_scale` goes into the network or that have none (diffusers' `true_cfg_scale`).
        solver: A name out of `solver_names`, or "own" for the checkpoint's scheduler.
        eta: Share of fresh noise in every DDIM step, in [0, 1].
        skip_layers: Skip-layer guidance; None turns it off.
        sigmas: Own noise levels for flow models, falling, in (0, 1], before the schedule's shift; their number
            replaces `steps`. A stage with fewer steps takes as many levels, evenly spaced along the list.
        start_rule: "published": a threshold on the timestep for flow, a share of the steps for diffusion models.
            "sigma": the smallest level whose noise share noise / (image + noise), for data of unit size, is at least
            `start_sigma`, in every model; the stage is then noised to that level, whatever `injection` says.
        injection: Noise level a later stage is mixed at: its first timestep's "label" over 1000, or the "sigma" that
            the solver works with. They differ for CogView4 only.
        token_clamp: Treat pictures with more tokens than the schedule knows as if they had only so many
            (`max_image_seq_len`). diffusers does not, LSSGen does.
        pndm: Where a later stage cuts PNDM's list of timesteps: as "published", which leaves the sample one step
            noisier than its label from the third evaluation on, or "aligned", with the second timestep repeated.

    Raises:
        PlanError: A value outside its range.
    """

    height: int
    width: int
    steps: int
    guidance_scale: float
    start_sigma: float
    min_resolution: int
    shorten: bool
    base_height: int
    base_width: int
    scaling_space: ScalingSpace
    strength: float = 1.0
    true_guidance_scale: float = 1.0
    solver: str = OWN_SOLVER
    eta: float = 0.0
    skip_layers: SkipLayerGuidance | None = None
    sigmas: tuple[float, ...] = ()
    start_rule: StartRule = "published"
    injection: Injection = "label"
    token_clamp: bool = True
    pndm: PndmStart = "published"

    @classmethod
    def from_defaults(cls, defaults: Defaults, **given: Any) -> "PlanOptions":
        """The defaults, with what the user gave in their place. A value of None counts as not given."""
        values: dict[str, Any] = {name: getattr(defaults, name) for name in Defaults.__dataclass_fields__}
        values.update((name, value) for name, value in given.items() if value is not None)
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("height", "width", "steps", "min_resolution", "base_height", "base_width"):
            value: int = getattr(self, name)
            if value < 1:
                raise PlanError(f"{name} is {value}; it must be at least 1")
        if self.requested_steps > MOST_STEPS:
            raise PlanError(f"{self.requested_steps} steps were asked for; ask for {MOST_STEPS} at most")
        for name in ("guidance_scale", "true_guidance_scale"):
            if not isfinite(scale := getattr(self, name)):
                raise PlanError(f"{name} is {scale}; it must be a finite number")
        if not 0 < self.start_sigma <= 1:
            raise PlanError(
                f"start_sigma is {self.start_sigma:g}; it must lie above 0 and be at most 1 "
                "(published value 0.75; 1 runs a single stage)"
            )
        if not 0 < self.strength <= 1:
            raise PlanError(f"strength is {self.strength:g}; it must lie above 0 and be at most 1")
        if not 0 <= self.eta <= 1:
            raise PlanError(f"eta is {self.eta:g}; it must lie in 0 to 1")
        _one_of("scaling_space", self.scaling_space, get_args(ScalingSpace))
        _one_of("start_rule", self.start_rule, get_args(StartRule))
        _one_of("injection", self.injection, get_args(Injection))
        _one_of("pndm", self.pndm, get_args(PndmStart))
        levels = self.sigmas
        if not all(0 < s <= 1 for s in levels) or any(above <= below for above, below in pairwise(levels)):
            raise PlanError(
                f"custom sigmas must fall from level to level and lie above 0 and at most at 1; got {levels}"
            )

    @property
    def requested_steps(self) -> int:
        """Number of steps of the full schedule: of `sigmas` where they are given, else `steps`."""
        return len(self.sigmas) or self.steps


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise PlanError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
