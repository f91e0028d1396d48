"""A checkpoint's scheduler_config.json, read as the diffusers class that it is for reads it, or refused by the field.

Field names and defaults are those of the diffusers scheduler classes, see `lssgen.plan.schedulers`.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from lssgen.plan.facts import ModelFacts
from lssgen.plan.fields import Fields
from lssgen.plan.schedulers import SCHEDULERS, Scheduler
from lssgen.plan.schedules import (
    BetaSchedule,
    EdmSchedule,
    FlowSchedule,
    Prediction,
    Sampling,
    Schedule,
    ShiftType,
)
from lssgen.plan.sigmas import SigmaRule
from lssgen.plan.solvers import SOLVERS, Solver, Tuning
from lssgen.plan.solvers.tuning import Variant

SIGMA_FIELDS: Mapping[SigmaRule, str] = {
    "karras": "use_karras_sigmas",
    "lu": "use_lu_lambdas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Field that turns a spacing of sigmas on; where several do, the first counts."""

_LEAST_BETA = 1e-7
"""The table is made in float32, where 1 less anything smaller is 1."""


def read_sampling(facts: ModelFacts, record: Scheduler, name: str) -> Sampling:
    """Read the model's scheduler configuration as its class, or the solver that was chosen, reads it.

    Args:
        facts: The model; its scheduler is the one to use.
        record: Its class.
        name: Solver, out of `SOLVERS`.

    Raises:
        FieldError: Names the field that cannot be reproduced.
    """
    solver = SOLVERS[name]
    fields = Fields(record, facts.scheduler_config)
    schedule: Schedule
    if record.kind == "flow":
        schedule = _flow(fields, solver)
    elif fields.flag("use_flow_sigmas"):
        schedule = _own_flow(fields, record, solver)
    elif record.kind == "edm":
        schedule = _edm(fields, solver)
    else:
        schedule = _beta(fields, record, solver)
    # A solver by name reads the file as its own class would: on flow and EDM the levels stay another class's.
    tuned = SCHEDULERS.get(solver.scheduler, record)
    config = {**facts.scheduler_config, **solver.fields}
    stochastic = record.kind == "flow" and fields.flag("stochastic_sampling")
    # stochastic_sampling turns diffusers' flow Euler into jumps to a clean picture and back, which is another solver.
    if stochastic and name == "euler":
        name, solver = "restart", SOLVERS["restart"]
    return Sampling(
        name=name,
        solver=solver,
        schedule=schedule,
        tuning=_tuning(Fields(record if record.kind == "edm" else tuned, config), name),
    )


def _flow(fields: Fields, solver: Solver) -> FlowSchedule:
    fields.off("invert_sigmas")
    shifted = _shifted(fields, fields.between("shift", 0, inf), ("exponential", "linear"))
    return replace(shifted, sigma_rule=_sigma_rule(fields), halves=solver.halves)


def _own_flow(fields: Fields, record: Scheduler, solver: Solver) -> FlowSchedule:
    """The levels of a class that is made for tables of betas and walks on flow here."""
    for name in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        fields.off(name)
    if fields.value("prediction_type") != "flow_prediction":
        raise fields.refusal("prediction_type", "flow_prediction, where use_flow_sigmas is on")
    if record.name == "DEISMultistepScheduler":
        raise fields.refusal("use_flow_sigmas", "off: near pure noise, DEIS loses the network's output in rounding")
    unipc = record.name == "UniPCMultistepScheduler"
    if not unipc and fields.value("final_sigmas_type") != "zero":
        raise fields.refusal("final_sigmas_type", "zero, where use_flow_sigmas is on")
    shifted = _shifted(
        fields, fields.between("flow_shift", 0, inf), ("exponential", "linear") if unipc else ("exponential",)
    )
    return replace(
        shifted,
        grid="unipc" if unipc else "dpm",
        end="last" if fields.value("final_sigmas_type") == "sigma_min" else "clean",
        halves=solver.halves,
    )


def _shifted(fields: Fields, shift: float, kinds: tuple[ShiftType, ...]) -> FlowSchedule:
    return FlowSchedule(
        train_steps=fields.whole("num_train_timesteps", 1),
        shift=shift,
        dynamic=fields.flag("use_dynamic_shifting"),
        shift_type=fields.one_of("time_shift_type", kinds),
        base_shift=fields.number("base_shift"),
        max_shift=fields.number("max_shift"),
        base_tokens=fields.whole("base_image_seq_len", 1),
        max_tokens=fields.whole("max_image_seq_len", 1),
        terminal=fields.between("shift_terminal", -1, 1) if fields.number_or_none("shift_terminal") else 0.0,
    )


def _edm(fields: Fields, solver: Solver) -> EdmSchedule:
    return EdmSchedule(
        sigma_min=fields.between("sigma_min", 0, inf),
        sigma_max=fields.between("sigma_max", 0, inf),
        rho=fields.between("rho", 0, inf),
        sigma_data=fields.between("sigma_data", 0, inf),
        sigma_rule=fields.one_of("sigma_schedule", ("karras", "exponential")),
        prediction=_prediction(fields),
        end="last" if fields.one_of("final_sigmas_type", ("zero", "sigma_min")) == "sigma_min" else "clean",
        halves=solver.halves,
    )


def _beta(fields: Fields, record: Scheduler, solver: Solver) -> BetaSchedule:
    # Clipping and thresholding are not affine, so no row of numbers can say them.
    fields.off("clip_sample")
    fields.off("shift_terminal")
    fields.off("interpolation_type", "linear")
    if solver.scheduler == "PNDMScheduler":
        # PNDM's Runge-Kutta warm-up evaluates four times in each of its first steps, for which there are no rows.
        if not fields.flag("skip_prk_steps"):
            raise fields.refusal("skip_prk_steps", "true")
        fields.one_of("timestep_spacing", ("leading",))
    rule, prediction = _sigma_rule(fields), _prediction(fields)
    clean = fields.one_of("final_sigmas_type", ("zero", "sigma_min")) == "zero"
    continuous = fields.one_of("timestep_type", ("discrete", "continuous")) == "continuous"
    trained = fields.numbers("trained_betas")
    train_steps = fields.whole("num_train_timesteps", 1)
    if trained and (len(trained) != train_steps or not all(_LEAST_BETA < beta < 1 for beta in trained)):
        raise fields.refusal(
            "trained_betas", f"{train_steps} numbers (num_train_timesteps) between {_LEAST_BETA:g} and 1"
        )
    cosine = fields.value("beta_schedule") == "squaredcos_cap_v2"
    return BetaSchedule(
        train_steps=train_steps,
        beta_start=fields.between("beta_start", _LEAST_BETA, 1),
        beta_end=fields.between("beta_end", _LEAST_BETA, 1),
        beta_schedule=fields.one_of("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2")),
        trained=trained,
        zero_snr=fields.flag("rescale_betas_zero_snr"),
        prediction=prediction,
        walk=record.walk,
        spacing=fields.one_of("timestep_spacing", ("leading", "trailing", "linspace")),
        offset=fields.whole("steps_offset"),
        repeats_second=solver.scheduler == "PNDMScheduler",
        # Classes without the field end on a clean picture.
        last_alpha_one=fields.flag("set_alpha_to_one") or "set_alpha_to_one" not in fields,
        sigma_rule=rule,
        sigma_min=_end(fields, "sigma_min"),
        sigma_max=_end(fields, "sigma_max"),
        # diffusers' DPMSolverMultistep, the one that reads both fields, leaves the labels of a cosine table unrounded.
        rounds=solver.halves != "" or (record.walk == "preserving" and not (cosine and "euler_at_final" in fields)),
        end="clean" if clean else "last" if rule != "default" and record.ends_where_it_is else "lowest",
        # EulerDiscreteScheduler asks for both; with epsilon it tells timesteps whatever the file says.
        continuous=continuous and prediction == "v_prediction",
        least_log_snr=_least_log_snr(fields),
        # 50 is the default that classes get which do not read it: a shorter table must not be refused for it.
        origin_steps=fields.whole("original_inference_steps", 1, max(train_steps, 50)),
        halves=solver.halves,
    )


def _end(fields: Fields, name: str) -> float | None:
    return None if fields.number_or_none(name) is None else fields.between(name, 0, inf)


def _least_log_snr(fields: Fields) -> float | None:
    # JSON has no infinity: msgspec writes null, others a word.
    return (
        None if fields.value("lambda_min_clipped") in (-inf, None, "-Infinity") else fields.number("lambda_min_clipped")
    )


def _sigma_rule(fields: Fields) -> SigmaRule:
    """The rule that is on; of several, the one that the classes look at first."""
    for rule, name in SIGMA_FIELDS.items():
        if fields.flag(name):
            return rule
    return "default"


def _prediction(fields: Fields) -> Prediction:
    return fields.one_of("prediction_type", ("epsilon", "v_prediction"))


def _tuning(fields: Fields, name: str) -> Tuning:
    """What the configuration says about a solver."""
    fields.off("thresholding")
    if fields.value("solver_p") is not None:
        raise fields.refusal("solver_p", "null")
    order, algorithm = fields.whole("solver_order", 1, 3), _algorithm(fields, name)
    if algorithm.startswith("sde") and order == 3:
        raise fields.refusal("solver_order", "1 or 2 for an SDE, whose third order in diffusers does not converge")
    return Tuning(
        order=order,
        variant=_variant(fields, name),
        predicts="image" if algorithm.endswith("++") and fields.value("predict_x0") is not False else "noise",
        stochastic=algorithm.startswith("sde"),
        lower_order_final=fields.flag("lower_order_final"),
        euler_at_final=fields.flag("euler_at_final"),
        uncorrected=tuple(int(step) for step in fields.numbers("disable_corrector")),
        wide=_variance(fields, name) == "fixed_large",
        timestep_scaling=fields.between("timestep_scaling", 0, inf),
    )


def _variance(fields: Fields, name: str) -> str:
    if name != "ddpm":
        fields.off("variance_type")
        return ""
    return fields.one_of("variance_type", ("fixed_small", "fixed_small_log", "fixed_large"))


def _algorithm(fields: Fields, name: str) -> str:
    """What DPM-Solver integrates; other classes read what was meant for it as their own."""
    if fields.value("algorithm_type") == "deis" or name in ("deis", "unipc"):
        return "dpmsolver++"
    known = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
    algorithm = fields.one_of("algorithm_type", known[:2] if name == "dpm++2s" else known)
    if not algorithm.endswith("++") and fields.value("final_sigmas_type") != "sigma_min":
        raise fields.refusal("final_sigmas_type", f"sigma_min for {algorithm}")
    return algorithm


def _variant(fields: Fields, name: str) -> Variant:
    """Form of the higher orders; a form that was meant for another class is the class's own default."""
    if name == "unipc":
        return "bh1" if fields.value("solver_type") == "bh1" else "bh2"
    return "heun" if fields.value("solver_type") == "heun" else "midpoint"
