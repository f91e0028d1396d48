"""Changes that TensorRT's parser needs, made on a copy in memory: ONNX Runtime would not take all of them."""

from pathlib import Path
from typing import Any

from lssgen.errors import BackendError, BuildError


def engine_model(path: Path) -> bytes:
    """A graph as TensorRT's parser takes it, without the weights in files beside it.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The file is no ONNX graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            'building engines needs the Python package onnx; install it with pip install "onnx>=1.18", '
            "or build where lssgen[export] is installed and copy the engines"
        ) from error
    try:
        model = onnx.load(path, load_external_data=False)
        make_attention_decomposable(model.graph)
        keep_uint8_at_the_edges(model.graph)
        return model.SerializeToString()
    except Exception as error:  # protobuf has its own exceptions
        raise BuildError(f"{path} is no ONNX graph: {error}") from error


def make_attention_decomposable(graph: Any) -> None:
    """Give leave to split every Attention that has no fused kernel.

    Without the attribute such an attention (fp32, or heads of 8 or 512) is an error.

    Source: NVIDIA's ONNX parser, attribute `TRT_decomposable` of Attention.
    """
    from onnx.helper import make_attribute

    for node in graph.node:
        if node.op_type == "Attention" and all(attribute.name != "TRT_decomposable" for attribute in node.attribute):
            node.attribute.append(make_attribute("TRT_decomposable", 1))


def keep_uint8_at_the_edges(graph: Any) -> None:
    """Let a transposition of bytes change places with the Cast beside it.

    TensorRT has bytes in inputs and outputs only, next to a Cast: picture -> Cast -> Transpose -> network, and
    network -> Transpose -> Cast -> picture.
    """
    from onnx import TensorProto

    makers = {node.output[0]: node for node in graph.node}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    pictures = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8]
    for picture in pictures:
        for first in readers.get(picture, []):
            after = readers.get(first.output[0], [])
            if first.op_type == "Transpose" and len(after) == 1 and after[0].op_type == "Cast":
                _swap(first, after[0])
    for value in graph.output:
        last = makers.get(value.name)
        if last is None or value.type.tensor_type.elem_type != TensorProto.UINT8 or last.op_type != "Transpose":
            continue
        before = makers.get(last.input[0])
        if before is not None and before.op_type == "Cast" and len(readers[before.output[0]]) == 1:
            _swap(before, last)
    known = [value for value in graph.value_info if value.type.tensor_type.elem_type != TensorProto.UINT8]
    del graph.value_info[:]
    graph.value_info.extend(known)


def _swap(first: Any, second: Any) -> None:
    """Exchange what two neighbouring nodes of one input and one output do; names and tensors stay in place."""
    kinds = [(node.op_type, list(node.attribute)) for node in (first, second)]
    for node, (op_type, attributes) in zip((first, second), reversed(kinds), strict=True):
        node.op_type = op_type
        del node.attribute[:]
        node.attribute.extend(attributes)
