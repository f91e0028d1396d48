"""The scheduler classes of diffusers that can be reproduced, as data: what each reads, and how it walks its levels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

Kind = Literal["beta", "flow", "edm"]
"""Kind of schedule: a table of betas (SD, SDXL), flow matching (SD3, FLUX, CogView4), EDM (Playground v2.5)."""

Walk = Literal["nominal", "next", "distilled", "exploding", "preserving", "flow", "edm"]
"""Way in which a class picks the levels of its steps. On a table of betas, by timestep: a step goes to the one that
lies a nominal length below ("nominal"), or to the next one ("next"), or they are picked out of those of a
distillation ("distilled"). By sigma: of x = z + sigma e ("exploding"), or with image^2 + noise^2 = 1
("preserving")."""

_BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
)
_SPACED = (*_BETAS, "timestep_spacing", "steps_offset")
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_LINE = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
_FLOW_SIGMAS = ("use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", *_LINE)
_DPM = ("solver_order", "thresholding", "algorithm_type", "solver_type", "lower_order_final")
ZERO_SNR = "rescale_betas_zero_snr"
"""Field that says that the table of betas ends in nothing but noise."""

_CLIPPED = ("clip_sample", "set_alpha_to_one", "thresholding", ZERO_SNR)
_SHIFTED = (
    "num_train_timesteps",
    "shift",
    "use_dynamic_shifting",
    *_LINE,
    "invert_sigmas",
    "shift_terminal",
    "time_shift_type",
    *_SIGMAS,
)
_EDM = ("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "prediction_type", "rho", "final_sigmas_type")

_USUAL: Mapping[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "flow_shift": 1.0,
    "time_shift_type": "exponential",
    "lambda_min_clipped": -inf,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "predict_x0": True,
    "set_alpha_to_one": True,
    "clip_sample": True,
    "variance_type": None,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "shift": 1.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
}
"""Defaults that most classes share; a field that is not here is None or off where a file does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """One class.

    Attributes:
        name: Its name in diffusers.
        kind: Schedule that it walks on; those with `use_flow_sigmas` walk on flow where that is on.
        walk: Way in which it does.
        solvers: Names of the solvers that its configuration may ask for; the first whose `fields` it has is meant.
        fields: Fields that change its numbers.
        defaults: Values of fields that a file leaves out, where they differ from those of most classes.
        ends_where_it_is: True if the last step stays on its level, where sigmas are spread by a rule and do not end on
            a clean picture; else it goes to the table's lowest.
        near: Solvers to offer where a configuration cannot be reproduced, nearest first.
    """

    name: str
    kind: Kind = "beta"
    walk: Walk
    solvers: tuple[str, ...]
    fields: tuple[str, ...]
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    ends_where_it_is: bool = False
    near: tuple[str, ...] = ()

    def default(self, name: str) -> object:
        return self.defaults.get(name, _USUAL.get(name))


_LATENT: Mapping[str, object] = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED: Mapping[str, object] = {**_LATENT, "beta_schedule": "scaled_linear", "clip_sample": False}
_LEADING: Mapping[str, object] = {"timestep_spacing": "leading"}
_MULTISTEP = ("dpm++2m", "dpm++3m", "dpm++2m-sde", "dpm")

_RECORDS = (
    Scheduler(
        name="DDIMScheduler",
        walk="nominal",
        solvers=("ddim",),
        fields=(*_SPACED, *_CLIPPED),
        defaults=_LEADING,
        near=("euler",),
    ),
    Scheduler(
        name="PNDMScheduler",
        walk="nominal",
        solvers=("pndm",),
        fields=(*_SPACED, "skip_prk_steps", "set_alpha_to_one"),
        defaults={**_LEADING, "set_alpha_to_one": False, "skip_prk_steps": False},
        near=("deis", "dpm++2m"),
    ),
    Scheduler(
        name="DDPMScheduler",
        walk="next",
        solvers=("ddpm",),
        fields=(*_SPACED, "variance_type", "clip_sample", "thresholding", ZERO_SNR),
        defaults={**_LEADING, "variance_type": "fixed_small"},
        near=("euler-ancestral",),
    ),
    Scheduler(
        name="EulerDiscreteScheduler",
        walk="exploding",
        solvers=("euler",),
        fields=(
            *_SPACED,
            *_SIGMAS,
            "interpolation_type",
            "sigma_min",
            "sigma_max",
            "timestep_type",
            ZERO_SNR,
            "final_sigmas_type",
        ),
        near=("ddim",),
    ),
    Scheduler(
        name="EulerAncestralDiscreteScheduler",
        walk="exploding",
        solvers=("euler-ancestral",),
        fields=(*_SPACED, ZERO_SNR),
        near=("dpm++2m-sde",),
    ),
    Scheduler(
        name="HeunDiscreteScheduler",
        walk="exploding",
        solvers=("heun",),
        fields=(*_SPACED, *_SIGMAS, "clip_sample"),
        defaults={**_LATENT, "clip_sample": False},
        near=("kdpm2",),
    ),
    Scheduler(
        name="KDPM2DiscreteScheduler",
        walk="exploding",
        solvers=("kdpm2",),
        fields=(*_SPACED, *_SIGMAS),
        defaults=_LATENT,
        near=("heun",),
    ),
    Scheduler(
        name="KDPM2AncestralDiscreteScheduler",
        walk="exploding",
        solvers=("kdpm2-ancestral",),
        fields=(*_SPACED, *_SIGMAS),
        defaults=_LATENT,
        near=("euler-ancestral",),
    ),
    Scheduler(
        name="LMSDiscreteScheduler",
        walk="exploding",
        solvers=("lms",),
        fields=(*_SPACED, *_SIGMAS),
        near=("deis",),
    ),
    Scheduler(
        name="DPMSolverMultistepScheduler",
        walk="preserving",
        solvers=_MULTISTEP,
        fields=(
            *_SPACED,
            *_SIGMAS,
            *_FLOW_SIGMAS,
            *_DPM,
            "euler_at_final",
            "use_lu_lambdas",
            "final_sigmas_type",
            "lambda_min_clipped",
            "variance_type",
            ZERO_SNR,
        ),
        near=("dpm++2m", "unipc"),
    ),
    Scheduler(
        name="DPMSolverSinglestepScheduler",
        walk="preserving",
        solvers=("dpm++2s",),
        fields=(
            *_BETAS,
            *_SIGMAS,
            *_FLOW_SIGMAS,
            *_DPM,
            "final_sigmas_type",
            "lambda_min_clipped",
            "variance_type",
        ),
        defaults={"lower_order_final": False},
        near=("dpm++2m", "dpm++2m-sde"),
    ),
    Scheduler(
        name="UniPCMultistepScheduler",
        walk="preserving",
        solvers=("unipc",),
        fields=(
            *_SPACED,
            *_SIGMAS,
            *_FLOW_SIGMAS,
            "solver_order",
            "thresholding",
            "predict_x0",
            "solver_type",
            "lower_order_final",
            "disable_corrector",
            "solver_p",
            "final_sigmas_type",
            ZERO_SNR,
            "sigma_min",
            "sigma_max",
            "shift_terminal",
        ),
        defaults={"solver_type": "bh2"},
        ends_where_it_is=True,
        near=("dpm++2m",),
    ),
    Scheduler(
        name="DEISMultistepScheduler",
        walk="preserving",
        solvers=("deis",),
        fields=(*_SPACED, *_SIGMAS, *_FLOW_SIGMAS, *_DPM),
        defaults={"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"},
        ends_where_it_is=True,
        near=("dpm++2m", "unipc"),
    ),
    Scheduler(
        name="LCMScheduler",
        walk="distilled",
        solvers=("lcm",),
        fields=(*_SPACED, *_CLIPPED, "original_inference_steps", "timestep_scaling"),
        defaults={**_DISTILLED, **_LEADING},
        near=("tcd", "euler-ancestral"),
    ),
    Scheduler(
        name="TCDScheduler",
        walk="distilled",
        solvers=("tcd",),
        fields=(*_SPACED, *_CLIPPED, "original_inference_steps", "timestep_scaling"),
        # Not a field of this class: here it says that its last step leads to timestep 0, which holds a little noise.
        defaults={**_DISTILLED, **_LEADING, "final_sigmas_type": "sigma_min"},
        near=("lcm", "euler"),
    ),
    Scheduler(
        name="FlowMatchEulerDiscreteScheduler",
        kind="flow",
        walk="flow",
        solvers=("euler",),
        fields=(*_SHIFTED, "stochastic_sampling"),
        near=("euler",),
    ),
    Scheduler(
        name="FlowMatchHeunDiscreteScheduler",
        kind="flow",
        walk="flow",
        solvers=("heun",),
        fields=("num_train_timesteps", "shift"),
    ),
    Scheduler(name="FlowMatchLCMScheduler", kind="flow", walk="flow", solvers=("restart",), fields=_SHIFTED),
    Scheduler(
        name="EDMDPMSolverMultistepScheduler",
        kind="edm",
        walk="edm",
        solvers=_MULTISTEP,
        fields=(*_EDM, *_DPM, "euler_at_final"),
        defaults={"sigma_min": 0.002, "sigma_max": 80.0},
        near=("dpm++2m",),
    ),
    Scheduler(
        name="EDMEulerScheduler",
        kind="edm",
        walk="edm",
        solvers=("euler",),
        fields=_EDM,
        defaults={"sigma_min": 0.002, "sigma_max": 80.0},
        near=("dpm++2m",),
    ),
)

SCHEDULERS: Mapping[str, Scheduler] = {record.name: record for record in _RECORDS}
"""Every class that can be reproduced, by name."""

NEAR_STRANGERS: Mapping[str, tuple[str, ...]] = {
    "DPMSolverSDEScheduler": ("dpm++2m-sde",),
    "CosineDPMSolverMultistepScheduler": ("dpm++2m-sde",),
    "SASolverScheduler": ("dpm++2m-sde",),
    "IPNDMScheduler": ("pndm", "deis"),
    "LTXEulerAncestralRFScheduler": ("restart", "euler"),
}
"""Solvers to offer in the place of a class that cannot be reproduced, nearest first."""
