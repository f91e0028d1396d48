"""Attention in FP8: taken apart, with a quantised softmax, which is the only form that compilers compute in FP8.

    softmax(q K^T) V  with q = Q / sqrt(d),   Q/DQ on q, K and V, and on the softmax with the scale 1 / 448

Measured with TensorRT-RTX 1.7.1: with Q/DQ in front of a whole Attention node, the fused kernel computes in half
precision after all, and pays for the rounding; without the fourth pair no kernel is fused at all. In int8 there is
none. Source of the form: NVIDIA/Model-Optimizer, pull request 1289.
"""

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from lssgen.calibration.insertion import encode, place, scalar
from lssgen.calibration.numbers import FP8_MOST, Scale, fp8_scale
from lssgen.calibration.products import given
from lssgen.calibration.statistics import Ranges

FP8 = ir.DataType.FLOAT8E4M3FN
HEADS = 16
"""Number that a head's size must be a multiple of."""


def attentions_of(model: ir.Model) -> list[ir.Node]:
    """The attentions that can be computed in FP8: heads of a multiple of 16; a mask, if any, of numbers to add.

    Not those that hide what comes later without a mask: taken apart, they would show it.
    """
    heads = _head_sizes(model)
    return [
        node
        for node in model.graph
        if node.op_type == "Attention"
        and _has_mask_of_numbers(node)
        and not node.attributes.get_int("is_causal", 0)
        and heads.get(str(node.inputs[0] and node.inputs[0].name), 0) % HEADS == 0
        and heads.get(str(node.inputs[0] and node.inputs[0].name), 0) > 0
    ]


def _has_mask_of_numbers(node: ir.Node) -> bool:
    """Whether an attention reads Q, K and V and at most numbers that are added to its scores, of their own type."""
    given_ones = [value for value in node.inputs if value is not None]
    return len(given_ones) == 3 or (len(given_ones) == 4 and given_ones[3] is node.inputs[3] and _is_number(node))


def _is_number(node: ir.Node) -> bool:
    return given(node, 3).dtype is not None and given(node, 3).dtype == given(node, 0).dtype


def _head_sizes(model: ir.Model) -> Mapping[str, int]:
    """Size of the last axis of every tensor with four, by name, where it does not depend on the picture."""
    proto = onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model), data_prop=True)
    found: dict[str, int] = {}
    for value in proto.graph.value_info:
        axes = value.type.tensor_type.shape.dim
        if len(axes) == 4 and axes[3].dim_value:
            found[value.name] = axes[3].dim_value
    return found


def decompose(model: ir.Model, ranges: Ranges, kept: frozenset[str] = frozenset()) -> int:
    """Compute a graph's attentions in FP8.

    Args:
        model: The graph; it is changed.
        ranges: What was seen of Q, K and V.
        kept: Names of blocks, the attentions in which stay as they are.

    Returns:
        How many.
    """
    heads, count = _head_sizes(model), 0
    for node in attentions_of(model):
        if any(str(node.name).startswith(f"{block}.") for block in kept):
            continue
        _take_apart(model.graph, node, heads[str(given(node, 0).name)], ranges)
        count += 1
    return count


def _take_apart(graph: ir.Graph, node: ir.Node, head: int, ranges: Ranges) -> None:
    query, keys, values = (given(node, index) for index in range(3))
    kind = _type_of(query, node)
    name = str(node.name)
    attribute = node.attributes.get("scale")
    factor = attribute.as_float() if attribute is not None else head**-0.5
    peaks = [ranges.of(str(value.name)).peak for value in (query, keys, values)]

    def coded(value: ir.Value, scale: Scale, word: str) -> ir.Value:
        return encode(graph, value, scale, f"{name}.{word}", FP8, kind)

    scaled = _node(graph, "Mul", [query, scalar(graph, f"{name}.factor", factor, kind)], f"{name}/Scale", kind)
    q = coded(scaled, fp8_scale(peaks[0] * factor), "query")
    k = coded(keys, fp8_scale(peaks[1]), "keys")
    v = coded(values, fp8_scale(peaks[2]), "values")
    turned = _node(graph, "Transpose", [k], f"{name}/Turn", kind, perm=(0, 1, 3, 2))
    scores = _node(graph, "MatMul", [q, turned], f"{name}/Scores", kind)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        scores = _node(graph, "Add", [scores, given(node, 3)], f"{name}/Mask", kind)
    shares = _node(graph, "Softmax", [scores], f"{name}/Softmax", kind, axis=-1)
    p = coded(shares, Scale(1 / FP8_MOST), "softmax")
    result = _node(graph, "MatMul", [p, v], f"{name}/Mix", kind)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)


def _type_of(value: ir.Value, node: ir.Node) -> ir.DataType:
    kind = value.dtype or node.outputs[0].dtype
    assert kind is not None, f"{node.name} has no type"
    return kind


def _node(
    graph: ir.Graph,
    operator: str,
    inputs: list[ir.Value],
    name: str,
    kind: ir.DataType,
    **attributes: int | tuple[int, ...],
) -> ir.Value:
    node = ir.node(operator, inputs, attributes, name=name)
    place(graph, node)
    node.outputs[0].dtype = kind
    return node.outputs[0]
