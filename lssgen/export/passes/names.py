"""Name nodes after the module that they come from, so that an engine's report can be read."""

import ast
from collections import Counter

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Key under which torch's exporter leaves the modules around a node, outermost first, then the node itself."""


def name_nodes(model: ir.Model) -> None:
    """Call every node `<module path>/<operator>`, numbered where a module has several, and drop the tracer's notes.

    The notes hold stack traces with local paths, which would make two exports of one model differ.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        name = "/".join(filter(None, (_scope(node), node.op_type)))
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *_outputs(model)):
        value.metadata_props.clear()
        value.doc_string = None


def _outputs(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph.all_nodes() for value in node.outputs]


def _scope(node: ir.Node) -> str:
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "")
