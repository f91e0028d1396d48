"""An Einsum that only moves axes is a Transpose."""

import onnx_ir as ir


def replace_permuting_einsums(model: ir.Model) -> None:
    """Write "abc->cab" as a Transpose: ONNX has no Einsum in bfloat16, and engines know Transpose better."""
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Einsum" or len(node.inputs) != 1:
            continue
        before, _, after = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        # Not diagonals ("ii->i"), sums ("ab->a") or broadcast axes ("...ab->...ba").
        if len(set(before)) != len(before) or sorted(before) != sorted(after) or "." in before:
            continue
        new = ir.node(
            "Transpose",
            [node.inputs[0]],
            {"perm": [before.index(axis) for axis in after]},
            metadata_props=dict(node.metadata_props),
        )
        new.outputs[0].type = node.outputs[0].type
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], node.outputs, new.outputs)
