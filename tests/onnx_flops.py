"""FLOPs of an exported graph, by counting its nodes: products and attention, as `lssgen.models.costs` counts them."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from lssgen.ports import Array

PRODUCTS = ("MatMul", "Gemm", "Attention")


def flops_of(path: Path, inputs: Mapping[str, Array]) -> int:
    """FLOPs of one call; shapes are those that ONNX Runtime meets.

    Raises:
        AssertionError: The graph has a convolution, which is not counted here.
    """
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in PRODUCTS]
    assert not any(node.op_type == "Conv" for node in model.graph.node)
    known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    there = {value.name for value in (*model.graph.output, *model.graph.input)}
    asked = dict.fromkeys(name for node in nodes for name in (*node.input[:3], *node.output[:1]) if name)
    missing = [name for name in asked if name not in known and name not in there]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in missing)
    options = onnxruntime.SessionOptions()
    # As it was exported: fused nodes have other operands.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    made: Any = session.run(None, dict(inputs))
    known |= {name: value.shape for name, value in zip(names, made, strict=True)}
    known |= {name: value.shape for name, value in inputs.items()}
    return sum(_flops(node, known) for node in nodes)


def _flops(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    first, second = (shapes[name] for name in node.input[:2])
    if node.op_type == "Attention":
        *rows, width = first
        return 2 * prod(rows) * second[-2] * (width + shapes[node.input[2]][-1])
    flipped = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * prod(shapes[node.output[0]]) * first[-2 if flipped else -1]
