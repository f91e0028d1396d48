"""What the settings of ONNX Runtime and OpenVINO give on the CPU, one at a time, against the plain ones, in turn.

    python -m benchmarks.cpu.trials --work DIR [--models demo sd3-123m] [--graphs text step decode] [--rounds 5]

Times are those of the clock, or with --threads 1 of the processor. A setting that cannot be tried is recorded with the
words of whoever refuses it. Results go to benchmarks/results/cpu_trials.json. (What int8 gives with ranges of real
runs, and how it paints, is measured by benchmarks/quantised_cpu.py.)
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.cpu.models import SIZES, bundle_of
from benchmarks.cpu.turns import clock_of, conditions, in_turn, times_as_fast
from benchmarks.saving import save
from lssgen.bundle import Bundle
from lssgen.engines.cpu.probe import VOCABULARY
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
    "operators in parallel": partial(attribute, "execution_mode", ort.ExecutionMode.ORT_PARALLEL),
    "fast bf16 products": partial(entry, "mlas.enable_gemm_fastmath_arm64_bfloat16", "1"),
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
    "openvino bf16, no hyperthreads": ({"INFERENCE_PRECISION_HINT": "bf16", "ENABLE_HYPER_THREADING": False}, True),
    "openvino bf16, in two streams": ({"INFERENCE_PRECISION_HINT": "bf16", "NUM_STREAMS": 2}, True),
    "openvino f16": ({"INFERENCE_PRECISION_HINT": "f16"}, True),
}  # fmt: skip
"""Settings of OpenVINO, and whether the model is compiled for the one size."""


def ort_work(path: Path, inputs: Mapping[str, Any], threads: int, change: Settings) -> Callable[[], Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    change(options)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(inputs))


def bound_work(path: Path, inputs: Mapping[str, Any], threads: int) -> Callable[[], Any]:
    """Inputs and outputs bound once, as lssgen does it, instead of given and taken at every call."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    made = session.run(None, dict(inputs))
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)) for value in (*inputs.values(), *made)]
    binding = session.io_binding()
    for name, value in zip(inputs, values, strict=False):
        binding.bind_ortvalue_input(name, value)
    outputs = values[len(inputs) :]
    for port, value in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_ortvalue_output(port.name, value)

    def run() -> list[Any]:
        session.run_with_iobinding(binding)
        return [value.numpy() for value in outputs]

    return run


def ov_work(
    path: Path, inputs: Mapping[str, Any], threads: int, settings: dict[str, Any], fixed: bool, *, bound: bool = False
) -> Any:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(str(path))
    if fixed:
        model.reshape({name: list(value.shape) for name, value in inputs.items()})
    compiled = core.compile_model(
        model, "CPU",
        {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
         **settings},
    )  # fmt: skip
    request = compiled.create_infer_request()
    if bound:
        kept = [np.ascontiguousarray(value) for value in inputs.values()]
        kept += [np.empty_like(np.array(value)) for value in request.infer(dict(inputs)).values()]
        for name, value in zip(inputs, kept, strict=False):
            request.set_tensor(name, ov.Tensor(value, shared_memory=True))
        for port, value in zip(compiled.outputs, kept[len(inputs) :], strict=True):
            request.set_tensor(port, ov.Tensor(value, shared_memory=True))

    def run() -> list[Any]:
        if bound:
            request.infer()
            return kept[len(inputs) :]
        made = request.infer(dict(inputs))
        return [np.array(made[output]) for output in compiled.outputs]

    return run


def int8_work(path: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> Callable[[], Any]:
    """Weights in int8, activations measured on the way (dynamic quantisation), matrix products only."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Shapes of dynamic axes that the export has noted are not those that the quantiser infers, and it refuses them.
    plain, target = folder / f"{path.stem}-plain.onnx", folder / f"{path.stem}-int8.onnx"
    model = onnx.load(str(path))
    del model.graph.value_info[:]
    onnx.save(model, str(plain), save_as_external_data=True, location=f"{plain.stem}.data")
    quantize_dynamic(
        plain,
        target,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        use_external_data_format=True,
    )
    return ort_work(target, inputs, threads, ORT["plain"])


def fused_work(path: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> tuple[Callable[[], Any], Any]:
    """After the fusions of onnxruntime.transformers for this kind of network; and which there were."""
    from onnxruntime.transformers.optimizer import optimize_model

    made = optimize_model(str(path), model_type="mmdit", opt_level=0, use_gpu=False, only_onnxruntime=False)
    target = folder / f"{path.stem}-fused.onnx"
    made.save_model_to_file(str(target), use_external_data_format=True)
    counts = {name: count for name, count in made.get_fused_operator_statistics().items() if count}
    return ort_work(target, inputs, threads, ORT["plain"]), counts


def bf16_work(path: Path, inputs: Mapping[str, Any], threads: int, folder: Path) -> Callable[[], Any]:
    """The smallest graph that computes in bfloat16: whether ONNX Runtime's kernels for the CPU can."""
    from onnx import TensorProto, helper, save

    del path, inputs
    ports = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [8, 8]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "bf16", ports[:2], ports[2:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "bf16.onnx")
    return ort_work(folder / "bf16.onnx", {}, threads, ORT["plain"])


MADE = {"int8 weights": int8_work, "transformer fusions": fused_work, "bf16": bf16_work}
"""Trials of ONNX Runtime that need a graph of their own."""


def contestants(
    bundle: Bundle, graph: str, size: int, threads: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All settings of a graph at a size, and what could not be tried and why."""
    inputs = inputs_of(bundle, graph, size)
    path = bundle.path(bundle.manifest.graphs[graph].file)
    makers: dict[str, Any] = {f"onnxruntime, {n}": partial(ort_work, path, inputs, threads, c) for n, c in ORT.items()}
    makers["onnxruntime, bound"] = partial(bound_work, path, inputs, threads)
    makers |= {f"onnxruntime, {name}": partial(make, path, inputs, threads, folder) for name, make in MADE.items()}
    makers |= {name: partial(ov_work, path, inputs, threads, *how) for name, how in OV.items()}
    best, fixed = OV["openvino bf16"]
    makers["openvino bf16, bound"] = partial(ov_work, path, inputs, threads, best, fixed, bound=True)
    works: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            made: Any = make()
            works[name] = made[0] if isinstance(made, tuple) else made
            works[name]()
        except Exception as error:  # a trial that fails is a result
            works.pop(name, None)
            notes[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            notes |= {name: made[1]} if isinstance(made, tuple) else {}
    return works, notes


def inputs_of(bundle: Bundle, graph: str, size: int) -> dict[str, Any]:
    """Seeded inputs of a graph at a picture size."""
    entry, cells = bundle.manifest.graphs[graph], size // bundle.manifest.facts.cell_px
    profiles = profiles_of(bundle.manifest, Demand(graphs=(graph,), previews=True))[graph]
    found = next(one for one in profiles if "height" not in one.axes or one.axes["height"].best == cells)
    axes = {axis: extent.best for axis, extent in found.axes.items()}
    return sample_inputs(entry.inputs, axes, vocabulary={port.name: VOCABULARY for port in entry.inputs})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(SIZES))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--graphs", nargs="*", default=["text", "step", "decode"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    args = parser.parse_args()
    clock = clock_of(args.threads)
    for model, graph in product(args.models, args.graphs):
        bundle = bundle_of(model, args.work)
        print(f"{model} {graph} {args.size}", flush=True)
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
                "ms": 1e3 * median(getattr(values, clock)),
                "times_as_fast": times_as_fast(times, name, "onnxruntime, plain", clock),
                "error": errors[name],
            }
            for name, values in times.items()
        }
        save(RESULTS, f"{model} {graph} {args.size}", {"rows": rows, "notes": notes, **conditions(args.threads)})
        for name, row in rows.items():
            print(f"{name:45} {row['ms']:9.2f} ms  {row['times_as_fast']:5.2f}  {row['error']:.1e}", flush=True)
        print(notes, flush=True)


if __name__ == "__main__":
    main()
