"""Write docs/full_size.md: what exports and ahead-of-time builds of full-size models take, from benchmarks/results/.

python docs/make_full_size.py
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "full_size.md"
RESULTS = ROOT / "benchmarks" / "results"

HEAD = """# Full-size models on a small machine

This page is written by `docs/make_full_size.py` from the files in `benchmarks/results/`. Checkpoints have the layout
and the size of the published ones, and random weights. Every row is a process of its own; memory is its largest
resident size, interpreter and libraries included. Wall clock depends on what else the machine does, CPU seconds do not.

## Exports

`python -m benchmarks.full_size_export --work DIR --text`. Writing traces the module on fake tensors and streams the
weights, a tensor at a time. The probe computes the whole graph at 16 x 24 latent cells, piece by piece in ONNX Runtime,
rounded after every node as the graph's type says, and the float32 torch module, layer by layer; the error is the
relative difference of what they give. `text` is all encoders of the model together, T5-XXL among them.
"""

BUILDS = """
## Ahead-of-time builds

`python -m benchmarks.full_size_build --work DIR`. The step graph in fp16 becomes one TensorRT-RTX engine with two
static profiles, batch 1 and two guidance branches, on a machine without a GPU. Scratch is the device memory of each
profile besides the weights.
"""

QUANTISED = """
## Quantising

`python -m benchmarks.full_size_quantise --work DIR`. The step graph in fp16 is quantised from a statistics file, a
weight at a time, on a machine without a GPU; weights are random numbers. Kept are products that stay in fp16: those of
the first and last two blocks.
"""


def page() -> str:
    """The whole page."""
    exports, builds = _read("full_size_export.json"), _read("full_size_build.json")
    quantised = _read("full_size_quantise.json")
    parts = (
        *(HEAD, _exports(exports), _conditions(exports)),
        *(BUILDS, _builds(builds), _conditions(builds)),
        *(QUANTISED, _quantised(quantised), _conditions(quantised)),
    )
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _read(name: str) -> Mapping[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _exports(results: Mapping[str, Any]) -> str:
    rows = [
        (
            model,
            graph,
            made["precision"],
            f"{made['checkpoint_gb']:.1f}",
            f"{made['seconds']:.0f}",
            f"{made['cpu_seconds']:.0f}",
            f"{made['peak_gb']:.2f}",
            f"{goal(found, graph)}",
            f"{made['probe_cpu_seconds']:.0f}",
            f"{made['probe_peak_gb']:.2f}",
            f"{made['probe_error']:.1e}",
        )
        for model, found in results.items()
        for graph, made in found.items()
        if graph in ("step", "text")
    ]
    head = (
        "model", "graph", "type", "weights, GB", "writing: s", "CPU s", "peak GB", "aim",
        "probe: CPU s", "peak GB", "error",
    )  # fmt: skip
    whole = [
        f"The whole step of {model} in {made['whole_step_precision']}, in one session of ONNX Runtime, differs from "
        f"torch by {made['whole_step_error']:.1e}.\n"
        for model, found in results.items()
        for made in (found["step"],)
        if "whole_step_error" in made
    ]
    return "\n".join([_table(head, rows), *whole])


def goal(found: Mapping[str, Any], graph: str) -> str:
    aim = found["goal"]
    return f"{aim['seconds']} s, {aim['peak_gb']:g} GB" if graph == "step" else "-"


def _builds(results: Mapping[str, Any]) -> str:
    rows = [
        (
            model,
            made["target"],
            ", ".join(map(str, made["sides_px"])),
            f"{made['seconds']:.0f}",
            f"{made['peak_gb']:.1f}",
            f"{made['engine_gb']:.2f}",
            " / ".join(f"{size}" for size in made["scratch_mb"]),
            f"{made['attentions'] - len(made['unfused'])} of {made['attentions']}",
            str(made["layers"]),
        )
        for model, made in results.items()
    ]
    head = (
        "model", "for", "sides, px", "seconds", "host memory, GB", "engine, GB", "scratch, MB", "attentions fused",
        "layers",
    )  # fmt: skip
    return _table(head, rows)


def _quantised(results: Mapping[str, Any]) -> str:
    rows = [
        (
            model,
            f"{found['graph']['parameters'] / 1e9:.2f}",
            form,
            str(made["products"]),
            str(made["kept"]),
            str(made["attention"]),
            f"{made['gb']:.2f}",
            f"{made['cpu_seconds']:.0f}",
            f"{made['peak_gb']:.2f}",
            f"{found['goal_gb']} GB",
        )
        for model, found in results.items()
        for form, made in found.items()
        if form not in ("conditions", "goal_gb", "graph")
    ]
    head = (
        "model", "parameters, 10^9", "format", "products", "kept", "attentions", "file, GB", "CPU s", "peak GB", "aim",
    )  # fmt: skip
    return _table(head, rows)


def _conditions(results: Mapping[str, Any]) -> str:
    """Of the first model; all were measured with the same versions."""
    had = dict(next(iter(results.values()))["conditions"])
    dates = sorted({found["conditions"]["date"] for found in results.values()})
    machine = f"{had.pop('cores')} cores of {had.pop('cpu')}, shared with other work"
    del had["date"], had["load_before"]
    versions = ", ".join(f"{name} {value}" for name, value in had.items())
    return f"Conditions: {' and '.join(dates)}; {machine}; {versions}.\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
