"""lssgen bench BUNDLE: measure cases, one after another, into a table, a file, a history and plots."""

import argparse
import csv
import logging
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

import msgspec

from lssgen.bench.cases import Case, Effort, Grid, cases_of
from lssgen.bench.environment import differences, environment, facts_that_differ
from lssgen.bench.history import append, points_of
from lssgen.bench.measure import measure_all
from lssgen.bench.plots import plot_cost, plot_quality, plot_stages, see_plotting
from lssgen.bench.records import see_place
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
from lssgen.runtime.options import request_from_options

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
    quality = _seen_places(args, cases)
    bundle, words = bundle_of(args, parser.prog), engine_words(parser, args)

    def opened(case: Case) -> Backend:
        engine = case.engine or args.engine
        return open_backend(engine, **words_of(engine, words))

    # All before the first is measured, so that none ends the command when others have taken an hour.
    backends = {case.engine or args.engine: opened(case) for case in cases}
    for case in cases:
        request_from_options(bundle, case.run_options)
    engines, backend = ", ".join(backends), next(iter(backends.values()))
    where = environment(backend.describe())
    empty = BenchResult(bundle=identity(bundle), engine=engines, prompt=args.prompt, environment=where)
    before = _baseline(args.baseline, empty, cases) if args.baseline else {}
    known = _known(args.output, empty)
    done: list[CaseResult] = []
    with watched(args, _LOG.info) as watch:
        for case in measure_all(bundle, opened, cases, effort, known=known, prompt=args.prompt, on_run=watch.at):
            done.append(case)
            if args.output:
                write_result(_with(empty, _beside(done, known)), args.output)
    result = _with(empty, done)
    print(as_table(result, markdown=args.markdown))
    print(f"\n{conditions(result)}")
    _kept(args, result, known, _predicted(bundle, backend, result), quality)
    return _held(args, result, before)


def _seen_places(args: argparse.Namespace, cases: Sequence[Case]) -> Mapping[str, float]:
    """Quality by case; and all that is to be written can be.

    Raises:
        BenchError: Something cannot be written, or the file of qualities is of no use.
    """
    if args.quality and not args.plots:
        raise BenchError("--quality is for a plot; say where with --plots DIR")
    for place, folder in ((args.output, False), (args.history, False), (args.plots, True)):
        if place is not None:
            see_place(place, folder=folder)
    if args.plots:
        see_plotting()
    return _quality_of(args.quality, cases) if args.quality else {}


def _quality_of(path: Path, cases: Sequence[Case]) -> Mapping[str, float]:
    found, names = read_quality(path), [case.name for case in cases]
    if not any(name in found for name in names):
        raise BenchError(f"{path} has none of the cases that are measured: {'; '.join(names[:4])}")
    return found


def _beside(done: Sequence[CaseResult], known: Mapping[str, CaseResult]) -> list[CaseResult]:
    """What is measured now, and what the file has besides: other cases, and those that are still to be measured."""
    return [*done, *(case for name, case in known.items() if name not in {one.name for one in done})]


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
    args: argparse.Namespace,
    result: BenchResult,
    known: Mapping[str, CaseResult],
    predicted: Mapping[int, float],
    quality: Mapping[str, float],
) -> None:
    if args.history:
        # What an earlier run has measured, it has written.
        fresh = [case for case in result.cases if case is not known.get(case.name)]
        append(points_of(_with(result, fresh), args.label), args.history)
    if args.plots:
        plot_stages(result, args.plots / "stages.png")
        plot_cost(result, args.plots / "cost.png", predicted)
        if quality:
            plot_quality(result, quality, args.plots / "quality.png")


def _held(args: argparse.Namespace, result: BenchResult, before: Mapping[str, CaseResult]) -> int:
    slower = 0
    for now in result.cases if before else ():
        earlier = before[now.name]
        if faults := facts_that_differ("engine's", now.backend, earlier.backend):
            raise MismatchError(f"{args.baseline} has {now.name!r} of other engines: {'; '.join(faults[:4])}")
        ratio = now.request_latency_ms.p50 / earlier.request_latency_ms.p50
        verdict = "FAIL" if ratio > 1 + args.tolerance else "PASS"
        slower += verdict == "FAIL"
        print(f"{verdict}  {now.name}: {100 * (ratio - 1):+.1f} % against {args.baseline}")
    return args.status if slower else 0


def _baseline(path: Path, now: BenchResult, cases: Sequence[Case]) -> Mapping[str, CaseResult]:
    """The baseline's cases by name, if its numbers may be compared with what will be measured now.

    Raises:
        BenchError: It is missing or damaged.
        MismatchError: It is of another machine, bundle, version or prompt, or lacks a case.
    """
    before = read_result(path)
    if faults := unlike(before, now):
        raise MismatchError(
            f"{path} cannot be compared with: {'; '.join(faults[:4])}. Measure a baseline here, or use lssgen bench "
            "compare, which measures both sides itself"
        )
    known = {case.name: case for case in before.cases}
    for case in cases:
        if case.name not in known:
            raise MismatchError(
                f"{path} has no case {case.name!r}, but {'; '.join(list(known)[:4]) or 'none'}; measure the same cases "
                "for it"
            )
    return known


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
    if before.prompt != now.prompt:
        faults.append(f"its prompt is {before.prompt[:60]!r}, and this is {now.prompt[:60]!r}")
    return faults + differences(now.environment, before.environment)


def read_quality(path: Path) -> dict[str, float]:
    """Quality by case, from a CSV file with these two columns.

    Raises:
        BenchError: It cannot be read, or has other columns.
    """
    try:
        with path.open(newline="") as file:
            found = {row["case"]: float(row["quality"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise BenchError(f"{path} needs a column case and a column quality with numbers ({error})") from error
    if strange := [name for name, value in found.items() if not isfinite(value)]:
        raise BenchError(f"{path} gives {strange[0]!r} a quality that is not finite; leave out what has none")
    return found


def _with(result: BenchResult, cases: Sequence[CaseResult]) -> BenchResult:
    return msgspec.structs.replace(result, cases=tuple(cases))
