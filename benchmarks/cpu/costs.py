"""How cost grows with resolution, steps, batch and stages: predicted and measured, as ratios to one run.

    python -m benchmarks.cpu.costs --work DIR [--models demo sd3-123m] [--engines onnxruntime auto] [--rounds 5]

The costs of a run's parts are measured at some sizes, in one stage, one picture at a time, as `lssgen bench guarantee`
stores them in a bundle; everything that is asked then is predicted from them and the plan's arithmetic. All runs take
turns in one process; a ratio is the median over rounds of two times of one round, by the clock, or with one thread by
the processor's time. Results go to benchmarks/results/cpu_costs.json, and the curves to cpu_costs_<model>.png.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cpu.contestants import engine_of
from benchmarks.cpu.models import bundle_of
from benchmarks.cpu.turns import clock_of, conditions, in_turn, timed_by, times_as_fast
from benchmarks.saving import save
from lssgen.bench.cases import Case, Effort
from lssgen.bench.guarantee import costs_of
from lssgen.bench.measure import measure
from lssgen.bench.results import CaseResult
from lssgen.bundle import Bundle
from lssgen.engines.demand import branch_counts
from lssgen.plan import stage_flops
from lssgen.plan.timing import TimeCosts, predicted_ms
from lssgen.runtime import Pipeline

RESULTS = Path(__file__).parents[1] / "results" / "cpu_costs.json"

Words = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a model.

    Attributes:
        measured_at: Picture sizes at which costs are measured, in one stage.
        base: Run that all others are compared with.
        axes: By the name of what grows: the value of each point and what it changes in the base.
    """

    measured_at: tuple[int, ...]
    base: Words
    axes: Mapping[str, Mapping[str, Words]]


def sized(*sides: int) -> dict[str, Words]:
    """Points of one stage each."""
    return {str(side): alone(side, min(sides)) for side in sides}


def alone(side: int, least: int) -> Words:
    """A square picture in one stage."""
    return {"height": side, "width": side, "start_sigma": 1.0, "min_resolution": least}


def counted(*steps: int) -> dict[str, Words]:
    return {str(count): {"num_inference_steps": count} for count in steps}


def batched(*batches: int) -> dict[str, Words]:
    return {str(batch): {"batch": batch, "num_images": batch} for batch in batches}


QUESTIONS: Mapping[str, Question] = {
    "demo": Question(
        measured_at=(64, 128, 256),
        base={"height": 256, "width": 256, "num_inference_steps": 20, "batch": 1, "num_images": 1},
        axes={
            "pixels along a side, one stage": sized(64, 128, 192, 256),
            "steps": counted(5, 10, 20, 40),
            "batch": batched(1, 2, 4, 8),
            "stages": {
                "one": {"start_sigma": 1.0},
                "two": {},
                "two, sigma 0.5": {"start_sigma": 0.5},
                "three": {"min_resolution": 64},
            },
        },
    ),
    "sd3-123m": Question(
        measured_at=(128, 256, 512),
        base={
            "height": 512, "width": 512, "num_inference_steps": 4, "batch": 1, "num_images": 1, "min_resolution": 256,
            "base_height": 512, "base_width": 512, "scaling_space": "latent",
        },
        axes={
            "pixels along a side, one stage": sized(128, 256, 384, 512),
            "steps": counted(2, 4, 8),
            "batch": batched(1, 2),
            "stages": {
                "one": {"start_sigma": 1.0},
                "two": {},
                "two, sigma 0.5": {"start_sigma": 0.5},
                "three": {"min_resolution": 128},
            },
        },
    ),
}  # fmt: skip


def costs_at(bundle: Bundle, name: str, question: Question, threads: int) -> TimeCosts:
    """The costs of a run's parts, as the bench stores them."""
    with timed_by(threads):
        cases = measured_at(bundle, name, question, threads)
    return costs_of(cases, bundle.manifest.facts, max(branch_counts(bundle.manifest)))


def measured_at(bundle: Bundle, name: str, question: Question, threads: int) -> list[CaseResult]:
    """Runs of one stage at some sizes, with their parts."""
    return [
        measure(
            bundle, partial(engine_of, name, threads),
            Case(name=str(side), options={**question.base, **alone(side, min(question.measured_at))}), Effort(runs=7),
        )
        for side in question.measured_at
    ]  # fmt: skip


def rows_of(bundle: Bundle, name: str, question: Question, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every point of every axis: how many times the base's time, predicted and measured."""
    facts, costs = bundle.manifest.facts, costs_at(bundle, name, question, args.threads)
    points = {(axis, value): change for axis, ones in question.axes.items() for value, change in ones.items()}
    with Pipeline(bundle, engine_of(name, args.threads)) as pipeline:
        # Said aloud: a run that names no start_sigma would take what an earlier day has measured into account.
        sigma = {"start_sigma": facts.defaults.start_sigma}
        asked: dict[Any, Words] = {"base": {**sigma, **question.base}}
        asked |= {point: {**sigma, **question.base, **change} for point, change in points.items()}
        works = {point: partial(pipeline, "a red circle", **words) for point, words in asked.items()}
        times = in_turn(works, args.rounds, print)
        plans = {
            point: pipeline.plan(**{key: value for key, value in words.items() if key not in ("batch", "num_images")})
            for point, words in asked.items()
        }
    ms = {point: predicted_ms(plan, facts, costs, asked[point]["batch"]) for point, plan in plans.items()}
    work = {
        point: asked[point]["batch"] * sum(stage_flops(stage, facts) for stage in plan.stages)
        for point, plan in plans.items()
    }
    clock = clock_of(args.threads)
    return [
        {
            "engine": name,
            "axis": axis,
            "value": value,
            "by_arithmetic": work[axis, value] / work["base"],
            "predicted": ms[axis, value] / ms["base"],
            "measured": times_as_fast(times, "base", (axis, value), clock),
        }
        for axis, value in points
    ]


def plot(model: str, rows: list[dict[str, Any]]) -> None:
    """A picture an axis: predicted and measured, by engine."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, places = plt.subplots(1, len(axes), figsize=(4 * len(axes), 3.4), layout="constrained")
    for place, axis in zip(places, axes, strict=True):
        for number, engine in enumerate(dict.fromkeys(row["engine"] for row in rows)):
            mine = [row for row in rows if (row["axis"], row["engine"]) == (axis, engine)]
            values = [row["value"] for row in mine]
            place.plot(values, [row["measured"] for row in mine], f"C{number}o-", label=f"{engine}, measured")
            place.plot(values, [row["predicted"] for row in mine], f"C{number}x:", label=f"{engine}, predicted")
        place.set(xlabel=axis, ylabel="times the base's time", ylim=(0, None))
        place.grid(alpha=0.3)
    places[0].legend(fontsize=7)
    figure.suptitle(model)
    figure.savefig(RESULTS.with_name(f"cpu_costs_{model}.png"), dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(QUESTIONS))
    parser.add_argument("--engines", nargs="*", default=["onnxruntime", "auto"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    for model in args.models:
        question, rows = QUESTIONS[model], list[dict[str, Any]]()
        for name in args.engines:
            for row in rows_of(bundle_of(model, args.work), name, question, args):
                print(json.dumps(row), flush=True)
                rows.append(row)
        base = {key: value for key, value in question.base.items() if key not in ("batch", "num_images")}
        known = {"conditions": conditions(args.threads), "base": base, "measured_at": question.measured_at}
        save(RESULTS, model, {**known, "rows": rows})
        plot(model, rows)


if __name__ == "__main__":
    main()
