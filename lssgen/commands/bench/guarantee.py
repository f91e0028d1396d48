"""lssgen bench guarantee: stages or one stage, measured per size and written into the bundle."""

import argparse
import logging

from lssgen.bench.cases import Case, Effort
from lssgen.bench.guarantee import costs_of, guarantee, measured_now
from lssgen.bench.measure import measure
from lssgen.bench.results import CaseResult
from lssgen.bundle import Bundle
from lssgen.commands.bench.explain import guarantees
from lssgen.commands.bench.shared import add_bundle, bundle_of, opener, run_options
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, rows_first, several, within
from lssgen.engines.demand import branch_counts
from lssgen.engines.registry import open_backend
from lssgen.errors import BenchError
from lssgen.measured import MEASURED, Guarantee, place_of, write_measured
from lssgen.runtime import Pipeline
from lssgen.runtime.options import request_from_options

EXAMPLES = ("demo --engine openvino", "bundles/sd3 --sizes 512,1024 --pairs 20")

_LOG = logging.getLogger("lssgen")
_REFERENCE = "onnxruntime"
_TRANSITION = "transition_"
_FEW = Effort(runs=5, warmup=1)


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "[BUNDLE] [OPTION ...]", EXAMPLES)
    add_bundle(parser)
    parser.add_argument(
        "--sizes", type=several(rows_first), default=(), metavar="WxH,...", help="picture sizes; default: all that the "
        "bundle was exported for and that have stages",
    )  # fmt: skip
    parser.add_argument(
        "--pairs",
        type=within(6, 10_000, integer),
        default=12,
        metavar="N",
        help="pairs of pictures; default: %(default)s",
    )
    parser.add_argument("--forget", action="store_true", help="remove what was measured from the bundle, and end")
    return parser


def _other_ways(bundle: Bundle, case: Case) -> list[Case]:
    """The same run with every other way to the next size that the bundle has; none where it has one stage."""
    plan = request_from_options(bundle, case.run_options).plan
    spaces = [name.removeprefix(_TRANSITION) for name in bundle.manifest.graphs if name.startswith(_TRANSITION)]
    return [
        Case(name=f"{case.name}, {space}", options={**case.options, "scaling_space": space})
        for space in spaces
        if len(plan.stages) > 1 and space != plan.scaling_space
    ]


def work(args: argparse.Namespace) -> int:
    """Measure and write.

    Raises:
        BenchError: The bundle cannot be written, or no size has stages.
    """
    bundle, options = bundle_of(args, "lssgen bench guarantee"), run_options(args)
    if args.forget:
        bundle.path(MEASURED).unlink(missing_ok=True)
        return 0
    opened = opener(build_parser("lssgen bench guarantee"), args)
    # Said aloud: else what an earlier day wrote would decide which way is measured now.
    sigma = options.get("start_sigma", bundle.manifest.facts.defaults.start_sigma)
    sizes = args.sizes or bundle.manifest.resolutions
    found: list[Guarantee] = []
    cases: list[CaseResult] = []
    for size in sizes:
        own = {**options, "height": size[0], "width": size[1], "start_sigma": sigma}
        case = Case(name=f"{size[1]}x{size[0]}", options=own)
        cases.append(measure(bundle, opened, case, _FEW, prompt=args.prompt))
        cases += [measure(bundle, opened, other, _FEW, prompt=args.prompt) for other in _other_ways(bundle, case)]
        with Pipeline(bundle, opened()) as pipeline, Pipeline(bundle, open_backend(_REFERENCE)) as reference:
            other = None if args.engine == _REFERENCE else reference
            made = guarantee(pipeline, size, own, reference=other, pairs=args.pairs, prompt=args.prompt)
            if made is not None:
                found.append(made)
    place = place_of(args.engine, opened().describe())
    measured = measured_now(costs_of(cases, bundle.manifest.facts, max(branch_counts(bundle.manifest))), found)
    try:
        write_measured(bundle, place, measured)
    except OSError as error:
        raise BenchError(f"{bundle.path(MEASURED)} cannot be written: {error.strerror}") from error
    print(guarantees(args.engine, measured) if found else "no size has stages; the costs were measured and written")
    return 0
