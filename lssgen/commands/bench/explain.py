"""lssgen bench explain: which engine computes which component, and why."""

import argparse
from collections.abc import Sequence

from lssgen.commands.bench.shared import bundle_of
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, within
from lssgen.engines.cpu.choice import Choice
from lssgen.engines.options import MOST_THREADS, THREADS, OrtOptions
from lssgen.engines.registry import open_backend
from lssgen.measured import Guarantee, fault_of
from lssgen.runtime.advice import known_of

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
    if fault := fault_of(bundle):
        print(f"{fault}: measure again with lssgen bench guarantee {bundle.folder}")
    for engine in ("auto", *candidates()):
        known = known_of(bundle, open_backend(engine, threads=args.threads))
        if known:
            print("\n".join((f"measured {known.written}:", *guarantees(engine, known.guarantees))))
    return 0


def told(choice: Choice) -> list[str]:
    """What was chosen for a component, and why: lines for people."""
    lines = [f"{choice.graph}: {choice}"]
    for one in choice.sizes:
        where = f"{one.size_px[1]}x{one.size_px[0]}: " if one.size_px[1] else ""
        lines += [f"    {where}{one.engine}, {one.reason}", *(f"        {trial}" for trial in one.trials)]
    return lines


def guarantees(engine: str, known: Sequence[Guarantee]) -> list[str]:
    """What was measured of stages and one stage, and of the engine and its reference: a line a size."""
    uses = {"staged": "stages are used", "single": "one stage is used", "undecided": "as asked"}
    return [
        f"{engine}, {one.width} x {one.height} px: stages take {one.staged_over_single} of the time of one stage: "
        + uses[one.faster]
        + (f"; it takes {one.engine_over_reference} of {one.reference}'s time" if one.engine_over_reference else "")
        + (": choose that one" if one.outrun else "")
        for one in known
    ]
