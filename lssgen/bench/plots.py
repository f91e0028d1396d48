"""Plots of results: latency by stage, latency against quality, cost against tokens. Needs matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lssgen.bench.results import BenchResult
from lssgen.errors import BenchError


def plot_stages(result: BenchResult, path: Path) -> None:
    """Stacked bars: where every case spends its median run."""
    figure, axes = _figure()
    names = [case.name for case in result.cases]
    deepest = max(len(case.stages) for case in result.cases)
    parts: dict[str, list[float]] = {"text": [case.text_ms.p50 for case in result.cases]}
    for index in range(deepest):
        parts[f"stage {index + 1}"] = [
            case.stages[index].stage_ms.p50 if index < len(case.stages) else 0.0 for case in result.cases
        ]
    parts["decode"] = [case.decode_ms.p50 for case in result.cases]
    begun = [0.0] * len(names)
    for part, values in parts.items():
        axes.barh(names, values, left=begun, label=part)
        begun = [left + value for left, value in zip(begun, values, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="median milliseconds", title=f"{result.bundle['name']} on {result.engine}, by part")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_quality(result: BenchResult, quality: Mapping[str, float], path: Path) -> None:
    """Points: quality of every case that has one, against its median latency."""
    figure, axes = _figure()
    for case in result.cases:
        if case.name in quality:
            axes.plot(case.image_latency_ms.p50, quality[case.name], "o")
            axes.annotate(case.name, (case.image_latency_ms.p50, quality[case.name]), fontsize=7)
    axes.set(xlabel="median milliseconds a picture", ylabel="quality", title=result.bundle["name"])
    axes.grid(alpha=0.3)
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
    steps = {
        stage.tokens: (stage.step_ms.p50 / case.batch, stage.tflop / stage.steps)
        for case in result.cases
        for stage in case.stages
    }
    tokens = sorted(steps)
    measured = [steps[count][0] for count in tokens]
    last_ms, last_work = steps[tokens[-1]]
    axes.plot(tokens, measured, "o-", label="measured")
    axes.plot(tokens, [last_ms * steps[count][1] / last_work for count in tokens], ":", label="arithmetic alone")
    if predicted:
        axes.plot(
            sorted(predicted), [predicted[count] for count in sorted(predicted)], "x--", label="plan's prediction"
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds a step and picture",
             title=f"{result.bundle['name']} on {result.engine}")  # fmt: skip
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    _save(figure, path)


def _figure() -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise BenchError('plots need matplotlib: pip install "lssgen[bench]"') from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(7, 4.2), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
