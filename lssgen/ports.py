"""The tensors that go into and come out of graphs, by name: what a bundle, an engine and an export all speak of."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Port:
    """A named tensor that goes into or comes out of a graph.

    Attributes:
        name: Name in the ONNX graph.
        dtype: NumPy name: "float32", "int64", "uint8", ...
        shape: Sizes; a string is a dynamic axis, and equal strings are equal sizes across all ports of a graph.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"
