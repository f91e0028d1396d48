"""lssgen bench BUNDLE: measure cases, one after another, into a table, a file, a history and plots."""

import argparse
import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lssgen.bench.cases import Case, Effort, Grid, cases_of
from lssgen.bench.environment import differences, environment, facts_that_differ
from lssgen.bench.history import append, points_of
from lssgen.bench.measure import measure_all
from lssgen.bench.plots import plot_cost, plot_quality, plot_stages
from lssgen.bench.results import BenchResult, CaseResult, read_result, write_result
from lssgen.bench.tables import as_table, conditions
from lssgen.bundle import Bundle
from lssgen.commands.bench.shared import add_bundle, bundle_of, exit_status, identity, run_options, watched
from lssgen.commands.engine_options import engine_words
from lssgen.commands.flags import add_flags, given
from lssgen.commands.parser import Parser
from lssgen.commands.values import number
from lssgen.engines.base import Backend
from lssgen.engines.demand import branch_counts
from lssgen.engines.registry import open_backend, words_of
from lssgen.errors import BenchError, MismatchError
from lssgen.plan.timing import step_work
from lssgen.runtime.advice import known_of

_LOG = logging.getLogger("lssgen")


def add_measuring(parser: Parser) -> None:
    """Flags of a measurement."""
    add_bundle(parser)
    add_flags(parser, Effort)
    add_flags(parser, Grid)
    group = parser.group("output")
    group.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="results as JSON, written after every case; run again to go "
        "on; default: none",
    )  # fmt: skip
    group.add_argument("--markdown", action="store_true", help="the table in Markdown")
    group.add_argument("--plots", type=Path, metavar="DIR", help="plots of stages and costs; default: none")
    group.add_argument(
        "--quality", type=Path, metavar="FILE.csv", help="with columns case and quality, for a plot against latency; "
        "default: none",
    )  # fmt: skip
    group.add_argument("--history", type=Path, metavar="FILE", help="add the medians to this JSONL; default: none")
    group.add_argument(
        "--label", default="", metavar="TEXT", help="name of these lines, such as a commit; default: none"
    )
    gate = parser.group("gate")
    gate.add_argument(
        "--baseline", type=Path, metavar="FILE", help="an earlier -o of the same machine, bundle and version to hold "
        "medians to; noise counts, see the action compare; default: none",
    )  # fmt: skip
    gate.add_argument(
        "--tolerance", type=number, default=0.1, metavar="X", help="share that a median may be above the baseline's; "
        "default: %(default)s",
    )  # fmt: skip
    gate.add_argument(
        "--status", type=exit_status, default=1, metavar="N", help="exit status if one is; default: %(default)s"
    )


def measured_case_by_case(parser: Parser, args: argparse.Namespace) -> int:
    """Measure, print and write; the exit status."""
    if args.tolerance < 0:
        raise BenchError(f"tolerance is {args.tolerance:g}; it must be at least 0")
    effort, grid = Effort(**given(args, Effort)), Grid(**given(args, Grid))
    cases = cases_of(grid, run_options(args))
    bundle, words = bundle_of(args, parser.prog), engine_words(parser, args)

    def opened(case: Case) -> Backend:
        engine = case.engine or args.engine
        return open_backend(engine, **words_of(engine, words))

    backend = opened(cases[0])
    where = environment(backend.describe())
    empty = BenchResult(bundle=identity(bundle), engine=args.engine, environment=where)
    before = _baseline(args.baseline, empty) if args.baseline else None
    known = _known(args.output, empty)
    done: list[CaseResult] = []
    with watched(args, _LOG.info) as watch:
        for case in measure_all(bundle, opened, cases, effort, known=known, prompt=args.prompt, on_run=watch.at):
            done.append(case)
            if args.output:
                write_result(_with(empty, done), args.output)
    result = _with(empty, done)
    print(as_table(result, markdown=args.markdown))
    print(f"\n{conditions(result)}")
    _kept(args, result, known, _predicted(bundle, backend, result))
    return _held(args, result, before, cases)


def _predicted(bundle: Bundle, backend: Backend, result: BenchResult) -> dict[int, float]:
    """What the plan predicts of a step of one picture, by tokens, from the costs that the bundle keeps of this engine;
    empty where it keeps none."""
    measured, facts = known_of(bundle, backend), bundle.manifest.facts
    if measured is None or measured.costs is None:
        return {}
    line, passes = measured.costs.step, max(branch_counts(bundle.manifest))
    stages = [stage for case in result.cases for stage in case.stages]
    return {stage.tokens: line.at(*step_work(facts, stage.cells, passes)) for stage in stages}


def _kept(
    args: argparse.Namespace, result: BenchResult, known: Mapping[str, CaseResult], predicted: Mapping[int, float]
) -> None:
    if args.history:
        # What an earlier run has measured, it has written.
        fresh = [case for case in result.cases if case is not known.get(case.name)]
        append(points_of(_with(result, fresh), args.label), args.history)
    if args.plots:
        plot_stages(result, args.plots / "stages.png")
        plot_cost(result, args.plots / "cost.png", predicted)
        if args.quality:
            plot_quality(result, read_quality(args.quality), args.plots / "quality.png")


def _held(
    args: argparse.Namespace, result: BenchResult, before: BenchResult | None, cases: Sequence[Case]
) -> int:  # fmt: skip
    if before is None:
        return 0
    known = {case.name: case for case in before.cases}
    slower = 0
    for case, now in zip(cases, result.cases, strict=True):
        if case.name not in known:
            raise MismatchError(f"{args.baseline} has no case {case.name!r}; measure the same cases for it")
        if faults := facts_that_differ("engine's", now.backend, known[case.name].backend):
            raise MismatchError(f"{args.baseline} has {case.name!r} of other engines: {'; '.join(faults[:4])}")
        ratio = now.request_latency_ms.p50 / known[case.name].request_latency_ms.p50
        verdict = "FAIL" if ratio > 1 + args.tolerance else "PASS"
        slower += verdict == "FAIL"
        print(f"{verdict}  {case.name}: {100 * (ratio - 1):+.1f} % against {args.baseline}")
    return args.status if slower else 0


def _baseline(path: Path, now: BenchResult) -> BenchResult:
    """The baseline, if its numbers may be compared with what will be measured now.

    Raises:
        BenchError: It is missing or damaged.
        MismatchError: It is of another machine, bundle or version.
    """
    before = read_result(path)
    if faults := unlike(before, now):
        raise MismatchError(
            f"{path} cannot be compared with: {'; '.join(faults[:4])}. Measure a baseline here, or use lssgen bench "
            "compare, which measures both sides itself"
        )
    return before


def _known(path: Path | None, now: BenchResult) -> dict[str, CaseResult]:
    """Cases of a measurement that was stopped."""
    if path is None or not path.exists():
        return {}
    before = read_result(path)
    if faults := unlike(before, now):
        raise MismatchError(f"{path} is another measurement: {'; '.join(faults[:4])}; choose another file")
    _LOG.info("going on with the %d cases in %s", len(before.cases), path)
    return {case.name: case for case in before.cases}


def unlike(before: BenchResult, now: BenchResult) -> list[str]:
    """Why two results cannot be compared."""
    faults: list[str] = []
    one, other = (result.bundle.get("manifest_sha256", "")[:12] for result in (before, now))
    if one != other:
        faults.append(f"its bundle is {before.bundle.get('name')} {one}, and this is {now.bundle['name']} {other}")
    if before.engine != now.engine:
        faults.append(f"its engine is {before.engine}, and this is {now.engine}")
    return faults + differences(now.environment, before.environment)


def read_quality(path: Path) -> dict[str, float]:
    """Quality by case, from a CSV file with these two columns.

    Raises:
        BenchError: It cannot be read, or has other columns.
    """
    try:
        with path.open(newline="") as file:
            return {row["case"]: float(row["quality"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"{path} needs a column case and a column quality with numbers ({error})") from error


def _with(result: BenchResult, cases: Sequence[CaseResult]) -> BenchResult:
    return BenchResult(bundle=result.bundle, engine=result.engine, environment=result.environment, cases=tuple(cases))
