"""From a model's facts and a user's options to the table of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lssgen.errors import PlanError
from lssgen.plan.caching import NO_CACHE, cached_stages
from lssgen.plan.diffusion import beta_evaluations, edm_evaluations, highest_sigma, most_steps, start_noise
from lssgen.plan.facts import ModelFacts
from lssgen.plan.flow import flow_evaluations, shift_for
from lssgen.plan.geometry import StageSize, size_notes, stage_sizes
from lssgen.plan.leaving import Rows
from lssgen.plan.levels import Evaluation, Level
from lssgen.plan.options import PlanOptions, SkipLayerGuidance
from lssgen.plan.sampling import sampling_of, with_choice
from lssgen.plan.schedules import BetaSchedule, EdmSchedule, FlowSchedule, Sampling, Schedule
from lssgen.plan.shares import level_at, share_of
from lssgen.plan.solvers import Course
from lssgen.plan.table import Plan, Stage, Step
from lssgen.plan.transitions import TRANSITIONS, Transition, covered_share, kept_weights


@dataclass(frozen=True, slots=True)
class _Run:
    """What every stage of one run shares."""

    facts: ModelFacts
    options: PlanOptions
    sampling: Sampling

    @property
    def solver(self) -> str:
        return self.sampling.name

    @property
    def schedule(self) -> Schedule:
        return self.sampling.schedule

    @property
    def transition(self) -> Transition:
        return TRANSITIONS[self.options.scaling_space]


def make_plan(facts: ModelFacts, options: PlanOptions) -> Plan:
    """Work out a whole run: stages, their sizes, and every step as a row of numbers.

    Args:
        facts: The model, from a bundle's manifest or from the records.
        options: What the user wants.

    Raises:
        PlanError: The run cannot be carried out as asked; the message says what came, what fits and what to do.

    Source: LSSGen, arXiv 2507.16154, and the behaviour of its published pipelines.
    """
    own, facts = facts, chosen_facts(facts, options)
    run = _Run(facts, options, sampling_of(facts))
    _check(run)
    sizes = stage_sizes(facts, options)
    entered = sizes if options.strength > options.start_sigma else sizes[-1:]
    stages = cached_stages(_stages(run, entered), options.cached_steps, options.cache_order, facts.cell_px)
    # Unshortened, since shortening is among what the staged run saves.
    alone = _stage(run, replace(sizes[-1], steps=_most_steps(run)), first=True, leave=0.0)
    return Plan(
        stages=stages,
        cell_px=facts.cell_px,
        scaling_space=options.scaling_space,
        noise_patch=facts.noise_patch,
        notes=(*size_notes(facts, options, sizes), *_level_notes(run, stages), *_sampling_notes(run, own, stages)),
        single_stage_passes=sum(len(step.guidance) for step in alone.steps),
    )


def chosen_facts(facts: ModelFacts, options: PlanOptions) -> ModelFacts:
    """The model with the scheduler that the options choose.

    Raises:
        PlanError: It does not fit.
    """
    return with_choice(
        facts,
        scheduler=options.scheduler,
        solver=options.solver,
        timestep_spacing=options.timestep_spacing,
        sigma_schedule=options.sigma_schedule,
    )


def _most_steps(run: _Run) -> int:
    """Steps of a run in one stage: all that were asked for, or as many as the schedule has.

    Smaller stages get fewer steps, so a run may ask for more than any single schedule holds.
    """
    asked = run.options.requested_steps
    return min(asked, most_steps(run.schedule)) if isinstance(run.schedule, BetaSchedule) else asked


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
            f"custom sigmas fit flow models only, and {facts.name} is not one; choose steps, start_sigma or a solver"
        )
    if options.cfg_truncation < 1 and not isinstance(run.schedule, FlowSchedule):
        raise PlanError(
            f"cfg_truncation fits flow models only, whose noise levels are shares, and {facts.name} is not one; leave "
            "it at 1"
        )
    if options.true_cfg_scale > 1 and facts.guidance == "branches":
        raise PlanError(
            f"true_cfg_scale is {options.true_cfg_scale:g}, but {facts.name} has classifier-free guidance "
            "already; set guidance_scale instead"
        )
    if options.skip_layers is not None and facts.guidance != "branches":
        raise PlanError(
            f"{facts.name} has no guidance branches, so layers cannot be skipped in one; turn skip_layers off"
        )
    _check_control(facts, options)
    if options.cached_steps != NO_CACHE and run.sampling.solver.evaluations > 1:
        raise PlanError(
            f"cached_steps is {options.cached_steps[:40]}, but {run.solver} evaluates the network twice in a step; "
            "choose another solver, or turn caching off"
        )


_UNSTEERED: Mapping[str, float | None] = {
    "controlnet_conditioning_scale": 1.0,
    "control_guidance_start": 0.0,
    "control_guidance_end": 1.0,
    "control_mode": None,
}
"""Choices about a control picture, where none is made."""


def _check_control(facts: ModelFacts, options: PlanOptions) -> None:
    """Refuse choices about a control picture that the model does not know."""
    mode, known = options.control_mode, facts.control
    for name, usual in _UNSTEERED.items():
        if known is None and (value := getattr(options, name)) != usual:
            raise PlanError(
                f"{name} is {value:g}, but {facts.name} has no ControlNet: export it with --controlnet, or leave it out"
            )
    if mode is None or known is None:
        return
    if not known.modes:
        raise PlanError(f"control_mode is {mode}, but the ControlNet of {facts.name} knows one kind of picture only")
    if mode >= known.modes:
        raise PlanError(
            f"control_mode is {mode}; the ControlNet of {facts.name} knows the kinds 0 to {known.modes - 1}, which its "
            "authors list"
        )


def _stages(run: _Run, sizes: Sequence[StageSize]) -> tuple[Stage, ...]:
    """All stages, worked out from the last to the first: where one is left depends on how the next one starts."""
    found: list[Stage] = []
    for index in reversed(range(len(sizes))):
        leave = _leave(run, found[0]) if found else 0.0
        stage = _stage(run, sizes[index], first=index == 0, leave=leave)
        if found and run.transition.takes == "state":
            found[0] = _keeping(stage, found[0])
        found.insert(0, stage)
    return tuple(found)


def _leave(run: _Run, following: Stage) -> float:
    """Noise share at which a stage is left, by how noisy the one after it starts."""
    asked = run.options.hand_off
    asked = run.transition.hand_off if asked == "own" else asked
    start = share_of(run.schedule, Level(following.image, following.noise, 0.0))
    covered = covered_share(start)
    if isinstance(asked, str):
        return covered
    if run.transition.takes == "state" and asked > covered:
        raise PlanError(
            f"hand_off is {asked:g}, but a stage that starts at a noise share of {start:.4g} holds a state of "
            f"{covered:.4g} at most: lower it, raise start_sigma, or leave it at auto"
        )
    return asked


def _keeping(left: Stage, stage: Stage) -> Stage:
    """A stage that goes on from the noisy state that the one before leaves."""
    gain, low_noise = kept_weights(left.levels[-1], (stage.image, stage.noise))
    return replace(stage, gain=gain, low_noise=low_noise)


def _stage(run: _Run, size: StageSize, *, first: bool, leave: float) -> Stage:
    evaluations = _evaluations(run, size)
    cut: tuple[Evaluation, ...] = ()
    whole = first and run.options.strength == 1
    if whole:
        image, noise = 0.0, _first_noise(run, evaluations)
    else:
        start = _start(run, evaluations, size, "strength" if first else "start_sigma")
        cut, evaluations = evaluations[:start], evaluations[start:]
        mix = _mix(run, evaluations[0], factor=1.0 if first else run.transition.noise_factor)
        image, noise = mix.image, mix.noise
    expanded = run.sampling.solver.expanded
    # Indices count rows of the full schedule, those that this stage leaves out among them.
    length = len(expanded((*cut, *evaluations)))
    skipped = length - len(expanded(evaluations))
    if run.solver == "pndm" and run.options.pndm == "aligned" and not whole and len(evaluations) > 1:
        # PNDM's warm-up needs its second timestep twice; the full schedule's repetition was cut off with its beginning.
        evaluations = (*evaluations[:2], *evaluations[1:])
    evaluations = expanded(evaluations)
    rows = Rows.of(_rows(run, evaluations, cut), evaluations, cut)
    if leave:
        rows = _left(run, rows, size, leave)
    steps = tuple(
        replace(
            step,
            guidance=_guidance(run, index, step.sigma, size, first=first),
            control=_control(run, skipped + index, length),
        )
        # The index counts rows: a solver that evaluates twice in a step has its window in evaluations.
        for index, step in enumerate(rows.steps)
    )
    return Stage(
        height=size.height,
        width=size.width,
        steps=steps,
        schedule_steps=size.steps,
        image=image,
        noise=noise,
        gain=image,
        levels=rows.levels,
    )


def _left(run: _Run, rows: Rows, size: StageSize, leave: float) -> Rows:
    """The rows of a stage that is left early.

    Raises:
        PlanError: It starts no noisier than it is left.
    """
    top = share_of(run.schedule, rows.top)
    starts = rows.starts_above(leave, run.schedule, run.sampling.solver.evaluations)
    if not starts:
        raise PlanError(
            f"hand_off is {leave:.4g}, but the stage of {_px(run, size)} starts at a noise share of {top:.4g} and "
            "would paint nothing: lower it"
        )
    last = starts[-1]
    return rows.kept(last + run.sampling.solver.evaluations) if run.transition.takes == "state" else rows.jumping(last)


def _evaluations(run: _Run, size: StageSize) -> tuple[Evaluation, ...]:
    """The full schedule of a stage."""
    match run.schedule:
        case FlowSchedule() as schedule:
            patch = run.facts.patch
            tokens = (size.height // patch) * (size.width // patch)
            clamp = run.options.token_clamp and run.facts.clamps
            shift = shift_for(schedule, tokens, clamp=clamp, by=run.facts.shift_by, steps=size.steps)
            return flow_evaluations(schedule, run.facts.grid, size.steps, shift, run.options.sigmas)
        case BetaSchedule() as schedule:
            return beta_evaluations(schedule, size.steps)
        case EdmSchedule() as schedule:
            return edm_evaluations(schedule, size.steps)


def _first_noise(run: _Run, evaluations: tuple[Evaluation, ...]) -> float:
    return 1.0 if isinstance(run.schedule, FlowSchedule) else start_noise(run.schedule, evaluations)


def _start(
    run: _Run, evaluations: tuple[Evaluation, ...], size: StageSize, option: Literal["start_sigma", "strength"]
) -> int:
    """Index of the first evaluation of a stage that starts from a picture, where `option` says how noisy.

    Raises:
        PlanError: None is left, or none is noisy enough.
    """
    wanted: float = getattr(run.options, option)
    if run.options.start_rule == "sigma":
        noisy = [share >= wanted for share in _noise_shares(run, evaluations)]
    elif run.facts.start == "fraction":
        return _start_by_steps(run, size, option, wanted)
    else:
        noisy = _noisy_by_label(run, evaluations, wanted)
    if not any(noisy):
        raise PlanError(
            f"no level of the schedule in the stage of {_px(run, size)} is as noisy as {option} {wanted:g}: "
            "lower it, or give sigmas that start higher"
        )
    # The last that is noisy enough, so the start is never less noisy than asked for.
    return max(index for index, enough in enumerate(noisy) if enough)


def _noise_shares(run: _Run, evaluations: tuple[Evaluation, ...]) -> list[float]:
    """Noise over noise and picture at each evaluation, in [0, 1]: what sigma is for flow, for every kind of level."""
    return [share_of(run.schedule, evaluation.level) for evaluation in evaluations]


def _start_by_steps(run: _Run, size: StageSize, option: str, wanted: float) -> int:
    """The published rule of SD and SDXL: `wanted` is the share of the stage's steps that is left.

    Raises:
        PlanError: None is left.
    """
    # The double's product, cut off: 50 steps and 0.667 are 33, as in diffusers' image-to-image pipelines.
    left = int(size.steps * wanted)
    if left < 1:
        raise PlanError(
            f"{option} {wanted:g} leaves no step out of {size.steps} in the stage of "
            f"{_px(run, size)}: ask for more steps or a higher {option}"
        )
    return size.steps - left


def _noisy_by_label(run: _Run, evaluations: tuple[Evaluation, ...], wanted: float) -> list[bool]:
    """The published rule of flow models: timesteps from `wanted` of the training's on."""
    assert not isinstance(run.schedule, EdmSchedule), "EDM's labels are logarithms, not timesteps"
    # Both sides in float32, as published: a timestep on the threshold is decided by its last bit.
    threshold = np.float32(wanted * run.schedule.train_steps)
    return [bool(np.float32(evaluation.label) >= threshold) for evaluation in evaluations]


def _mix(run: _Run, evaluation: Evaluation, *, factor: float) -> Level:
    """Weights of the picture and of fresh noise at the start of a later stage.

    Args:
        evaluation: The stage's first.
        factor: Noise share of the start, over that at which the solver starts.
    """
    by_label = run.options.injection == "label" and run.options.start_rule == "published"
    level = evaluation.level
    # A grid of the scheduler's own has labels that are cut to whole numbers: its levels are known better than by them.
    if isinstance(run.schedule, FlowSchedule) and by_label and not run.schedule.grid:
        noise = float(np.float32(evaluation.label) / np.float32(run.schedule.train_steps))
        level = Level(1 - noise, noise, noise)
    return level if factor == 1 else level_at(run.schedule, factor * share_of(run.schedule, level), like=level)


def _rows(run: _Run, evaluations: tuple[Evaluation, ...], cut: tuple[Evaluation, ...]) -> tuple[Step, ...]:
    tuning = replace(run.sampling.tuning, eta=run.options.eta)
    return run.sampling.solver.rows(Course(evaluations, cut), tuning)


def _guidance(run: _Run, index: int, sigma: float, size: StageSize, *, first: bool) -> tuple[tuple[str, float], ...]:
    """Branches that a step evaluates, and their weights."""
    options = run.options
    scale = options.true_cfg_scale
    if run.facts.guidance == "branches":
        scale = options.guidance_scale - run.facts.unguided_scale + 1
    # As diffusers has it: at 1 the other branch has no weight, and below it is not evaluated either.
    if scale <= 1 or 1 - sigma > options.cfg_truncation:
        return (("positive", 1.0),)
    skip = options.skip_layers
    if skip is None or not _skips(skip, index, size, options, first=first):
        return (("negative", 1 - scale), ("positive", scale))
    return (("negative", 1 - scale), ("positive", scale + skip.scale), ("skip", -skip.scale))


def _control(run: _Run, index: int, length: int) -> tuple[float, ...]:
    """What a step tells the ControlNet, if there is one: see `Step.control`.

    Args:
        index: Number of the step in the stage's full schedule.
        length: Number of steps of that schedule.

    Source: `controlnet_keep` of diffusers' ControlNet pipelines, whose run has one stage.
    """
    options, known = run.options, run.facts.control
    if known is None:
        return ()
    off = index / length < options.control_guidance_start or (index + 1) / length > options.control_guidance_end
    scale = 0.0 if off else options.controlnet_conditioning_scale
    return (scale, *(float(mode == options.control_mode) for mode in range(known.modes)))


def _skips(skip: SkipLayerGuidance, index: int, size: StageSize, options: PlanOptions, *, first: bool) -> bool:
    whole = size.steps if skip.window == "stage" else options.requested_steps
    inside = whole * skip.start < index < whole * skip.stop  # both ends open, as in diffusers' SD3 pipeline
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
        # A label over 1000 and its sigma differ by float32's rounding in every flow model; CogView4's by 0.15.
        if abs(stage.noise - stage.steps[0].sigma) > 1e-3
    )


_FEW = 1 / 2
"""Share of the training's highest sigma from which on a schedule is thought to start at pure noise."""


def _sampling_notes(run: _Run, own: ModelFacts, stages: tuple[Stage, ...]) -> tuple[str, ...]:
    """What a user should know about the schedule, one sentence each."""
    notes: list[str] = []
    first, schedule = stages[0].steps[0].sigma, run.schedule
    highest = highest_sigma(schedule) if isinstance(schedule, BetaSchedule) else 1.0
    if run.options.strength == 1 and not isinstance(schedule, EdmSchedule) and first < _FEW * highest:
        remedy = "--timestep-spacing trailing starts" if isinstance(schedule, BetaSchedule) else "let sigmas start"
        notes.append(
            f"The first step takes pure noise for a noise level of {first:.3g}, far below the training's highest, "
            f"{highest:.3g}; {remedy} there."
        )
    if any(stage.image == 0 for stage in stages[1:]):
        notes.append(
            "A later stage starts from pure noise, so that what the stages before it painted is lost: its schedule has "
            "no level between that and start_sigma; ask for more steps or a lower start_sigma."
        )
    before, after = (facts.scheduler_config.get("prediction_type", "epsilon") for facts in (own, run.facts))
    if isinstance(schedule, BetaSchedule) and before != after:
        notes.append(
            f"The chosen scheduler takes the network's output for {after}, the checkpoint's own for {before}; of the "
            "two, only one can be right."
        )
    return tuple(notes)


def _px(run: _Run, size: StageSize) -> str:
    return f"{size.width * run.facts.cell_px} x {size.height * run.facts.cell_px} px"
