"""Which way is the faster, per size, and what the parts of a run cost: measured in turn and written into the bundle."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, cast

from lssgen.bench.cases import PROMPT, wordings
from lssgen.bench.measure import OnRun, unheard
from lssgen.bench.results import CaseResult
from lssgen.bench.stats import LEAST_PAIRS, hodges_lehmann, log_ratio
from lssgen.errors import BenchError
from lssgen.measured import Guarantee, Measured, Ratio
from lssgen.plan import ModelFacts
from lssgen.plan.timing import Line, TimeCosts
from lssgen.runtime import Options, Pipeline

Paint = Callable[[str, Mapping[str, Any]], float]
"""Paints a prompt with some options; seconds."""


def painted(pipeline: Pipeline) -> Paint:
    """Seconds of one run of a pipeline."""

    def paint(prompt: str, options: Mapping[str, Any]) -> float:
        began = perf_counter()
        pipeline(prompt, **options)
        return perf_counter() - began

    return paint


def guarantee(
    staged: Pipeline,
    size: tuple[int, int],
    options: Mapping[str, Any],
    *,
    reference: Pipeline | None = None,
    reference_name: str = "",
    pairs: int = 12,
    prompt: str = PROMPT,
    on_run: OnRun = unheard,
) -> Guarantee | None:
    """Measure both ways of painting one size, in the order A B B A; None where the plan has one stage anyway.

    Args:
        staged: The bundle on the engine in question.
        size: (height, width) of the picture in pixels.
        options: Options of the run, without its size.
        reference: The same bundle on the reference engine, if the engine is to be compared with it.
        reference_name: Name of that engine.
        pairs: Pairs of pictures; `LEAST_PAIRS` at least.
        prompt: Words of the prompts.
        on_run: Told of every pair.

    Raises:
        BenchError: Too few pairs.
        EngineError: One of the engines cannot run it.
    """
    if pairs < LEAST_PAIRS:
        raise BenchError(f"{pairs} pairs are too few for an interval; measure {LEAST_PAIRS} or more")
    both = cast(Options, {**options, "height": size[0], "width": size[1]})
    if len(staged.plan(**both).stages) == 1:
        return None
    paint = painted(staged)
    plain, single = None if reference is None else painted(reference), {**both, "start_sigma": 1.0}

    def measured(against: str, other: Paint, options: Mapping[str, Any]) -> Ratio:
        hear = partial(on_run, f"{size[1]}x{size[0]} against {against}")
        return _ratio(paired(other, options, paint, both, pairs, prompt, hear))

    return Guarantee(
        width=size[1],
        height=size[0],
        staged_over_single=measured("one stage", paint, single),
        engine_over_reference=None if plain is None else measured(reference_name, plain, both),
        reference="" if plain is None else reference_name,
    )


def paired(
    a: Paint,
    a_options: Mapping[str, Any],
    b: Paint,
    b_options: Mapping[str, Any],
    pairs: int,
    prompt: str,
    hear: Callable[[int, int], None],
) -> list[float]:
    """Log ratios of B's time over A's, one for each block A B B A, after a run of each."""
    words = iter(wordings(prompt, 2 + 4 * pairs))
    a(next(words), a_options)
    b(next(words), b_options)
    found: list[float] = []
    for _ in range(pairs):
        first = a(next(words), a_options)
        second, third = b(next(words), b_options), b(next(words), b_options)
        found.append(log_ratio((first, a(next(words), a_options)), (second, third)))
        hear(len(found), pairs)
    return found


def costs_of(cases: Sequence[CaseResult], facts: ModelFacts, passes: int) -> TimeCosts:
    """The costs of a run's parts, from cases of one picture at several sizes.

    Args:
        cases: Results of `lssgen.bench.measure`; those of larger batches are left out. The first way to the next size
            stands for those that are not among them.
        facts: Facts of the model.
        passes: Guidance branches of a step.

    Raises:
        BenchError: No case of one picture.
    """
    alone = [case for case in cases if case.batch == 1]
    if not alone:
        raise BenchError("costs are those of one picture at a time; measure with --batches 1")
    stages = [stage for case in alone for stage in case.stages]
    cost = facts.cost

    def work(cells: int) -> tuple[float, float]:
        return passes * (cost.fixed + cost.per_cell * cells) / 1e9, passes * cost.per_cell_pair * cells**2 / 1e9

    passages: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for case in alone:
        space = str(case.options.get("scaling_space", facts.defaults.scaling_space))
        passages[space] += [(s.cells / 1e3, s.transition_ms.p50) for s in case.stages if s.transition_ms is not None]
    lines = {space: _line(found) for space, found in passages.items() if found}
    rest = [
        max(s.stage_ms.p50 - s.steps * s.step_ms.p50 - (s.transition_ms.p50 if s.transition_ms else 0.0), 1e-3)
        for s in stages
    ]
    once = [
        case.request_latency_ms.p50 - case.decode_ms.p50 - sum(stage.stage_ms.p50 for stage in case.stages)
        for case in alone
    ]
    return TimeCosts(
        run=max(median(once), 0.0),
        step=Line.through([work(stage.cells) for stage in stages], [stage.step_ms.p50 for stage in stages]),
        stage=Line.through([(stage.cells / 1e3,) for stage in stages], rest),
        transition=next(iter(lines.values()), _line([])),
        transitions=lines,
        decode=_line([(case.stages[-1].cells / 1e3, case.decode_ms.p50) for case in alone]),
    )


def _ratio(log_ratios: Sequence[float]) -> Ratio:
    found = hodges_lehmann(log_ratios, 0.95)
    return Ratio(ratio=found.ratio, lower=found.lower, upper=found.upper, pairs=len(log_ratios))


def measured_now(costs: TimeCosts | None, sizes: int, guarantees: Sequence[Guarantee]) -> Measured:
    """What to write beside a bundle: the costs, the number of sizes that they were measured at, and guarantees."""
    written = datetime.now(UTC).isoformat(timespec="seconds")
    return Measured(written=written, costs=costs, sizes=sizes, guarantees=tuple(guarantees))


def _line(points: Sequence[tuple[float, float]]) -> Line:
    if not points:
        return Line(fixed=0.0, per=(0.0,))
    return Line.through([(cells,) for cells, _ in points], [ms for _, ms in points])
