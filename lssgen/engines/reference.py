"""What a graph should compute: ONNX Runtime on the CPU, in float32 whatever the graph's precision.

ONNX Runtime's CPU has no bfloat16, and computes float16 mostly in float32 anyway. So every half-precision type of the
graph becomes float32 in a copy in memory, and every weight keeps its value.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lssgen.engines.base import Array
from lssgen.engines.trt_onnx import load_graph
from lssgen.errors import BackendError, BuildError

_FLOAT, _FLOAT16, _BFLOAT16 = 1, 10, 16
_HALF = (_FLOAT16, _BFLOAT16)


def reference_outputs(onnx: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph gives, by port.

    Raises:
        BackendError: The package onnx or onnxruntime is missing.
        BuildError: ONNX Runtime refuses the graph, or has no memory for its weights in float32.
    """
    ort = onnxruntime()
    model = load_graph(onnx)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        weights = {tensor.name: ort.OrtValue.ortvalue_from_numpy(value) for tensor, value in _widened(model, onnx)}
        options.add_external_initializers(list(weights), list(weights.values()))
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return {name: np.asarray(made) for name, made in zip(names, session.run(names, dict(inputs)), strict=True)}
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
        raise BuildError(f"ONNX Runtime cannot compute {onnx.name} on the CPU to compare with: {error}") from error


def onnxruntime() -> Any:
    """The module.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            'to compare an engine with its graph, ONNX Runtime is needed: pip install "lssgen[onnxruntime]"'
        ) from error


def _widened(model: Any, onnx: Path) -> Iterator[tuple[Any, Array]]:
    """Make a model compute in float32; yields its weights in files, one at a time, with their values."""
    from onnx import numpy_helper

    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _HALF:
            value.type.tensor_type.elem_type = _FLOAT
    constants = [tensor for tensor in graph.initializer if not tensor.external_data]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type") and attribute.i in _HALF:
                attribute.i = _FLOAT
            if attribute.HasField("t"):
                constants.append(attribute.t)
    for tensor in constants:
        if tensor.data_type in _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for tensor in graph.initializer:
        if tensor.external_data:
            value = stored_values(tensor, onnx)
            if tensor.data_type in _HALF:
                tensor.data_type = _FLOAT
            yield tensor, value


def stored_values(tensor: Any, onnx: Path) -> Array:
    """A weight from its file, half precision widened to float32."""
    from onnx.helper import tensor_dtype_to_np_dtype

    data = stored_bytes(tensor, onnx)
    if tensor.data_type == _BFLOAT16:  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.dims)
    value = data.view(tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tensor.dims)
    return value.astype(np.float32) if tensor.data_type == _FLOAT16 else value


def stored_bytes(tensor: Any, onnx: Path) -> Array:
    """The bytes of a weight in a file beside the graph."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    count = int(place["length"]) if "length" in place else -1
    return np.fromfile(onnx.with_name(place["location"]), np.uint8, count, offset=int(place.get("offset", 0)))
