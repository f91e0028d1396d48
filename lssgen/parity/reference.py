"""What a graph should compute: ONNX Runtime on the CPU, in float32 whatever the graph's precision."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from lssgen.errors import BackendError, BuildError, ProbeError
from lssgen.ports import Array


def reference_outputs(onnx: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What the graph gives, by port.

    Raises:
        BackendError: A package that this needs is missing.
        BuildError: ONNX Runtime refuses the graph.
    """
    try:
        return reference().open_pieces(onnx, rounded=False).run(inputs)
    except ProbeError as error:
        raise BuildError(f"ONNX Runtime cannot compute {onnx.name} on the CPU to compare with: {error}") from error


def reference() -> Any:
    """The module `lssgen.parity.pieces`, whose libraries an engine does not need to run.

    Raises:
        BackendError: One of them is not installed.
    """
    try:
        return import_module("lssgen.parity.pieces")
    except ImportError as error:
        raise BackendError(
            f'to compare an engine with its graph, {error.name} is needed: pip install "lssgen[onnxruntime]" onnx-ir'
        ) from error
