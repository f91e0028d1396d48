"""From a model's facts and what the user chooses to how it is sampled; refusals name what works instead."""

from collections.abc import Mapping
from dataclasses import replace

from lssgen.errors import PlanError
from lssgen.plan.facts import ModelFacts
from lssgen.plan.fields import FieldError, Fields
from lssgen.plan.reading import SIGMA_FIELDS, read_sampling
from lssgen.plan.scheduler_choice import SchedulerChoice, SigmaSchedule, TimestepSpacing
from lssgen.plan.schedulers import NEAR_STRANGERS, SCHEDULERS, ZERO_SNR, Kind, Scheduler
from lssgen.plan.schedules import BetaSchedule, EdmSchedule, FlowSchedule, Sampling
from lssgen.plan.solvers import SOLVERS, Solver

OWN_SOLVER = "own"
"""Value of `PlanOptions.solver` that stands for the checkpoint's own scheduler."""

_CHOSEN = "lssgen_solver"
"""Field of a scheduler's configuration that names a solver which its class does not know."""

_COMMON = ("dpm++2m", "euler", "ddim")
_KINDS: Mapping[Kind, str] = {"beta": "a table of betas", "flow": "flow matching", "edm": "EDM's levels"}


def solver_names(facts: ModelFacts) -> tuple[str, ...]:
    """Solvers that may be chosen for a model."""
    kind = _kind(facts)
    return tuple(name for name, solver in SOLVERS.items() if kind in solver.kinds and _begins_in_noise(facts, solver))


def _begins_in_noise(facts: ModelFacts, solver: Solver) -> bool:
    """False where a model was trained until nothing but noise is left, and the solver's class would pass that over."""
    own, other = SCHEDULERS.get(facts.scheduler), SCHEDULERS.get(solver.scheduler)
    if own is None or other is None or not Fields(own, facts.scheduler_config).flag(ZERO_SNR):
        return True
    return ZERO_SNR in other.fields


def with_choice(
    facts: ModelFacts,
    *,
    scheduler: SchedulerChoice | None = None,
    solver: str = OWN_SOLVER,
    timestep_spacing: TimestepSpacing = "own",
    sigma_schedule: SigmaSchedule = "own",
) -> ModelFacts:
    """The model with what the user chose in the place of its own scheduler.

    A solver by name reads the checkpoint's configuration as its own diffusers class does (`from_config`): what the file
    does not say is that class's default.

    Args:
        facts: The model.
        scheduler: A scheduler's configuration, or a name; None: the checkpoint's.
        solver: Name of a solver that fits, or "own".
        timestep_spacing: Rule by which timesteps are picked.
        sigma_schedule: Spacing of sigmas.

    Raises:
        PlanError: It does not fit the model, or two of them say different things.
    """
    chosen = scheduler or SchedulerChoice()
    if chosen.config:
        facts = _with_config(facts, chosen.config)
    names = {name for name in (chosen.solver, solver) if name not in ("", OWN_SOLVER)}
    if len(names) > 1:
        raise PlanError(f"scheduler asks for the solver {chosen.solver!r} and solver for {solver!r}; give one of them")
    for name in names:
        facts = _with_solver(facts, name)
    if timestep_spacing != "own":
        facts = _with_fields(facts, "timestep_spacing", {"timestep_spacing": timestep_spacing})
    rules: set[SigmaSchedule] = {rule for rule in (chosen.sigma_schedule, sigma_schedule) if rule != "own"}
    if len(rules) > 1:
        raise PlanError(
            f"scheduler asks for {chosen.sigma_schedule} sigmas and sigma_schedule for {sigma_schedule}; give one"
        )
    for rule in rules:
        facts = _with_rule(facts, rule)
    return facts


def sampling_of(facts: ModelFacts) -> Sampling:
    """How a model is sampled, by its scheduler's configuration.

    Raises:
        PlanError: It cannot be reproduced; names the field, and a solver that works.
    """
    record = SCHEDULERS.get(facts.scheduler)
    if record is None:
        raise PlanError(
            f"scheduler {facts.scheduler} cannot be reproduced (field _class_name){_instead(facts)}; known are "
            f"{', '.join(SCHEDULERS)}"
        )
    try:
        return read_sampling(facts, record, _solver_of(facts, record))
    except FieldError as error:
        raise PlanError(f"{error}{_instead(facts)}") from error


def described(facts: ModelFacts) -> str:
    """A model's scheduler in a few words, for tables."""
    sampling = sampling_of(facts)
    words = [f"{facts.scheduler}, solver {sampling.name}"]
    match sampling.schedule:
        case BetaSchedule() as schedule:
            words += [schedule.prediction, f"{schedule.spacing} timesteps"]
            words += [f"{schedule.sigma_rule} sigmas"] * (schedule.sigma_rule != "default")
            words += ["zero terminal SNR"] * schedule.zero_snr
        case EdmSchedule() as schedule:
            words += [
                schedule.prediction,
                f"{schedule.sigma_rule} sigmas {schedule.sigma_max:g} to {schedule.sigma_min:g}",
            ]
        case FlowSchedule() as schedule:
            words.append("shift by size" if schedule.dynamic else f"shift {schedule.shift:g}")
            words += [f"{schedule.sigma_rule} sigmas"] * (schedule.sigma_rule != "default")
    return ", ".join(words)


def _solver_of(facts: ModelFacts, record: Scheduler) -> str:
    """The solver that a configuration asks for."""
    named = facts.scheduler_config.get(_CHOSEN)
    if isinstance(named, str) and named in SOLVERS:
        return named
    fields = Fields(record, facts.scheduler_config)
    for name in record.solvers:
        if all(fields.value(field) == value for field, value in SOLVERS[name].fields.items()):
            return name
    # The last one takes what none before it does: "dpm" has whatever order and algorithm the file says.
    return record.solvers[-1]


def _kind(facts: ModelFacts) -> Kind:
    """Kind of schedule that a model was trained on, known or not."""
    record = SCHEDULERS.get(facts.scheduler)
    if record is None:
        return "flow" if facts.start == "timestep" else "beta"
    return "flow" if Fields(record, facts.scheduler_config).flag("use_flow_sigmas") else record.kind


def _with_config(facts: ModelFacts, config: Mapping[str, object]) -> ModelFacts:
    other = replace(facts, scheduler=str(config["_class_name"]), scheduler_config=config)
    kind, own = _kind(other), _kind(facts)
    # A class that is not known is let through: `sampling_of` refuses it, and names the nearest solver that works.
    if other.scheduler in SCHEDULERS and kind != own:
        raise PlanError(
            f"scheduler {other.scheduler} samples models of {_KINDS[kind]}, and {facts.name} was trained on "
            f"{_KINDS[own]}; choose one of the solvers {', '.join(solver_names(facts))}"
        )
    return other


def _with_solver(facts: ModelFacts, name: str) -> ModelFacts:
    kind, fitting = _kind(facts), solver_names(facts)
    if name not in fitting:
        raise PlanError(f"solver {name!r} does not fit {facts.name} ({facts.scheduler}); choose {', '.join(fitting)}")
    solver = SOLVERS[name]
    # On flow and on EDM's levels the solver changes and the levels stay; a table of betas is walked by its class.
    walks = kind == "beta" or (facts.scheduler in SCHEDULERS and SCHEDULERS[facts.scheduler].kind == "beta")
    if walks and solver.scheduler and (kind == "beta" or "use_flow_sigmas" in SCHEDULERS[solver.scheduler].fields):
        config = {**solver.unsaid, **facts.scheduler_config, **solver.fields, "_class_name": solver.scheduler}
        # Its class now says the solver; an earlier choice by name would be believed before it.
        config.pop(_CHOSEN, None)
        return replace(facts, scheduler=solver.scheduler, scheduler_config=config)
    if facts.scheduler in SCHEDULERS:
        return replace(facts, scheduler_config={**facts.scheduler_config, **solver.fields, _CHOSEN: name})
    # An unknown class of a flow model: its levels are said by fields that the known flow class reads too.
    known = "FlowMatchEulerDiscreteScheduler"
    return replace(facts, scheduler=known, scheduler_config={**facts.scheduler_config, _CHOSEN: name})


def _with_fields(facts: ModelFacts, option: str, said: Mapping[str, object]) -> ModelFacts:
    """The model with some fields of its scheduler's configuration set.

    Raises:
        PlanError: The class does not read one of them.
    """
    # What is only switched off a class need not read.
    record, needed = SCHEDULERS.get(facts.scheduler), {name for name, value in said.items() if value}
    if record is not None and not needed <= set(record.fields):
        takes = [
            name
            for name in solver_names(facts)
            if (other := SCHEDULERS.get(SOLVERS[name].scheduler)) and needed <= set(other.fields)
        ]
        raise PlanError(
            f"{facts.scheduler} takes no {option}; "
            + (
                f"choose one of the solvers {', '.join(takes)}, or leave it out"
                if _kind(facts) == "beta"
                else "leave it out"
            )
        )
    return replace(facts, scheduler_config={**facts.scheduler_config, **said})


def _with_rule(facts: ModelFacts, rule: SigmaSchedule) -> ModelFacts:
    if _kind(facts) == "edm":
        if rule == "beta":
            raise PlanError(
                f"{facts.scheduler} takes karras and exponential sigmas, and no beta; choose one of the two"
            )
        return _with_fields(facts, "sigma_schedule", {"sigma_schedule": "karras" if rule == "default" else rule})
    return _with_fields(facts, "sigma_schedule", {name: kind == rule for kind, name in SIGMA_FIELDS.items()})


def _instead(facts: ModelFacts) -> str:
    """The nearest solver that works, as words to append; empty if there is none."""
    record = SCHEDULERS.get(facts.scheduler)
    near = record.near if record else NEAR_STRANGERS.get(facts.scheduler, ())
    for name in (*near, *_COMMON):
        if name not in solver_names(facts):
            continue
        other = _with_solver(facts, name)
        try:
            read_sampling(other, SCHEDULERS[other.scheduler], name)
        except FieldError:
            continue
        return f"; the nearest that works is --scheduler {name}"
    return ""
