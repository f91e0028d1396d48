"""lssgen bench exact: the gate without a clock."""

import argparse
from pathlib import Path

from lssgen.bench.exact import (
    Baseline,
    baseline_of_bundle,
    baseline_of_plan,
    changes,
    not_compared,
    read_baseline,
    write_baseline,
)
from lssgen.commands.bench.shared import add_run_options, bundle_of, exit_status, run_options
from lssgen.commands.parser import Parser
from lssgen.errors import BenchError
from lssgen.models.aliases import facts_of_model
from lssgen.plan import PlanOptions, make_plan

EXAMPLES = (
    "demo --baseline benchmarks/baselines/demo/staged.json",
    "--model sd3 --set height=1024 --baseline sd3.json --update",
)


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "[BUNDLE | --model MODEL] [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "bundle", nargs="?", default="", metavar="BUNDLE", help="folder or name of a bundle; default: the demo model"
    )
    parser.add_argument("--model", default="", metavar="MODEL", help="a plan alone, of an alias; default: none")
    add_run_options(parser)
    parser.add_argument(
        "--baseline", type=Path, metavar="FILE", help="what it must be like; default: none, the numbers are printed"
    )
    parser.add_argument("--update", action="store_true", help="make these numbers the baseline, on purpose")
    parser.add_argument(
        "--status", type=exit_status, default=1, metavar="N", help="exit status of a change; default: %(default)s"
    )
    return parser


def work(args: argparse.Namespace) -> int:
    """Count, compare and tell.

    Raises:
        BenchError: Nothing to update, a baseline that cannot be read, or a plan's option that is none.
        MismatchError: The baseline is of something else.
    """
    if args.update and args.baseline is None:
        raise BenchError("--update makes a baseline; say which file with --baseline")
    if args.model and args.bundle:
        raise BenchError("give a bundle or --model, not both")
    now = _now(args)
    if args.update:
        write_baseline(now, args.baseline)
        print(f"{args.baseline}: {len(now.exact)} exact lines of {now.name}")
        return 0
    if args.baseline is None:
        print(
            "\n".join(f"{name}: {value}" for part in (now.exact, now.host, now.ratios) for name, value in part.items())
            + (f"\ninstructions of a run: {now.instructions}" if now.instructions else "")
        )
        return 0
    before = read_baseline(args.baseline)
    found = changes(now, before)
    print(
        "\n".join(
            (*(found or (f"PASS: {len(now.exact)} lines are as in {args.baseline}",)), *not_compared(now, before))
        )
    )
    if found:
        print(
            f"FAIL: lines that differ from {args.baseline}: {len(found)}; if that is meant, make them the baseline: "
            "--update"
        )
    return args.status if found else 0


def _now(args: argparse.Namespace) -> Baseline:
    options = run_options(args)
    if args.model:
        if words := [name for name in options if name not in PlanOptions.__dataclass_fields__]:
            raise BenchError(
                f"{words[0]} changes pictures and not the plan, which is all that --model has; leave it out"
            )
        facts = facts_of_model(args.model)
        return baseline_of_plan(make_plan(facts, PlanOptions.from_defaults(facts.defaults, **options)), facts)
    bundle = bundle_of(argparse.Namespace(bundle=args.bundle or "demo"), "lssgen bench exact")
    return baseline_of_bundle(bundle, options, prompt=args.prompt)  # type: ignore[arg-type]
