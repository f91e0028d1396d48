"""How low-rank pairs enter a graph: one input a factor, one for every shape, or one for all.

    python -m benchmarks.lora_inputs --work DIR [--layers 120] [--width 320] [--ranks 32] [--tokens 256] [--rounds 9]
                                     [--engines onnxruntime,openvino] [--build]

A chain of linear layers whose factors enter in each form, and one without factors. Per form: nodes, inputs and bytes of
the graph, bytes of the factors, the time of a call in turn with the others (ratios of one round), and microseconds to
bind all inputs once in ONNX Runtime. --build compiles each for a GPU with TensorRT-RTX, where that is installed, and
tells seconds and bytes of the engine. Results go to benchmarks/results/lora_inputs.json.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cpu.turns import clock_of, conditions, in_turn, times_as_fast
from benchmarks.saving import save
from lssgen.ort import ort

RESULTS = Path(__file__).parent / "results" / "lora_inputs.json"

FORMS = ("none", "a factor", "a shape", "all")

Array = np.ndarray[Any, np.dtype[Any]]


def made(form: str, args: argparse.Namespace) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A chain of layers with factors in a form, and values for its inputs."""
    rng = np.random.default_rng(0)
    width, ranks, layers = args.width, args.ranks, args.layers
    widths = [(width, 4 * width) if layer % 2 == 0 else (4 * width, width) for layer in range(layers)]
    values: dict[str, Array] = {"x": rng.standard_normal((1, args.tokens, width)).astype(np.float32)}
    factors = {
        f"{side}{layer}": (0.02 * rng.standard_normal((ranks, size))).astype(np.float32)
        for layer, pair in enumerate(widths)
        for side, size in zip(("down", "up"), pair, strict=True)
    }
    nodes, given = _entering(form, factors)
    values |= given
    weights: list[TensorProto] = []
    at = "x"
    for layer, (inside, out) in enumerate(widths):
        weight = (rng.standard_normal((inside, out)) / inside**0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [at, f"w{layer}"], [f"y{layer}"]))
        at = f"y{layer}"
        if form != "none":
            nodes += [
                helper.make_node("Transpose", [f"down{layer}"], [f"t{layer}"], perm=[1, 0]),
                helper.make_node("MatMul", ["x" if layer == 0 else f"z{layer - 1}", f"t{layer}"], [f"n{layer}"]),
                helper.make_node("MatMul", [f"n{layer}", f"up{layer}"], [f"l{layer}"]),
                helper.make_node("Add", [at, f"l{layer}"], [f"a{layer}"]),
            ]
            at = f"a{layer}"
        nodes.append(helper.make_node("Tanh", [at], [f"z{layer}"]))
        at = f"z{layer}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in values.items()],
        [helper.make_tensor_value_info(at, TensorProto.FLOAT, None)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), values


def _entering(form: str, factors: Mapping[str, Array]) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Nodes that give every factor its name, and the inputs that they read."""
    if form == "none":
        return [], {}
    if form == "a factor":
        return [], dict(factors)
    if form == "all":
        spans = numpy_helper.from_array(np.array([value.shape[1] for value in factors.values()], np.int64))
        nodes = [
            helper.make_node("Constant", [], ["spans"], value=spans),
            helper.make_node("Split", ["all", "spans"], list(factors), axis=1),
        ]
        return nodes, {"all": np.concatenate(list(factors.values()), 1)}
    nodes, given = [], dict[str, Array]()
    for width in sorted({value.shape[1] for value in factors.values()}):
        names = [name for name, value in factors.items() if value.shape[1] == width]
        # Flat along the ranks, so that no axis has to be taken off again.
        given[f"of{width}"] = np.concatenate([factors[name] for name in names])
        nodes.append(helper.make_node("Split", [f"of{width}"], names, axis=0, num_outputs=len(names)))
    return nodes, given


def bound(path: Path, values: Mapping[str, Array], threads: int) -> tuple[Callable[[], None], float]:
    """A call in ONNX Runtime with everything bound, and microseconds that binding took."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    took: list[float] = []
    binding: Any = None
    for _ in range(20):
        began = perf_counter()
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output(session.get_outputs()[0].name)
        took.append(perf_counter() - began)
    return (lambda: session.run_with_iobinding(binding)), 1e6 * median(took)


def compiled(path: Path, values: Mapping[str, Array], threads: int) -> Callable[[], Any]:
    """A call in OpenVINO."""
    import openvino as ov

    core = ov.Core()
    words = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(path, "CPU", words).create_infer_request()
    for name, value in values.items():
        request.set_tensor(name, ov.Tensor(value, shared_memory=True))
    return request.infer


def built(path: Path) -> dict[str, float]:
    """Seconds and bytes of an engine for one GPU, by TensorRT-RTX."""
    trt: Any = import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(), builder.create_builder_config()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise SystemExit(str(parser.get_error(0)))
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    began = perf_counter()
    plan = builder.build_serialized_network(network, config)
    return {"seconds": perf_counter() - began, "bytes": plan.nbytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    for name, number in (("layers", 120), ("width", 320), ("ranks", 32), ("tokens", 256), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=["onnxruntime", "openvino"])
    parser.add_argument("--build", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    works: dict[str, dict[str, Callable[[], Any]]] = {engine: {} for engine in args.engines}
    for form in FORMS:
        model, values = made(form, args)
        path = args.work / f"{form.replace(' ', '-')}.onnx"
        onnx.save(model, path)
        call, binding_us = bound(path, values, args.threads)
        for engine in args.engines:
            works[engine][form] = call if engine == "onnxruntime" else compiled(path, values, args.threads)
        rows[form] = {
            "nodes": len(model.graph.node),
            "inputs": len(values),
            "graph_bytes": model.ByteSize() - sum(len(one.raw_data) for one in model.graph.initializer),
            "factor_bytes": sum(value.nbytes for name, value in values.items() if name != "x"),
            "binding_us": binding_us,
        }
        if args.build:
            rows[form]["tensorrt_rtx"] = built(path)
            print(form, rows[form], flush=True)
    clock = clock_of(args.threads)
    for engine, each in works.items():
        times = in_turn(each, args.rounds)
        for form in FORMS:
            rows[form][engine] = {
                "ms": 1e3 * median(getattr(times[form], clock)),
                "times_as_long": 1 / times_as_fast(times, form, "none", clock),
            }
    print(json.dumps(rows, indent=2))
    said = {name: value for name, value in vars(args).items() if name not in ("work", "build")}
    save(RESULTS, f"{args.layers} layers", {"conditions": conditions(args.threads), **said, "forms": rows})


if __name__ == "__main__":
    main()
