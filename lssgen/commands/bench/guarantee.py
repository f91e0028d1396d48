"""lssgen bench guarantee: stages or one stage, engine or reference, measured per size and written into the bundle."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from lssgen.bench.cases import Case, Effort
from lssgen.bench.guarantee import costs_of, guarantee, measured_now
from lssgen.bench.measure import OnRun, measure
from lssgen.bench.records import see_place
from lssgen.bench.results import CaseResult
from lssgen.bundle import Bundle
from lssgen.commands.bench.explain import guarantees
from lssgen.commands.bench.shared import add_bundle, bundle_of, run_options, watched
from lssgen.commands.engine_options import engine_words
from lssgen.commands.parser import Parser
from lssgen.commands.values import integer, rows_first, several, within
from lssgen.engines.demand import Size, branch_counts
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import ENGINES, open_backend, words_of
from lssgen.errors import BenchError, EngineError
from lssgen.measured import MEASURED, Guarantee, Measured, fault_of, place_of, read_measured, write_measured
from lssgen.plan.timing import TimeCosts
from lssgen.runtime import Options, Pipeline
from lssgen.runtime.options import request_from_options

EXAMPLES = ("demo --engine openvino", "bundles/sd3 --sizes 512,1024 --pairs 20")

_LOG = logging.getLogger("lssgen")
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
    """Measure and write, size by size: what a run that is stopped has measured stays.

    Raises:
        BenchError: The bundle cannot be written.
        EngineError: The engine cannot run it.
    """
    bundle, options = bundle_of(args, "lssgen bench guarantee"), run_options(args)
    if args.forget:
        bundle.path(MEASURED).unlink(missing_ok=True)
        return 0
    _refuse_fixed(options)
    see_place(bundle.path(MEASURED))
    if fault := fault_of(bundle):
        _LOG.warning("%s; what is measured now takes its place", fault)
    words = engine_words(build_parser("lssgen bench guarantee"), args)
    backend = open_backend(args.engine, **words)
    # Its own name: "auto" is ONNX Runtime where that is alone, and runs ask by what they find.
    job = _Job(bundle, backend.name, words, args.pairs, args.prompt)
    place, passes = place_of(backend.name, backend.describe()), max(branch_counts(bundle.manifest))
    # Said aloud: else what an earlier day wrote would decide which way is measured now.
    options.setdefault("start_sigma", bundle.manifest.facts.defaults.start_sigma)
    known = read_measured(bundle, place)
    found: list[Guarantee] = list(known.guarantees) if known else []
    sizes = tuple(dict.fromkeys(args.sizes)) or bundle.manifest.resolutions
    for size in sizes:  # all before the first is measured
        request_from_options(bundle, cast(Options, {**options, "height": size[0], "width": size[1]}))
    cases: list[CaseResult] = []
    with watched(args, _LOG.info) as watch:
        for done, size in enumerate(sizes, start=1):
            now, made = job.measured(size, options, watch.at)
            cases += now
            found = [one for one in found if (one.height, one.width) != size] + ([made] if made else [])
            costs = costs_of(cases, bundle.manifest.facts, passes)
            _write(bundle, place, measured_now(*better_costs(known, costs, done), found))
            said = guarantees(job.engine, (made,)) if made else [f"{now[0].name}: one stage anyway"]
            print("\n".join((*said, *(complaint for case in now for complaint in case.complaints))), flush=True)
    if known and known.costs and known.sizes > len(sizes):
        _LOG.info(
            "costs stay those of %d sizes, measured earlier; measure as many sizes in one call for new ones",
            known.sizes,
        )
    return 0


_FIXED = {
    "stage_steps": "it fixes the number of stages, and stages are compared with one",
    "start_sigma": "at 1 there is one stage, and nothing to compare it with",
    "height": "sizes are named with --sizes",
    "width": "sizes are named with --sizes",
    "batch": "costs are those of one picture at a time",
    "num_images": "costs are those of one picture at a time",
}
"""Options of runs that leave nothing to compare, and why."""


def _refuse_fixed(options: Mapping[str, Any]) -> None:
    for name, why in _FIXED.items():
        if name in options and (name != "start_sigma" or options[name] == 1):
            raise BenchError(f"leave out --set {name}=...: {why}")
    if "," in str(options.get("cached_steps") or ""):
        raise BenchError("leave out --set cached_steps=...,...: with a part for every stage it fixes their number")


def better_costs(known: Measured | None, now: TimeCosts, sizes: int) -> tuple[TimeCosts, int]:
    """The costs to keep, and the number of sizes that they were measured at: those of now, unless earlier ones are of
    more sizes, which say more of all others."""
    if known and known.costs and known.sizes > sizes:
        return known.costs, known.sizes
    return now, sizes


@dataclass(frozen=True, slots=True)
class _Job:
    """What is measured, whatever the size.

    Attributes:
        bundle, engine, words: Bundle, and the engine in question with its options.
        pairs, prompt: Pairs of pictures and words of the prompts.
    """

    bundle: Bundle
    engine: str
    words: EngineOptions
    pairs: int
    prompt: str

    def measured(
        self, size: Size, options: Mapping[str, Any], hear: OnRun
    ) -> tuple[list[CaseResult], Guarantee | None]:  # fmt: skip
        """The parts of one size, by every way to the next one, and its guarantee; without the reference, and a line
        that says so, where that one cannot run."""
        own = {**options, "height": size[0], "width": size[1]}
        case, opened = Case(name=f"{size[1]}x{size[0]}", options=own), partial(open_backend, self.engine, **self.words)
        results = [
            measure(self.bundle, opened, one, _FEW, prompt=self.prompt, on_run=hear)
            for one in (case, *_other_ways(self.bundle, case))
        ]
        reference = ENGINES[self.engine].reference
        ask = partial(guarantee, size=size, options=own, pairs=self.pairs, prompt=self.prompt, on_run=hear)
        with Pipeline(self.bundle, opened()) as pipeline:
            if not reference:
                return results, ask(pipeline)
            try:
                with Pipeline(self.bundle, open_backend(reference, **words_of(reference, self.words))) as plain:
                    return results, ask(pipeline, reference=plain, reference_name=reference)
            except EngineError as error:
                _LOG.warning("%s is not compared with %s: %s", self.engine, reference, error)
                return results, ask(pipeline)


def _write(bundle: Bundle, place: str, measured: Measured) -> None:
    try:
        write_measured(bundle, place, measured)
    except OSError as error:
        raise BenchError(f"{bundle.path(MEASURED)} cannot be written: {error.strerror}") from error
