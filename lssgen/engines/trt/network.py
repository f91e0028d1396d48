"""What TensorRT's parser needs in a graph, written on a copy in memory: ONNX Runtime would not take it."""

from pathlib import Path
from typing import Any

from lssgen.errors import BackendError, BuildError


def engine_model(path: Path) -> bytes:
    """A graph as TensorRT's parser takes it, without the weights in files beside it.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The file is no ONNX graph.
    """
    model = load_graph(path)
    make_attention_decomposable(model.graph)
    return model.SerializeToString()


def load_graph(path: Path) -> Any:
    """A graph without the weights in files beside it.

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
        return onnx.load(path, load_external_data=False)
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
