"""Store weights the way the graph multiplies with them."""

from collections.abc import Iterable

import onnx_ir as ir


def fold_transposes(model: ir.Model, weights: Iterable[ir.Value]) -> set[str]:
    """Take every Transpose of a matrix out of the graph if nothing else reads that matrix.

    torch keeps a linear layer as (out, in) and ONNX's MatMul wants (in, out). The value keeps its name and gets the
    transposed shape.

    Returns:
        Names of the weights that must be stored transposed.
    """
    folded: set[str] = set()
    for weight in weights:
        readers = [node for node, _ in weight.uses()]
        if weight.shape is None or len(weight.shape) != 2 or not readers:
            continue
        if not all(node.op_type == "Transpose" and _swaps(node) for node in readers):
            continue
        assert weight.name is not None
        for node in readers:
            node.outputs[0].replace_all_uses_with(weight, replace_graph_outputs=False)
            model.graph.remove(node, safe=True)
        weight.shape = ir.Shape(reversed(weight.shape.dims))
        folded.add(weight.name)
    return folded


def _swaps(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return order is None or tuple(order.as_ints()) == (1, 0)
