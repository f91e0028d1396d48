"""lssgen plan: print what a run would do and cost, without running anything."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.common import run
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.plan_options import add_plan_options, given_plan_options
from lssgen.errors import PlanError
from lssgen.measured import all_measured, fault_of
from lssgen.models.aliases import ALIASES, facts_of_model
from lssgen.paths import find_bundle
from lssgen.plan import ModelFacts, Plan, PlanOptions, Stage, make_plan, predicted_speedup, stage_flops
from lssgen.plan.budget import Budget
from lssgen.plan.options import AUTO
from lssgen.plan.planner import chosen_facts
from lssgen.plan.sampling import described, sampling_of, solver_names
from lssgen.plan.timing import predicted_ms, predicted_time_ratio

PUBLISHED_START = 0.75
"""Start of later stages in every pipeline of LSSGen, as published."""

EXAMPLES = ("--model sd3 --size 1024 --steps 40 --shorten", "--bundle bundles/sd3 --start-sigma 0.5 --json")


def build_parser(prog: str = "lssgen-plan") -> Parser:
    parser = Parser("plan", prog, "[--model MODEL | --bundle DIR] [OPTION ...]", EXAMPLES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--model", default="demo", help=f"{', '.join(ALIASES)}, or a diffusers folder; default: %(default)s"
    )
    source.add_argument(
        "--bundle",
        metavar="DIR",
        help="plan from an exported bundle instead: its folder, or its name below LSSGEN_HOME; default: from --model",
    )
    parser.add_argument("--json", action="store_true", help="print the whole plan, every step included, as JSON")
    add_plan_options(parser)
    add_flags(parser, Budget)
    parser.group("time").add_argument(
        "--place",
        metavar="TEXT",
        help="engine and machine whose times count, or how their words begin; default: the only one that was measured",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "lssgen-plan") -> int:
    args = build_parser(prog).parse_args(argv)
    return run(prog, lambda: _print(args))


def _print(args: argparse.Namespace) -> None:
    bundle = None if args.bundle is None else read_bundle(find_bundle(args.bundle))
    facts = facts_of_model(args.model) if bundle is None else bundle.manifest.facts
    words = given_plan_options(args)
    if wishes := given(args, Budget):
        words = _within(bundle, args.place, {**words, **wishes})
    options = PlanOptions.from_defaults(facts.defaults, **words)
    plan = make_plan(facts, options)
    if args.json:
        sys.stdout.buffer.write(as_json(facts, options, plan))
        return
    print(as_table(facts, options, plan))
    if bundle is not None:
        for line in as_measured(bundle, options, plan):
            print(line)


def _within(bundle: Bundle | None, place: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """The words of the best schedule that a budget leaves, by times that were measured somewhere.

    Raises:
        PlanError: It is not clear where, or no schedule is so fast.
    """
    from lssgen.runtime.advice import advised_at  # knows pictures, which plans do without

    if bundle is None:
        raise PlanError("--budget-ms and --speedup go by measured times, which a bundle has; give --bundle")
    places = {name: found for name, found in all_measured(bundle).items() if found.costs is not None}
    fitting = [name for name in places if name.startswith(place or "")]
    if len(fitting) != 1:
        said = "; ".join(places) or f"none; run: lssgen bench guarantee {bundle.folder}"
        raise PlanError(f"{len(fitting)} places of measured times fit; say with --place which of: {said}")
    return cast(dict[str, Any], advised_at(bundle, fitting[0], places[fitting[0]], cast(Any, asked)))


def as_measured(bundle: Bundle, options: PlanOptions, plan: Plan) -> list[str]:
    """What `lssgen bench guarantee` has measured of the bundle, applied to this plan: a line an engine and machine."""
    if fault := fault_of(bundle):
        return [f"{fault}: measure again with lssgen bench guarantee {bundle.folder}"]
    facts = bundle.manifest.facts
    single = make_plan(facts, options.in_one_stage())
    lines: list[str] = []
    for place, measured in all_measured(bundle).items():
        if measured.costs is not None:
            lines.append(
                f"Predicted from times of {place}: {predicted_ms(plan, facts, measured.costs):.0f} ms a picture, "
                f"{predicted_time_ratio(plan, single, facts, measured.costs):.2f} times as fast as one stage, all "
                "included"
            )
        known = measured.at(plan.height_px, plan.width_px)
        if known is not None and known.faster == "single":
            lines.append(f"There, runs that name no start_sigma use one stage: stages take {known.staged_over_single}")
        if known is not None and known.outrun:
            lines.append(f"There, {known.reference} is faster: this engine takes {known.engine_over_reference}")
    return lines


def as_json(facts: ModelFacts, options: PlanOptions, plan: Plan) -> bytes:
    """Options, plan and costs as one indented JSON object."""
    chosen = chosen_facts(facts, options)
    whole = {
        "model": facts.name,
        "scheduler": chosen.scheduler,
        "solver": sampling_of(chosen).name,
        "options": options,
        "plan": plan,
        "stage_tflops": [stage_flops(stage, facts) / 1e12 for stage in plan.stages],
        "predicted_speedup": predicted_speedup(plan, facts),
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def as_table(facts: ModelFacts, options: PlanOptions, plan: Plan) -> str:
    """The plan for people."""
    speedup = predicted_speedup(plan, facts)
    total = sum(stage_flops(stage, facts) for stage in plan.stages)
    rows = [("stage", "pixels", "tokens", "steps", "cached", "of", "sigma", "noise", "TFLOP", "cost")]
    rows += [
        # Shares of one stage at full size, whose arithmetic is total * speedup: together they are 1 / speedup.
        (str(number), *_row(stage, facts, plan.cell_px), f"{stage_flops(stage, facts) / total / speedup:.0%}")
        for number, stage in enumerate(plan.stages, start=1)
    ]
    cached = sum(stage.cached_steps for stage in plan.stages)
    sums = (str(plan.evaluations), str(cached), "", "", "", f"{total / 1e12:.4g}", f"{1 / speedup:.0%}")
    rows.append(("", "", "", *sums))
    chosen = chosen_facts(facts, options)
    own = sampling_of(chosen).name
    lines = [
        f"{facts.name}: {plan.width_px} x {plan.height_px} px, {options.requested_steps} steps of {own}, "
        f"guidance {options.guidance_scale:g}, start_sigma {options.start_sigma:g}, {plan.scaling_space} transitions",
        "",
        *_aligned(rows),
        "",
        f"Predicted speed-up over one stage at full size: {speedup:.2f} (network arithmetic, all guidance branches)",
        *_not_paying(facts, plan),
        *_levels_said(facts, options, plan),
        *_control_said(facts, options, plan),
        f"Schedule: {described(chosen)}",
        f"Solvers that fit: {', '.join(solver_names(facts))}",
        *plan.notes,
    ]
    return "\n".join(lines)


def _not_paying(facts: ModelFacts, plan: Plan) -> list[str]:
    """A line where stages are not worth it: models made for few steps repeat too many of them."""
    last = plan.stages[-1]
    step = len(last.steps[-1].guidance) * facts.cost.flops(last.height * last.width)
    saved = (predicted_speedup(plan, facts) - 1) * sum(stage_flops(stage, facts) for stage in plan.stages)
    if len(plan.stages) == 1 or saved >= step:
        return []
    return [
        f"Stages do not pay here: they save {max(0.0, saved / step):.0%} of one step at full size; --start-sigma 1 "
        "runs one stage, a lower --start-sigma or --stage-steps fewer steps"
    ]


def _levels_said(facts: ModelFacts, options: PlanOptions, plan: Plan) -> list[str]:
    """Where later stages start and earlier ones are left, beside what else they could."""
    if len(plan.stages) == 1:
        return []
    space, published = plan.scaling_space, facts.defaults.start_sigma
    known = facts.defaults.covering_sigmas.get(space)
    auto = "not measured (lssgen calibrate sigma)" if known is None else f"{known:.3f}"
    whose = "published" if published == PUBLISHED_START else "this model's own"
    starts = f"Later stages start at {options.start_sigma:g}; {whose} {published:g}; --start-sigma auto: {auto}"
    return [starts, f"{_left_said(plan)}; {_hand_offs_said(facts, options)}"]


def _control_said(facts: ModelFacts, options: PlanOptions, plan: Plan) -> list[str]:
    """How strongly a control picture acts, and in how many steps of every stage."""
    if facts.control is None:
        return []
    kinds, mode = facts.control.modes, options.control_mode
    kind = f", kind {'not said' if mode is None else mode} of {kinds}" if kinds else ""
    on = [sum(step.control[0] != 0 for step in stage.steps) for stage in plan.stages]
    steps = ", ".join(f"{acts} of {len(stage.steps)}" for acts, stage in zip(on, plan.stages, strict=True))
    return [f"Control picture: scale {options.controlnet_conditioning_scale:g} in {steps} steps{kind}"]


def _left_said(plan: Plan) -> str:
    ends = ", ".join(f"{stage.steps[-1].sigma:.4f}" for stage in plan.stages[:-1])
    how = "with a noisy state" if plan.keeps_state(0) else "with a clean latent"
    return f"Stages before the last end {how}, after evaluations down to {ends}"


def _hand_offs_said(facts: ModelFacts, options: PlanOptions) -> str:
    """The predicted speed-up for every usual place to leave a stage."""
    speedups: list[str] = []
    for hand_off in (0.0, AUTO):
        try:
            other = make_plan(facts, replace(options, hand_off=hand_off))
        except PlanError:  # nothing is left of a stage before one that starts from pure noise
            said = "not possible"
        else:
            said = f"{predicted_speedup(other, facts):.2f}"
        speedups.append(f"--hand-off {hand_off or 0}: {said}")
    return "predicted speed-up with " + ", ".join(speedups)


def _row(stage: Stage, facts: ModelFacts, cell_px: int) -> tuple[str, ...]:
    tokens = (stage.height // facts.patch) * (stage.width // facts.patch)
    return (
        f"{stage.width * cell_px} x {stage.height * cell_px}",
        str(tokens),
        str(len(stage.steps)),
        str(stage.cached_steps),
        str(stage.schedule_steps),
        f"{stage.steps[0].sigma:.4f} to {stage.steps[-1].sigma:.4f}",
        f"{stage.noise:.4f}",
        f"{stage_flops(stage, facts) / 1e12:.4g}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
