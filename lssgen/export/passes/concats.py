"""Concat takes one type in ONNX, where torch promotes."""

import onnx_ir as ir


def cast_concat_inputs(model: ir.Model) -> None:
    """Cast the inputs of a Concat to its output's type (SDXL joins float16 embeddings with float32 time embeddings)."""
    for node in list(model.graph.all_nodes()):
        dtype = node.outputs[0].dtype if node.op_type == "Concat" else None
        if dtype is None:
            continue
        for at, value in enumerate(node.inputs):
            if value is None or value.dtype in (None, dtype):
                continue
            cast = ir.node("Cast", [value], {"to": dtype}, metadata_props=dict(node.metadata_props))
            cast.outputs[0].type = ir.TensorType(dtype)
            assert node.graph is not None
            node.graph.insert_before(node, cast)
            node.replace_input_with(at, cast.outputs[0])
