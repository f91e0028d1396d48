"""Plots of results: latency by stage, latency against quality, cost against tokens. Needs matplotlib."""

from collections.abc import Mapping
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

from lssgen.bench.results import BenchResult
from lssgen.bench.tables import threads_of
from lssgen.errors import BenchError

MARKS = ("o", "s", "^", "D", "v", "P", "X")
"""Marks of points, so that more cases than colours can be told apart."""


def plot_stages(result: BenchResult, path: Path) -> None:
    """Stacked bars: where every case spends its median run."""
    names = [case.name for case in result.cases]
    figure, axes = _figure(1.7 + 0.35 * len(names))
    deepest = max(len(case.stages) for case in result.cases)
    parts: dict[str, list[float]] = {"text": [case.text_ms.p50 for case in result.cases]}
    for index in range(deepest):
        parts[f"stage {index + 1}"] = [
            case.stages[index].stage_ms.p50 if index < len(case.stages) else 0.0 for case in result.cases
        ]
    parts["decode"] = [case.decode_ms.p50 for case in result.cases]
    begun = [0.0] * len(names)
    for part, values in parts.items():
        axes.barh(range(len(names)), values, left=begun, label=part)
        begun = [left + value for left, value in zip(begun, values, strict=True)]
    axes.invert_yaxis()
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="median milliseconds of a batch")
    _titled(figure, axes, result, "where a run's time goes")
    _save(figure, path)


def plot_quality(result: BenchResult, quality: Mapping[str, float], path: Path) -> None:
    """Points: quality of every case that has one, against its median latency."""
    figure, axes = _figure()
    rated = [case for case in result.cases if case.name in quality]
    for case, mark in zip(rated, cycle(MARKS), strict=False):
        axes.plot(case.image_latency_ms.p50, quality[case.name], mark, label=case.name)
    axes.set(xlabel="median milliseconds a picture", ylabel="quality, as the file has it")
    axes.grid(alpha=0.3)
    _titled(figure, axes, result, "quality against latency")
    _save(figure, path)


def plot_cost(result: BenchResult, path: Path, predicted: Mapping[int, float] | None = None) -> None:
    """Median step against tokens, measured; as arithmetic alone predicts it, from the largest measured one; and as the
    plan predicts it from the costs that the bundle keeps.

    Args:
        result: What was measured.
        path: The picture.
        predicted: Milliseconds of a step of one picture by its tokens, of `lssgen.plan.timing`; None: the bundle has no
            costs of this machine.
    """
    figure, axes = _figure()
    kinds = _steps(result)
    first = next(iter(kinds.values()))
    for kind, found in kinds.items():
        label = "measured" if len(kinds) == 1 else f"measured, {kind}"
        axes.plot(list(found), [ms for ms, _ in found.values()], "o-", label=label)
    last_ms, last_work = list(first.values())[-1]
    axes.plot(list(first), [last_ms * work / last_work for _, work in first.values()], ":", label="arithmetic alone")
    tokens = sorted({count for found in kinds.values() for count in found})
    if predicted:
        axes.plot(
            sorted(predicted), [predicted[count] for count in sorted(predicted)], "x--", label="plan's prediction"
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens of the network's sequence",
             ylabel="median milliseconds of a step, a picture")  # fmt: skip
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.set_xticks([], minor=True)
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(_plain)  # powers of ten say little where times differ by a factor of four
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.grid(alpha=0.3, which="both")
    _titled(figure, axes, result, "the cost of a step")
    _save(figure, path)


def _steps(result: BenchResult) -> dict[str, dict[int, tuple[float, float]]]:
    """Median milliseconds and arithmetic of a step of one picture by tokens, fewest first; by engine and batch."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for case in result.cases:
        kind = found.setdefault(f"{case.backend.get('backend', result.engine)}, batch {case.batch}", {})
        for stage in case.stages:
            kind.setdefault(stage.tokens, []).append((stage.step_ms.p50 / case.batch, stage.tflop / stage.steps))
    return {
        kind: {count: (median(ms for ms, _ in every), every[0][1]) for count, every in sorted(steps.items())}
        for kind, steps in found.items()
    }


def _plain(value: float, position: object) -> str:
    """A number as people write it."""
    del position
    return f"{value:g}"


def _titled(figure: Any, axes: Any, result: BenchResult, what: str) -> None:
    """What is shown of what, where it was measured, and a legend that hides nothing."""
    facts = result.environment
    device = facts.machine.get("gpu.name") or facts.machine.get("cpu", "")
    where = f"{device}, threads {threads_of(facts)}, {facts.written}"
    axes.set_title(f"{result.bundle['name']} on {result.engine}: {what}\n{where}", fontsize=8)
    figure.legend(fontsize=8, loc="outside right upper")


def see_plotting() -> None:
    """See that plots can be drawn, before the work and not after it.

    Raises:
        BenchError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BenchError('plots need matplotlib: pip install "lssgen[bench]"')


def _figure(height: float = 4.2) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    see_plotting()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(9, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
