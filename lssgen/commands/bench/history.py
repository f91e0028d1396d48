"""lssgen bench history: curves of a JSONL file, and where they changed."""

import argparse
from pathlib import Path

from lssgen.bench.history import LEAST_POINTS, changes, curves, plot_history, plot_name, read_history, see_ruptures
from lssgen.bench.plots import see_plotting
from lssgen.bench.records import see_place
from lssgen.commands.bench.shared import exit_status
from lssgen.commands.parser import Parser
from lssgen.errors import BenchError

EXAMPLES = ("latency.jsonl", "latency.jsonl --plots plots --status 1")


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "FILE [OPTION ...]", EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="what lssgen bench --history has written; required")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="a plot for every curve; default: none")
    parser.add_argument(
        "--status", type=exit_status, default=0, metavar="N",
        help="exit status if the last change of a curve is a slowing; default: %(default)s",
    )  # fmt: skip
    return parser


def work(args: argparse.Namespace) -> int:
    """Tell; the exit status.

    Raises:
        BenchError: The file is damaged or empty, or something is not installed or cannot be written.
    """
    if not (known := curves(read_history(args.file))):
        raise BenchError(f"{args.file} has no measurement; add some with lssgen bench BUNDLE --history {args.file}")
    if any(len(points) >= LEAST_POINTS for points in known.values()):
        see_ruptures()
    if args.plots:
        see_plotting()
        see_place(args.plots, folder=True)
    slower = False
    for curve, points in known.items():
        print(f"{', '.join(curve)}: {len(points)} points, the last {points[-1].image_latency_ms:.3g} ms")
        if args.plots:
            plot_history(points, args.plots / plot_name(points[0]))
        if len(points) < LEAST_POINTS:
            print(f"    too few to look for changes; {LEAST_POINTS} are needed")
            continue
        found = changes(points)
        print("\n".join(f"    {change}" for change in found) or "    no change of level")
        slower = slower or bool(found and found[-1].after > found[-1].before)
    return args.status if slower else 0
