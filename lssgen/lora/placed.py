"""Where the weights of a bundle lie, by the names that they have in their checkpoint."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.errors import BundleError, ModelError
from lssgen.ports import Array

if TYPE_CHECKING:
    import onnx

TRANSPOSED = "lssgen.transposed"
"""Entry of a graph's metadata: the names of weights whose columns are the checkpoint's rows."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A weight in a data file of a bundle.

    Attributes:
        graph: Name of the graph that reads it.
        file: Data file, relative to the bundle.
        offset: First byte there.
        dtype: Type there.
        shape: Shape in the checkpoint.
        transposed: True where it lies there transposed.
    """

    graph: str
    file: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    transposed: bool

    def read(self, path: Path) -> Array:
        """The weight as in the checkpoint.

        Args:
            path: The data file.
        """
        flat = np.fromfile(path, self.dtype, prod(self.shape), offset=self.offset)
        return flat.reshape(self.shape[::-1]).T if self.transposed else flat.reshape(self.shape)

    def write(self, path: Path, value: Array) -> None:
        """Put another value in its place; it is cast to the type that lies there.

        Raises:
            OSError: The disk does not take it.
        """
        lying = np.ascontiguousarray(value.T if self.transposed else value, self.dtype)
        with path.open("r+b") as file:
            file.seek(self.offset)
            file.write(lying.tobytes())


def placed_weights(bundle: Bundle) -> Mapping[str, tuple[Placed, ...]]:
    """Every weight that lies in a data file: once for each graph that reads it.

    Raises:
        BundleError: A graph cannot be read, or points to where no weight is.
        ModelError: The library that reads graphs is not installed.
    """
    found: dict[str, tuple[Placed, ...]] = {}
    for graph in bundle.manifest.graphs:
        for name, placed in _of_graph(bundle, graph):
            found[name] = (*found.get(name, ()), placed)
    return found


def see_library() -> None:
    """See that graphs can be read.

    Raises:
        ModelError: The library is not installed.
    """
    if find_spec("onnx") is None:
        raise ModelError('a LoRA is merged with onnx; pip install "lssgen[lora]"')


def _of_graph(bundle: Bundle, graph: str) -> Iterator[tuple[str, Placed]]:
    entry = bundle.manifest.graphs[graph]
    model = _read(bundle.path(entry.file))
    transposed = {name for said in model.metadata_props if said.key == TRANSPOSED for name in json.loads(said.value)}
    sizes = {name: bundle.path(name).stat().st_size for name in entry.data}
    for tensor in model.graph.initializer:
        if not tensor.external_data:
            continue
        placed = _placed(graph, tensor, transposed=tensor.name in transposed)
        if not 0 <= placed.offset <= sizes.get(placed.file, -1) - prod(placed.shape) * placed.dtype.itemsize:
            raise BundleError(
                f"{bundle.path(entry.file)} is damaged: {tensor.name} does not lie in {placed.file}; export it again"
            )
        yield tensor.name, placed


def _read(path: Path) -> "onnx.ModelProto":
    see_library()
    from google.protobuf.message import DecodeError
    from onnx import load

    try:
        return load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise BundleError(f"{path} cannot be read: {error}; export it again") from error


def _placed(graph: str, tensor: "onnx.TensorProto", *, transposed: bool) -> Placed:
    from onnx.helper import tensor_dtype_to_np_dtype

    said = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(tensor.dims)
    return Placed(
        graph=graph,
        file=said.get("location", ""),
        offset=int(said.get("offset", 0)),
        dtype=np.dtype(tensor_dtype_to_np_dtype(tensor.data_type)),
        shape=shape[::-1] if transposed else shape,
        transposed=transposed,
    )
