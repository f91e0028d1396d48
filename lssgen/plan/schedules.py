"""A checkpoint's scheduler_config.json as a typed record, or a refusal that names the field.

Field names and defaults are those of the diffusers scheduler classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeVar

from lssgen.errors import PlanError
from lssgen.plan.facts import ModelFacts
from lssgen.plan.options import OWN_SOLVER

_Word = TypeVar("_Word", bound=str)

Prediction = Literal["epsilon", "v_prediction"]
Spacing = Literal["leading", "trailing", "linspace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSchedule:
    """Flow matching: x = (1 - sigma) z + sigma e, with levels shifted towards noise.

    Attributes:
        train_steps: Labels run from 0 to this.
        shift: The static shift, used where `dynamic` is False.
        dynamic: Whether the shift depends on the number of tokens.
        shift_type: Form of the dynamic shift.
        base_shift, max_shift, base_tokens, max_tokens: The line, or the root, that gives the dynamic shift.
    """

    train_steps: int
    shift: float
    dynamic: bool
    shift_type: Literal["exponential", "linear"]
    base_shift: float
    max_shift: float
    base_tokens: int
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BetaSchedule:
    """Diffusion that was trained on a fixed table of betas (SD, SDXL).

    Attributes:
        train_steps, beta_start, beta_end, beta_schedule: The table.
        prediction: What the network's output is.
        spacing, offset: How timesteps are picked.
        last_alpha_one: Whether the level below timestep 0 is a clean picture; else it is that of timestep 0.
        origin_steps, timestep_scaling: LCM: steps of the schedule it was distilled on, and the factor in its boundary.
    """

    train_steps: int
    beta_start: float
    beta_end: float
    beta_schedule: Literal["linear", "scaled_linear"]
    prediction: Prediction
    spacing: Spacing
    offset: int
    last_alpha_one: bool
    origin_steps: int = 50
    timestep_scaling: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdmSchedule:
    """Diffusion with EDM preconditioning (Playground v2.5).

    Attributes:
        sigma_min, sigma_max, rho: The Karras grid.
        sigma_data: Standard deviation of the latents.
        prediction: What the network's output is.
    """

    sigma_min: float
    sigma_max: float
    rho: float
    sigma_data: float
    prediction: Prediction


Schedule = FlowSchedule | BetaSchedule | EdmSchedule

# Solvers that fit each kind of schedule. PNDM and LCM are derived for the beta table.
_FLOW = ("euler", "dpm++2m")
_BETA = ("pndm", "ddim", "euler", "euler-ancestral", "dpm++2m", "lcm")
_EDM = ("dpm++2m", "euler")

# diffusers class -> solvers that fit its kind of schedule, and its own solver.
_CLASSES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "FlowMatchEulerDiscreteScheduler": (_FLOW, "euler"),
    "PNDMScheduler": (_BETA, "pndm"),
    "DDIMScheduler": (_BETA, "ddim"),
    "EulerDiscreteScheduler": (_BETA, "euler"),
    "EulerAncestralDiscreteScheduler": (_BETA, "euler-ancestral"),
    "DPMSolverMultistepScheduler": (_BETA, "dpm++2m"),
    "LCMScheduler": (_BETA, "lcm"),
    "EDMDPMSolverMultistepScheduler": (_EDM, "dpm++2m"),
    "EDMEulerScheduler": (_EDM, "euler"),
}


_OFF = (False, None, 0)
# Fields that change the numbers in a way the plan does not reproduce, and the values at which they do nothing.
_HARMLESS: Mapping[str, tuple[object, ...]] = {
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
    "use_lu_lambdas": _OFF,
    "use_flow_sigmas": _OFF,
    "invert_sigmas": _OFF,
    "shift_terminal": _OFF,
    "stochastic_sampling": _OFF,
    "thresholding": _OFF,
    "rescale_betas_zero_snr": _OFF,
    "trained_betas": _OFF,
    "euler_at_final": _OFF,
    "variance_type": _OFF,
    "lambda_min_clipped": (-inf, None, "-Infinity"),
    "algorithm_type": ("dpmsolver++",),
    "solver_type": ("midpoint",),
    "solver_order": (2,),
    "lower_order_final": (True,),
    "final_sigmas_type": ("zero",),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_schedule": ("karras",),
}


def solver_names(scheduler: str) -> tuple[str, ...]:
    """Solvers that may be chosen for a model with this diffusers scheduler class.

    Raises:
        PlanError: The class is unknown.
    """
    return _class(scheduler)[0]


def solver_for(facts: ModelFacts, asked: str) -> str:
    """The solver of a run: the one asked for, or the scheduler's own.

    Raises:
        PlanError: The scheduler is unknown, or the solver does not fit it.
    """
    fitting, own = _class(facts.scheduler)
    if asked != OWN_SOLVER and asked not in fitting:
        raise PlanError(f"solver {asked!r} does not fit {facts.name} ({facts.scheduler}); choose {', '.join(fitting)}")
    return own if asked == OWN_SOLVER else asked


def schedule_for(facts: ModelFacts, solver: str) -> Schedule:
    """Read the model's scheduler configuration as the given solver needs it.

    Where the solver is not the scheduler's own, fields that the file lacks take the defaults of the solver's class,
    as diffusers' `from_config` does.

    Raises:
        PlanError: Names the field that cannot be reproduced.
    """
    fitting, own = _class(facts.scheduler)
    fields = _Fields(facts.scheduler, facts.scheduler_config)
    for name, values in _HARMLESS.items():
        fields.demand(name, values, absent=values[0])
    if fitting is _FLOW:
        return _flow(fields)
    if fitting is _EDM:
        return EdmSchedule(
            sigma_min=fields.number("sigma_min", 0.002),
            sigma_max=fields.number("sigma_max", 80.0),
            rho=fields.number("rho", 7.0),
            sigma_data=fields.number("sigma_data", 0.5),
            prediction=_prediction(fields),
        )
    return _beta(fields, solver, chosen=solver != own)


def _flow(fields: "_Fields") -> FlowSchedule:
    return FlowSchedule(
        train_steps=fields.whole("num_train_timesteps", 1000),
        shift=fields.number("shift", 1.0),
        dynamic=fields.flag("use_dynamic_shifting", default=False),
        shift_type=fields.one_of("time_shift_type", "exponential", ("exponential", "linear")),
        base_shift=fields.number("base_shift", 0.5),
        max_shift=fields.number("max_shift", 1.15),
        base_tokens=fields.whole("base_image_seq_len", 256),
        max_tokens=fields.whole("max_image_seq_len", 4096),
    )


def _beta(fields: "_Fields", solver: str, *, chosen: bool) -> BetaSchedule:
    spacing: Spacing = "leading" if solver in ("pndm", "ddim", "lcm") else "linspace"
    if solver == "pndm":
        fields.demand("timestep_spacing", ("leading",), absent="leading")
        fields.demand("skip_prk_steps", (True,), absent=chosen)
    if solver in ("ddim", "lcm"):
        fields.demand("clip_sample", (False,), absent=solver == "ddim" and not chosen)
    return BetaSchedule(
        train_steps=fields.whole("num_train_timesteps", 1000),
        beta_start=fields.number("beta_start", 0.0001),
        beta_end=fields.number("beta_end", 0.02),
        beta_schedule=fields.one_of("beta_schedule", "linear", ("linear", "scaled_linear")),
        prediction=_prediction(fields),
        spacing=fields.one_of("timestep_spacing", spacing, ("leading", "trailing", "linspace")),
        offset=fields.whole("steps_offset", 0),
        last_alpha_one=fields.flag("set_alpha_to_one", default=solver != "pndm"),
        origin_steps=fields.whole("original_inference_steps", 50),
        timestep_scaling=fields.number("timestep_scaling", 10.0),
    )


def _prediction(fields: "_Fields") -> Prediction:
    return fields.one_of("prediction_type", "epsilon", ("epsilon", "v_prediction"))


def _class(scheduler: str) -> tuple[tuple[str, ...], str]:
    if scheduler not in _CLASSES:
        raise PlanError(
            f"scheduler {scheduler} cannot be reproduced (field _class_name); known are {', '.join(_CLASSES)}"
        )
    return _CLASSES[scheduler]


class _Fields:
    """A scheduler_config.json whose values are checked as they are read."""

    def __init__(self, scheduler: str, config: Mapping[str, object]) -> None:
        self._scheduler = scheduler
        self._config = config

    def number(self, name: str, default: float) -> float:
        value = self._config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._refusal(name, value, "a number")
        return float(value)

    def whole(self, name: str, default: int) -> int:
        value = self._config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._refusal(name, value, "a whole number")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._config.get(name, default)
        if not isinstance(value, bool):
            raise self._refusal(name, value, "true or false")
        return value

    def one_of(self, name: str, default: _Word, allowed: tuple[_Word, ...]) -> _Word:
        value = self._config.get(name, default)
        for word in allowed:
            if value == word:
                return word
        raise self._refusal(name, value, " or ".join(allowed))

    def demand(self, name: str, harmless: tuple[object, ...], *, absent: object) -> None:
        value = self._config.get(name, absent)
        if value not in harmless:
            raise self._refusal(name, value, repr(harmless[0]))

    def _refusal(self, name: str, value: object, fitting: str) -> PlanError:
        return PlanError(
            f"field {name} of the {self._scheduler} configuration is {value!r}, which the plan cannot reproduce; "
            f"it must be {fitting}"
        )
