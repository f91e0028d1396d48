"""What the settings of ONNX Runtime and OpenVINO give on the CPU, one at a time, against the plain ones, in turn.

    python -m benchmarks.cpu.trials --work DIR [--model demo --size 256] [--rounds 5] [--threads 1]

Graphs: the step and the decoder. Results go to benchmarks/results/cpu_trials.json.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.cpu.models import bundle_of
from benchmarks.cpu.turns import conditions, in_turn, save, times_as_fast
from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand, profiles_of
from lssgen.parity.accuracy import relative_error
from lssgen.parity.samples import sample_inputs

RESULTS = Path(__file__).parents[1] / "results" / "cpu_trials.json"

Settings = Callable[[ort.SessionOptions], None]
LEVELS = ort.GraphOptimizationLevel


def level(which: Any, options: ort.SessionOptions) -> None:
    options.graph_optimization_level = which


def entry(name: str, value: str, options: ort.SessionOptions) -> None:
    options.add_session_config_entry(name, value)


def attribute(name: str, value: Any, options: ort.SessionOptions) -> None:
    setattr(options, name, value)


ORT: Mapping[str, Settings] = {
    "plain": partial(attribute, "log_severity_level", 4),
    "graph level: none": partial(level, LEVELS.ORT_DISABLE_ALL),
    "graph level: basic": partial(level, LEVELS.ORT_ENABLE_BASIC),
    "graph level: extended": partial(level, LEVELS.ORT_ENABLE_EXTENDED),
    "no memory arena": partial(attribute, "enable_cpu_mem_arena", False),
    "no memory pattern": partial(attribute, "enable_mem_pattern", False),
    "threads do not spin": partial(entry, "session.intra_op.allow_spinning", "0"),
    "denormals are zero": partial(entry, "session.set_denormal_as_zero", "1"),
    "no prepacked weights": partial(entry, "session.disable_prepacking", "1"),
    "Gelu approximated": partial(entry, "optimization.enable_gelu_approximation", "1"),
}
"""One setting each of ONNX Runtime."""

OV: Mapping[str, tuple[dict[str, Any], bool]] = {
    "openvino f32, one model for all sizes": ({"INFERENCE_PRECISION_HINT": "f32"}, False),
    "openvino f32": ({"INFERENCE_PRECISION_HINT": "f32"}, True),
    "openvino bf16, one model for all sizes": ({"INFERENCE_PRECISION_HINT": "bf16"}, False),
    "openvino bf16": ({"INFERENCE_PRECISION_HINT": "bf16"}, True),
    "openvino bf16, denormals are zero": (
        {"INFERENCE_PRECISION_HINT": "bf16", "CPU_DENORMALS_OPTIMIZATION": True}, True,
    ),
    "openvino bf16, no pinning": ({"INFERENCE_PRECISION_HINT": "bf16", "ENABLE_CPU_PINNING": False}, True),
}  # fmt: skip
"""Settings of OpenVINO, and whether the model is compiled for the one size."""


def ort_work(path: Path, inputs: Mapping[str, Any], threads: int, change: Settings) -> Callable[[], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    change(options)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))


def ov_work(path: Path, inputs: Mapping[str, Any], threads: int, settings: dict[str, Any], fixed: bool) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    if fixed:
        model.reshape({name: list(value.shape) for name, value in inputs.items()})
    compiled = core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **settings}
    )
    request = compiled.create_infer_request()

    def run() -> list[Any]:
        made = request.infer(dict(inputs))
        return [np.array(made[output]) for output in compiled.outputs]

    return run


def int8_work(path: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> Callable[[], Any]:
    """Weights in int8, activations measured on the way (dynamic quantisation), matrix products only."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = folder / f"{path.stem}-int8.onnx"
    quantize_dynamic(path, target, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    return ort_work(target, inputs, threads, ORT["plain"])


def fused_work(path: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> tuple[Callable[[], Any], Any]:
    """After the fusions of onnxruntime.transformers for this kind of network; and which there were."""
    from onnxruntime.transformers.optimizer import optimize_model

    made = optimize_model(str(path), model_type="mmdit", opt_level=0, use_gpu=False, only_onnxruntime=False)
    target = folder / f"{path.stem}-fused.onnx"
    made.save_model_to_file(str(target), use_external_data_format=True)
    counts = {name: count for name, count in made.get_fused_operator_statistics().items() if count}
    return ort_work(target, inputs, threads, ORT["plain"]), counts


def contestants(
    bundle: Bundle, graph: str, size: int, threads: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings of a graph at a size, and what could not be tried and why."""
    cells = size // bundle.manifest.facts.cell_px
    found = next(
        one for one in profiles_of(bundle.manifest, Demand(graphs=(graph,), previews=True))[graph]
        if one.axes["height"].best == cells
    )  # fmt: skip
    axes = {axis: extent.best for axis, extent in found.axes.items()}
    inputs = sample_inputs(bundle.manifest.graphs[graph].inputs, axes)
    path = bundle.path(bundle.manifest.graphs[graph].file)
    works: dict[str, Any] = {f"onnxruntime, {n}": ort_work(path, inputs, threads, change) for n, change in ORT.items()}
    notes: dict[str, Any] = {}
    for name, make in (("int8 weights", int8_work), ("transformer fusions", fused_work)):
        try:
            made: Any = make(path, inputs, threads, folder)
            works[f"onnxruntime, {name}"], notes[name] = made if isinstance(made, tuple) else (made, "runs")
        except Exception as error:  # a trial that fails is a result
            notes[name] = f"{type(error).__name__}: {str(error)[:200]}"
    works |= {name: ov_work(path, inputs, threads, *how) for name, how in OV.items()}
    return works, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--graphs", nargs="*", default=["step", "decode"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    bundle = bundle_of(args.model, args.work)
    for graph in args.graphs:
        with tempfile.TemporaryDirectory() as folder:
            works, notes = contestants(bundle, graph, args.size, args.threads, Path(folder))
            wanted = works["onnxruntime, plain"]()
            errors = {
                name: max(relative_error(np.asarray(a), np.asarray(b)) for a, b in zip(work(), wanted, strict=True))
                for name, work in works.items()
            }
            times = in_turn(works, args.rounds)
        rows = {
            name: {
                "cpu_ms": 1e3 * median(values.cpu),
                "times_as_fast": times_as_fast(times, name, "onnxruntime, plain", "cpu"),
                "error": errors[name],
            }
            for name, values in times.items()
        }
        save(RESULTS, f"{args.model} {graph} {args.size}", {"rows": rows, "notes": notes, **conditions(args.threads)})
        for name, row in rows.items():
            print(f"{name:45} {row['cpu_ms']:9.2f} ms  {row['times_as_fast']:5.2f}  {row['error']:.1e}", flush=True)
        print(notes, flush=True)


if __name__ == "__main__":
    main()
