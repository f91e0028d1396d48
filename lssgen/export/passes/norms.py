"""RMSNormalization may take its scale in another type than its input; ONNX Runtime 1.31 refuses that."""

import onnx_ir as ir


def match_norm_scales(model: ir.Model) -> None:
    """Normalise in the input's type and cast after it (T5 in float16 has a float32 stream and float16 scales)."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "RMSNormalization":
            continue
        x, scale = node.inputs
        asked = node.outputs[0].dtype
        if x is None or scale is None or x.dtype is None or scale.dtype in (None, x.dtype) or asked is None:
            continue
        wide = _cast(scale, x.dtype, node)
        node.graph.insert_before(node, wide)  # pyright: ignore[reportOptionalMemberAccess]
        node.replace_input_with(1, wide.outputs[0])
        narrow = _cast(node.outputs[0], asked, node)
        node.outputs[0].replace_all_uses_with(narrow.outputs[0], replace_graph_outputs=True)
        # The replacement before has given the cast its own output as input.
        narrow.replace_input_with(0, node.outputs[0])
        node.outputs[0].type = ir.TensorType(x.dtype)
        node.graph.insert_after(node, narrow)  # pyright: ignore[reportOptionalMemberAccess]


def _cast(value: ir.Value, dtype: ir.DataType, like: ir.Node) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype}, metadata_props=dict(like.metadata_props))
    node.outputs[0].type = ir.TensorType(dtype)
    return node
