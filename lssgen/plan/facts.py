"""What the plan must know about a model: plain data, written by export into the bundle and by hand into the records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

ScalingSpace = Literal["resnet", "latent", "pixel", "dct", "selflift", "sr"]
"""Way of a latent to the next size: a name in `lssgen.plan.transitions.TRANSITIONS`."""

SPACES: tuple[ScalingSpace, ...] = get_args(ScalingSpace)


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a run uses where the user says nothing. Names and meaning are those of diffusers and the LSSGen paper.

    Attributes:
        height, width: Picture size in pixels.
        num_inference_steps: Length of the full-resolution schedule.
        guidance_scale: `ModelFacts.unguided_scale` or less turns guidance off: 1, for Z-Image 0.
        start_sigma: Start of later stages, in (0, 1]: a noise level or a share of the steps, see `ModelFacts.start`.
        min_resolution: Shortest side in pixels that a first stage may have.
        shorten: Give smaller stages fewer steps (`shorten_intermediate_steps`).
        base_height, base_width: Size at which a stage gets the full number of steps.
        scaling_space: Way of a latent to the next size; "latent" where there is no trained upsampler.
        sigmas: Own noise levels, as `PlanOptions.sigmas`; empty: the schedule's.
        covering_sigmas: Lowest noise levels that cover what a transition gets wrong, by transition, as
            `lssgen calibrate sigma` found them; what a `start_sigma` of "auto" stands for.
    """

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    start_sigma: float = 0.75
    min_resolution: int = 512
    shorten: bool = False
    base_height: int = 1024
    base_width: int = 1024
    scaling_space: ScalingSpace = "resnet"
    sigmas: tuple[float, ...] = ()
    covering_sigmas: Mapping[ScalingSpace, float] = field(default_factory=dict[ScalingSpace, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkCost:
    """FLOPs of one evaluation on one picture of n latent cells: fixed + per_cell * n + per_cell_pair * n^2.

    Attention makes the quadratic part, text tokens the fixed one.
    """

    fixed: float
    per_cell: float
    per_cell_pair: float

    def flops(self, cells: int) -> float:
        return self.fixed + self.per_cell * cells + self.per_cell_pair * cells * cells

    def __add__(self, other: "NetworkCost") -> "NetworkCost":
        """Of both networks, one after the other."""
        return NetworkCost(
            fixed=self.fixed + other.fixed,
            per_cell=self.per_cell + other.per_cell,
            per_cell_pair=self.per_cell_pair + other.per_cell_pair,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A ControlNet beside the network, as the plan sees it.

    Attributes:
        modes: Number of kinds of control picture that a union network tells apart; 0: it knows one, and is told none.
    """

    modes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as the plan sees it.

    Attributes:
        name: Name for messages and tables.
        channels: Latent channels.
        cell_px: Pixels along one side of a latent cell (8 for every published VAE).
        align: A stage's latent sides are multiples of this many cells (the patch size of transformers, 1 for UNets).
        oversize: Fate of a size that does not divide: "refuse", or "floor" with a note (FLUX).
        scheduler: Class name of the checkpoint's diffusers scheduler.
        scheduler_config: Contents of its scheduler_config.json.
        start: Meaning of `start_sigma`: a threshold on the "timestep", or the "fraction" of steps still taken.
        guidance: "branches" are evaluated and combined; "embedded": the scale goes into the network; or "none".
        scaling_spaces: Transitions that the model can use.
        defaults: Values for everything the user leaves open.
        patch: Latent cells along one side of a token, for schedules and tables that count tokens.
        grid: Flow models: the levels before the shift. "range": evenly from the scheduler's largest timestep to its
            smallest (SD3). "even": from 1 to 1 / n (FLUX). "labels": whole timesteps from 1000 to 1, which the network
            is told as they are, without the shift (CogView4).
        shift_by: Quantity that the dynamic shift depends on: the "tokens" of the picture, by the line in the
            scheduler's configuration, or the "steps" of the schedule besides (FLUX.2).
        noise_patch: Cells along one side whose noise is drawn together, as channels: 2 draws (4 C, h / 2, w / 2) for a
            latent of (C, h, w), as a pipeline does that packs before it draws (FLUX.2).
        cost: Arithmetic of the network.
        longest_side: Largest latent height or width, in cells, that the network knows positions for; 0: any.
        unguided_scale: The `guidance_scale` at which the negative branch has no weight: 1, or 0 where the published
            pipeline counts from the positive branch (Z-Image).
        clamps: False where the shift of the published pipeline grows beyond `max_image_seq_len`, whatever
            `PlanOptions.token_clamp` says.
        control: ControlNet that a control picture goes through; None: there is none. Its arithmetic is part of `cost`.
    """

    name: str
    channels: int
    cell_px: int = 8
    align: int = 1
    patch: int = 1
    grid: Literal["range", "even", "labels"] = "range"
    oversize: Literal["refuse", "floor"] = "refuse"
    scheduler: str
    scheduler_config: Mapping[str, object]
    start: Literal["timestep", "fraction"]
    guidance: Literal["branches", "embedded", "none"] = "branches"
    scaling_spaces: tuple[ScalingSpace, ...] = SPACES
    defaults: Defaults
    shift_by: Literal["tokens", "steps"] = "tokens"
    noise_patch: int = 1
    cost: NetworkCost
    longest_side: int = 0
    unguided_scale: float = 1.0
    clamps: bool = True
    control: Control | None = None
