"""How cost grows: steps over sizes, and predicted against measured ratios of stages and one stage.

    python -m benchmarks.cpu.costs --work DIR [--rounds 5] [--threads 1]

Costs are measured at some sizes and predict others; ratios are medians over rounds in which both ways are painted in
turn, by the processor's time where there is one thread. Results go to benchmarks/results/cpu_costs.json and .png.
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cpu.contestants import engine_of
from benchmarks.cpu.models import bundle_of
from benchmarks.cpu.turns import conditions, in_turn, times_as_fast
from lssgen.bench.cases import Case, Effort
from lssgen.bench.environment import environment
from lssgen.bench.guarantee import costs_of
from lssgen.bench.measure import measure
from lssgen.bench.plots import plot_cost
from lssgen.bench.results import BenchResult
from lssgen.engines.demand import branch_counts
from lssgen.plan import predicted_speedup
from lssgen.plan.timing import predicted_time_ratio
from lssgen.runtime import Pipeline

RESULTS = Path(__file__).parents[1] / "results" / "cpu_costs.json"

MEASURED_AT = (64, 128, 256)
"""Picture sizes at which costs are measured, in one stage."""

ASKED: tuple[Mapping[str, Any], ...] = (
    {"height": 256, "width": 256, "num_inference_steps": 20},
    {"height": 256, "width": 256, "num_inference_steps": 40},
    {"height": 192, "width": 192, "num_inference_steps": 20, "min_resolution": 96},
    {"height": 256, "width": 256, "num_inference_steps": 20, "start_sigma": 0.5},
    {"height": 256, "width": 256, "num_inference_steps": 20, "min_resolution": 64},
)
"""Runs whose ratio is predicted and measured."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "auto"])
    args = parser.parse_args()
    bundle = bundle_of("demo", args.work)
    facts = bundle.manifest.facts
    rows: list[dict[str, Any]] = []
    for name in args.engines:
        opened = partial(engine_of, name, args.threads)
        cases = [
            measure(bundle, opened, Case(name=f"{size}", options={"height": size, "width": size, "min_resolution": 64}),
                    Effort(runs=7))
            for size in MEASURED_AT
        ]  # fmt: skip
        costs = costs_of(cases, facts, max(branch_counts(bundle.manifest)))
        result = BenchResult(bundle={"name": "demo"}, engine=name, environment=environment({}), cases=tuple(cases))
        plot_cost(result, RESULTS.with_name(f"cpu_costs_{name}.png"))
        with Pipeline(bundle, opened()) as pipeline:
            for asked in ASKED:
                staged, single = pipeline.plan(**asked), pipeline.plan(**{**asked, "start_sigma": 1.0})
                works = {
                    "staged": partial(pipeline, "a red circle", **asked),
                    "single": partial(pipeline, "a red circle", **{**asked, "start_sigma": 1.0}),
                }
                times = in_turn(works, args.rounds, _unheard)
                row = {
                    "engine": name, "size": asked["height"], "steps": asked["num_inference_steps"],
                    "options": dict(asked),
                    "by_arithmetic": predicted_speedup(staged, facts),
                    "by_costs": predicted_time_ratio(staged, single, facts, costs),
                    "measured": times_as_fast(times, "staged", "single", "cpu" if args.threads == 1 else "wall"),
                    "measured_wall": times_as_fast(times, "staged", "single", "wall"),
                }  # fmt: skip
                rows.append(row)
                print(row, flush=True)
        RESULTS.write_text(json.dumps({"conditions": conditions(args.threads), "rows": rows}, indent=2) + "\n")


def _unheard(said: str) -> None:
    del said


if __name__ == "__main__":
    main()
