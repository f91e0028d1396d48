"""Holding a bundle to a budget: what the pytest plugin does."""

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

from lssgen.bench.cases import PROMPT, Case, Effort
from lssgen.bench.environment import environment
from lssgen.bench.history import append, points_of
from lssgen.bench.measure import measure
from lssgen.bench.results import BenchResult, CaseResult
from lssgen.bench.summary import LEAST_FOR
from lssgen.bundle import MANIFEST, read_bundle, sha256_of
from lssgen.engines.registry import open_backend
from lssgen.errors import BenchError
from lssgen.paths import find_bundle

Budget = Mapping[str, object]
"""Most milliseconds of a percentile, by its name: "p50", "p90"; None: not asked. A test may give anything."""


def held(
    bundle: Path,
    *,
    name: str,
    budget: Budget,
    engine: str,
    words: Mapping[str, Any],
    runs: int,
    history: str,
    options: Mapping[str, Any],
) -> tuple[CaseResult, str]:
    """Measure a bundle; the result, and what is to be said where it broke the budget, else "".

    Raises:
        BenchError: There is no budget, or too few runs for one.
        LssgenError: The bundle cannot be run as asked.
    """
    asked = _limits(budget)
    for which in asked:
        if runs < LEAST_FOR[which]:
            raise BenchError(f"{runs} runs are too few for {which}; it needs {LEAST_FOR[which]} (--lssgen-runs)")
    found = read_bundle(find_bundle(bundle))
    case = Case(name=name, options=dict(options))
    result = measure(found, lambda: open_backend(engine, **words), case, Effort(runs=runs))
    if history:
        whole = BenchResult(
            bundle={
                "name": found.manifest.facts.name,
                "folder": str(found.folder),
                "manifest_sha256": sha256_of(found.folder / MANIFEST),
            },
            engine=engine,
            prompt=PROMPT,
            environment=environment({}),
            cases=(result,),
        )
        append(points_of(whole), Path(history))
    return result, _complaint(result, asked)


def _limits(budget: Budget) -> dict[str, float]:
    """The percentiles that are held to something.

    Raises:
        BenchError: Nothing is, or something is held to what cannot be a time.
    """
    found: dict[str, float] = {}
    for which, most in budget.items():
        if most is None:
            continue
        if not isinstance(most, int | float) or not 0 < most < inf:  # NaN neither: nothing is above it
            raise BenchError(f"{which}_ms is {most!r}; it must be a number of milliseconds above 0")
        found[which] = most
    if not found:
        raise BenchError("no budget was given; say p50_ms=... or p90_ms=...")
    return found


def _complaint(result: CaseResult, budget: Mapping[str, float]) -> str:
    latency = result.request_latency_ms
    over = [
        f"{which} is {getattr(latency, which):.1f} ms, over its budget of {most:g} ms"
        for which, most in budget.items()
        if getattr(latency, which) > most
    ]
    if not over:
        return ""
    steps = " + ".join(f"{stage.stage_ms.p50:.1f}" for stage in result.stages)
    where = f"text {result.text_ms.p50:.1f}, stages {steps}, decode {result.decode_ms.p50:.1f} ms"
    return "; ".join((*over, f"where it goes: {where}", *result.complaints))
