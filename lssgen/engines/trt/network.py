"""What TensorRT must be told about a graph: that an attention without a kernel of its own may be split into parts.

Without this leave such an attention (fp32, or heads of 8 or 512) is an error. The libraries have a switch for it on
the parsed network; for those that lack it, the parser reads an attribute, which is added to a copy of the graph in
memory, since ONNX Runtime would not take it.

Source: NVIDIA's ONNX parser, attribute `TRT_decomposable` of Attention; Polygraphy, `SetDecomposableAttentions`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.engines.trt.isolate import advice
from lssgen.engines.trt.job import Job
from lssgen.engines.trt.library import Library, plain
from lssgen.engines.trt.report import Attention
from lssgen.errors import BackendError, BuildError

if TYPE_CHECKING:
    import tensorrt as trt


def has_switch(module: Any) -> bool:
    """Whether an attention of a parsed network can be told that it may be split."""
    layer = getattr(module, "IAttentionInputLayer", None)
    return hasattr(layer, "attention") and hasattr(getattr(module, "IAttention", None), "decomposable")


def parse(library: Library, network: "trt.INetworkDefinition", job: Job) -> tuple[Attention, ...]:
    """Read a graph into a network, and let its attentions be split.

    Returns:
        The attentions.

    Raises:
        BackendError: The library has no switch of its own, and the `onnx` package is missing.
        BuildError: The graph was refused, with the node and the reason.
    """
    parser: trt.OnnxParser = library.module.OnnxParser(network, library.logger)
    if has_switch(library.module):
        taken = parser.parse_from_file(str(job.onnx))
    else:
        # With the file's path, from which the parser finds the weights beside it.
        taken = parser.parse(decomposable_model(job.onnx), str(job.onnx))
    if not taken:
        reason = parse_errors(parser).rstrip(".")
        raise BuildError(f"{library.flavour} cannot read {job.name} from {job.onnx}: {reason}. {advice(job)}")
    return _attentions(library.module, network)


def decomposable_model(onnx: Path) -> bytes:
    """A graph whose attentions may be split, without the weights in files beside it.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The file is not an ONNX graph.
    """
    model = load_graph(onnx)
    from onnx.helper import make_attribute

    for node in model.graph.node:
        # A graph that was prepared by hand may have it, and two of one name make it invalid.
        if node.op_type == "Attention" and all(attribute.name != "TRT_decomposable" for attribute in node.attribute):
            node.attribute.append(make_attribute("TRT_decomposable", 1))
    return model.SerializeToString()


def load_graph(onnx: Path) -> Any:
    """A graph without the weights in files beside it.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The file is not an ONNX graph.
    """
    try:
        from onnx import load
    except ImportError as error:
        raise BackendError(
            'building this engine needs the Python package onnx; install it with pip install "onnx>=1.18", '
            "or build where lssgen[export] is installed and copy the engines"
        ) from error
    try:
        return load(onnx, load_external_data=False)
    except Exception as error:  # protobuf has its own exceptions
        raise BuildError(f"{onnx} is not an ONNX graph: {error}") from error


def parse_errors(parser: "trt.OnnxParser | trt.OnnxParserRefitter") -> str:
    """What a parser had against a graph, node by node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return (
        "; ".join(f"node {error.node_name()} ({error.node_operator()}): {plain(error.desc())}" for error in errors)
        or "no reason given"
    )


def _attentions(module: Any, network: "trt.INetworkDefinition") -> tuple[Attention, ...]:
    kind, switch = getattr(module.LayerType, "ATTENTION_INPUT", None), has_switch(module)
    found: list[Attention] = []
    for index in range(network.num_layers):
        layer: Any = network.get_layer(index)
        if layer.type != kind:
            continue
        query = layer.get_input(0)
        # The parser makes two layers of an attention; the first has the node's name with this behind it.
        found.append(Attention(layer.name.removesuffix("_AttentionInput"), query.dtype.name, query.shape[-1]))
        if switch:
            layer.__class__ = module.IAttentionInputLayer  # a layer of a network comes as its base class
            layer.attention.decomposable = True
    return tuple(found)
