"""lssgen bench explain: which engine computes which component, and why."""

import argparse

from lssgen.commands.bench.shared import bundle_of
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, within
from lssgen.engines.cpu.choice import Choice
from lssgen.engines.options import MOST_THREADS, THREADS, OrtOptions
from lssgen.engines.registry import open_backend
from lssgen.measured import Measured, place_of, read_measured

EXAMPLES = ("demo", "bundles/sd3 --threads 8")


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "[BUNDLE] [OPTION ...]", EXAMPLES)
    parser.add_argument(
        "bundle",
        nargs="?",
        default="demo",
        metavar="BUNDLE",
        help="folder or name of a bundle; default: the demo model",
    )
    parser.add_argument(
        "--threads", type=within(0, MOST_THREADS, integer), default=0, metavar="N", help=f"{THREADS}; default: 0"
    )
    parser.add_argument("--again", action="store_true", help="forget what was measured, and measure anew")
    return parser


def work(args: argparse.Namespace) -> int:
    """Tell."""
    from lssgen.engines.cpu.auto import AutoBackend, candidates

    bundle = bundle_of(args, "lssgen bench explain")
    backend = AutoBackend(OrtOptions(threads=args.threads))
    for graph in bundle.manifest.graphs:
        if args.again:
            backend.forget(bundle, graph)
        print("\n".join(told(backend.choice(bundle, graph))))
    if len(candidates()) == 1:
        print('only ONNX Runtime is installed; pip install "lssgen[openvino]" adds another engine')
    for engine in ("auto", *candidates()):
        known = read_measured(bundle, place_of(engine, open_backend(engine, threads=args.threads).describe()))
        if known:
            print(guarantees(engine, known))
    return 0


def told(choice: Choice) -> list[str]:
    """What was chosen for a component, and why: lines for people."""
    lines = [f"{choice.graph}: {choice}"]
    for one in choice.sizes:
        where = f"{one.size_px[1]}x{one.size_px[0]}: " if one.size_px[1] else ""
        lines += [f"    {where}{one.engine}, {one.reason}", *(f"        {trial}" for trial in one.trials)]
    return lines


def guarantees(engine: str, known: Measured) -> str:
    """What was measured of stages and one stage."""
    lines = [
        f"{engine}, {one.width} x {one.height} px: stages take {one.staged_over_single:.2f} "
        f"({one.lower:.2f} to {one.upper:.2f}) of the time of one stage: "
        + {"staged": "stages are used", "single": "one stage is used", "undecided": "as asked"}[one.faster]
        + (f"; {1 / one.engine_over_reference:.2f} times as fast as onnxruntime" if one.engine_over_reference else "")
        for one in known.guarantees
    ]
    return "\n".join((f"measured {known.written}:", *lines))
