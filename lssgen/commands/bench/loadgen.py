"""lssgen bench loadgen: MLPerf's LoadGen in front of a bundle."""

import argparse
from pathlib import Path
from typing import get_args

from lssgen.bench.cases import wordings
from lssgen.bench.loadgen import LEAST_QUERIES, Scenario, run_loadgen
from lssgen.commands.bench.shared import add_bundle, bundle_of, opener, run_options
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, one_of, within
from lssgen.runtime import Pipeline

EXAMPLES = ("demo --set height=64 --set width=64", "demo --scenario Offline --queries 128 --outdir logs")

SHOWN = (
    "Result is", "90.0th percentile latency (ns)", "* Early stopping 90.0th percentile estimate",
    "Samples per second", "Mean latency (ns)",
)  # fmt: skip


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "[BUNDLE] [OPTION ...]", EXAMPLES)
    add_bundle(parser)
    scenarios = get_args(Scenario)
    parser.add_argument(
        "--scenario", type=one_of(scenarios), default=scenarios[0], metavar="{" + ",".join(scenarios) + "}",
        help="how queries come; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--queries", type=within(LEAST_QUERIES, 1_000_000, integer), default=LEAST_QUERIES, metavar="N",
        help="how many; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--outdir", type=Path, default=Path("loadgen"), metavar="DIR", help="LoadGen's logs; default: %(default)s"
    )
    return parser


def work(args: argparse.Namespace) -> int:
    """Let LoadGen measure, and tell."""
    bundle, options = bundle_of(args, "lssgen bench loadgen"), run_options(args)
    opened = opener(build_parser("lssgen bench loadgen"), args)
    words = wordings(args.prompt, args.queries)
    with Pipeline(bundle, opened()) as pipeline:
        pipeline(words[0], **options)
        said = run_loadgen(lambda index: pipeline(words[index], **options), args.scenario, args.queries, args.outdir)
    print("\n".join(f"{name}: {said[name]}" for name in SHOWN if name in said))
    return 0 if said.get("Result is") == "VALID" else 1
