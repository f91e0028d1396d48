"""From a model's facts and a user's options to the table of a run."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lssgen.errors import PlanError
from lssgen.plan.diffusion import beta_asks, edm_asks, most_steps, start_noise
from lssgen.plan.facts import ModelFacts
from lssgen.plan.flow import flow_asks, shift_for
from lssgen.plan.geometry import StageSize, size_notes, stage_sizes
from lssgen.plan.levels import Ask
from lssgen.plan.options import PlanOptions, SkipLayerGuidance
from lssgen.plan.schedules import BetaSchedule, EdmSchedule, FlowSchedule, Schedule, schedule_for, solver_for
from lssgen.plan.solvers import dpmpp_2m, first_order, lcm, pndm
from lssgen.plan.table import Plan, Stage, Step


@dataclass(frozen=True, slots=True)
class _Run:
    """What every stage of one run shares."""

    facts: ModelFacts
    options: PlanOptions
    solver: str
    schedule: Schedule


def make_plan(facts: ModelFacts, options: PlanOptions) -> Plan:
    """Work out a whole run: stages, their sizes, and every step as a row of numbers.

    Args:
        facts: The model, from a bundle's manifest or from the records.
        options: What the user wants.

    Raises:
        PlanError: The run cannot be carried out as asked; the message says what came, what fits and what to do.

    Source: LSSGen, arXiv 2507.16154, and the behaviour of its published pipelines.
    """
    solver = solver_for(facts, options.solver)
    run = _Run(facts, options, solver, schedule_for(facts, solver))
    _check(run)
    sizes = stage_sizes(facts, options)
    entered = sizes if options.strength > options.start_sigma else sizes[-1:]
    stages = tuple(_stage(run, size, first=index == 0) for index, size in enumerate(entered))
    alone = _stage(run, replace(sizes[-1], steps=_most_steps(run)), first=True)
    return Plan(
        stages=stages,
        cell_px=facts.cell_px,
        scaling_space=options.scaling_space,
        notes=(*size_notes(facts, options, sizes), *_level_notes(run, stages)),
        single_stage_passes=sum(len(step.guidance) for step in alone.steps),
    )


def _most_steps(run: _Run) -> int:
    """Steps of a run in one stage: all that were asked for, or as many as the schedule has.

    Smaller stages get fewer steps, so a run may ask for more than any single schedule holds.
    """
    asked = run.options.requested_steps
    return min(asked, most_steps(run.schedule, run.solver)) if isinstance(run.schedule, BetaSchedule) else asked


def _check(run: _Run) -> None:
    """Refuse options that do not fit the model."""
    facts, options = run.facts, run.options
    if options.scaling_space not in facts.scaling_spaces:
        raise PlanError(
            f"{facts.name} cannot be scaled in {options.scaling_space!r} space; "
            f"choose {' or '.join(facts.scaling_spaces)}"
        )
    if options.eta and run.solver != "ddim":
        raise PlanError(f"eta is {options.eta:g}, but only the ddim solver takes it; this run uses {run.solver}")
    if options.sigmas and not isinstance(run.schedule, FlowSchedule):
        raise PlanError(
            f"custom sigmas fit flow models only, and {facts.name} is none; choose steps, start_sigma or a solver"
        )
    if options.true_guidance_scale > 1 and facts.guidance == "branches":
        raise PlanError(
            f"true_guidance_scale is {options.true_guidance_scale:g}, but {facts.name} has classifier-free guidance "
            "already; set guidance_scale instead"
        )
    if options.skip_layers is not None and facts.guidance != "branches":
        raise PlanError(
            f"{facts.name} has no guidance branches, so layers cannot be skipped in one; turn skip_layers off"
        )


def _stage(run: _Run, size: StageSize, *, first: bool) -> Stage:
    asks = _asks(run, size)
    cut: tuple[Ask, ...] = ()
    whole = first and run.options.strength == 1
    if whole:
        image, noise = 0.0, _first_noise(run, asks)
    else:
        start = _start(run, asks, size, "strength" if first else "start_sigma")
        cut, asks = asks[:start], asks[start:]
        image, noise = _mix(run, asks[0])
    if run.solver == "pndm" and run.options.pndm == "aligned" and not whole and len(asks) > 1:
        asks = (*asks[:2], *asks[1:])
    steps = tuple(
        replace(step, guidance=_guidance(run, index, size, first=first))
        for index, step in enumerate(_rows(run, asks, cut))
    )
    return Stage(
        height=size.height,
        width=size.width,
        steps=steps,
        schedule_steps=size.steps,
        image=image,
        noise=noise,
        levels=tuple((ask.to.image, ask.to.noise) for ask in asks),
    )


def _asks(run: _Run, size: StageSize) -> tuple[Ask, ...]:
    """The full schedule of a stage."""
    match run.schedule:
        case FlowSchedule() as schedule:
            patch = run.facts.patch
            tokens = (size.height // patch) * (size.width // patch)
            shift = shift_for(schedule, tokens, clamp=run.options.token_clamp)
            return flow_asks(schedule, run.facts.grid, size.steps, shift, run.options.sigmas)
        case BetaSchedule() as schedule:
            return beta_asks(schedule, run.solver, size.steps)
        case EdmSchedule() as schedule:
            return edm_asks(schedule, size.steps)


def _first_noise(run: _Run, asks: tuple[Ask, ...]) -> float:
    return 1.0 if isinstance(run.schedule, FlowSchedule) else start_noise(run.schedule, run.solver, asks)


def _start(run: _Run, asks: tuple[Ask, ...], size: StageSize, option: Literal["start_sigma", "strength"]) -> int:
    """Index of the first evaluation of a stage that starts from a picture, where `option` says how noisy.

    Raises:
        PlanError: None is left, or none is noisy enough.
    """
    wanted: float = getattr(run.options, option)
    if run.options.start_rule == "sigma":
        data = run.schedule.sigma_data if isinstance(run.schedule, EdmSchedule) else 1.0
        shares = [ask.level.noise / (ask.level.image * data + ask.level.noise) for ask in asks]
        noisy = [index for index, share in enumerate(shares) if share >= wanted]
    elif run.facts.start == "fraction":
        left = int(size.steps * wanted)
        if left < 1:
            raise PlanError(
                f"{option} {wanted:g} leaves no step out of {size.steps} in the stage of "
                f"{_px(run, size)}: ask for more steps or a higher {option}"
            )
        return size.steps - left
    else:
        assert not isinstance(run.schedule, EdmSchedule), "EDM's labels are logarithms, not timesteps"
        threshold = np.float32(wanted * run.schedule.train_steps)
        noisy = [index for index, ask in enumerate(asks) if np.float32(ask.label) >= threshold]
    if not noisy:
        raise PlanError(
            f"no level of the schedule in the stage of {_px(run, size)} is as noisy as {option} {wanted:g}: "
            "lower it, or give sigmas that start higher"
        )
    return noisy[-1]


def _mix(run: _Run, ask: Ask) -> tuple[float, float]:
    """Weights of the upsampled picture and of fresh noise at the start of a later stage."""
    by_label = run.options.injection == "label" and run.options.start_rule == "published"
    if isinstance(run.schedule, FlowSchedule) and by_label:
        noise = float(np.float32(ask.label) / np.float32(run.schedule.train_steps))
        return 1 - noise, noise
    return ask.level.image, ask.level.noise


def _rows(run: _Run, asks: tuple[Ask, ...], cut: tuple[Ask, ...]) -> tuple[Step, ...]:
    match run.solver:
        case "pndm":
            return pndm(asks, cut)
        case "dpm++2m":
            return dpmpp_2m(asks)
        case "euler-ancestral":
            return first_order(asks, eta=1.0)
        case "lcm":
            assert isinstance(run.schedule, BetaSchedule)
            return lcm(asks, timestep_scaling=run.schedule.timestep_scaling)
        case _:
            return first_order(asks, eta=run.options.eta)


def _guidance(run: _Run, index: int, size: StageSize, *, first: bool) -> tuple[tuple[str, float], ...]:
    """Branches that a step evaluates, and their weights."""
    options = run.options
    scale = options.guidance_scale if run.facts.guidance == "branches" else options.true_guidance_scale
    if scale <= 1:
        return (("positive", 1.0),)
    skip = options.skip_layers
    if skip is None or not _skips(skip, index, size, options, first=first):
        return (("negative", 1 - scale), ("positive", scale))
    return (("negative", 1 - scale), ("positive", scale + skip.scale), ("skip", -skip.scale))


def _skips(skip: SkipLayerGuidance, index: int, size: StageSize, options: PlanOptions, *, first: bool) -> bool:
    whole = size.steps if skip.window == "stage" else options.requested_steps
    inside = whole * skip.start < index < whole * skip.stop
    return inside and (first or skip.window != "first")


def _level_notes(run: _Run, stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """A note for every later stage whose latent is noised to another level than its first step assumes."""
    if not isinstance(run.schedule, FlowSchedule):
        return ()
    px = run.facts.cell_px
    return tuple(
        f"The stage of {stage.width * px} x {stage.height * px} px is noised to {stage.noise:.4f}, but its solver "
        f"starts at {stage.steps[0].sigma:.4f}, as published; injection 'sigma' makes them equal."
        for stage in stages[1:]
        if abs(stage.noise - stage.steps[0].sigma) > 1e-3
    )


def _px(run: _Run, size: StageSize) -> str:
    return f"{size.height * run.facts.cell_px} x {size.width * run.facts.cell_px} px"
