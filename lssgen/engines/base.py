"""What every backend offers: devices that hold tensors, and engines that are bound to them once and then run.

The life of a network in a run:

    engine  = backend.load(path)                         # weights on the device, once
    x, y    = backend.empty((1, 16, 64, 64), float32), ...
    step    = engine.bind({"latent": x, "row": row, "next_latent": y, ...})   # shapes checked here, once
    row.write(numbers); step()                           # nothing is allocated, checked or copied here

A binding is a network at one static shape with fixed addresses: on a GPU backend it is one optimisation profile,
one execution context and, where possible, one captured CUDA graph.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lssgen.errors import ShapeError
from lssgen.ports import Array, Port

Binding = Callable[[], None]
"""Runs the network once: reads the bound inputs, writes the bound outputs. Work is ordered with reads and writes."""


class Buffer(Protocol):
    """A tensor on the backend's device. Its address stays the same as long as it lives."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def write(self, value: Array) -> None:
        """Copy a host array of the same shape in. The array may be reused as soon as this returns."""
        ...

    def read(self) -> Array:
        """A host copy that the caller owns; waits for the work that fills the buffer."""
        ...


class Engine(Protocol):
    """A loaded network."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        """Tie the network to one buffer per port, inputs and outputs alike.

        The buffers stay the caller's; the binding keeps them alive. Several bindings of one engine may exist at a
        time, but two may not run at the same time.

        Raises:
            ShapeError: A port is missing, unknown, or its buffer has another type or an impossible shape.
        """
        ...

    def close(self) -> None:
        """Free the weights. Its bindings must not be called any more."""
        ...


class Backend(Protocol):
    """A place where networks run."""

    @property
    def name(self) -> str: ...

    def load(self, graph: Path, *, name: str) -> Engine:
        """Load an ONNX graph, or what was built from it.

        Raises:
            BackendError, BuildError, StaleEngineError: As their names say.
        """
        ...

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """A new buffer, contents undefined."""
        ...

    def describe(self) -> Mapping[str, object]:
        """What to write into run.json: versions, device, options."""
        ...


def check_buffers(engine: str, ports: Sequence[Port], buffers: Mapping[str, Buffer]) -> dict[str, int]:
    """See that every port has a buffer of its type and shape, and that equal axis names are equal sizes.

    Returns:
        The size of every dynamic axis.

    Raises:
        ShapeError: Says what came and what fits.
    """
    known = {port.name for port in ports}
    if set(buffers) != known:
        missing, extra = sorted(known - set(buffers)), sorted(set(buffers) - known)
        raise ShapeError(f"{engine} needs a buffer for each of {sorted(known)}; missing {missing}, unknown {extra}")
    axes: dict[str, int] = {}
    for port in ports:
        buffer = buffers[port.name]
        came = f"{buffer.dtype}{list(buffer.shape)}"
        if buffer.dtype != np.dtype(port.dtype) or len(buffer.shape) != len(port.shape):
            raise ShapeError(f"{engine} takes {port}, but was given {came}")
        for axis, size in zip(port.shape, buffer.shape, strict=True):
            expected = axes.setdefault(axis, size) if isinstance(axis, str) else axis
            if size != expected:
                raise ShapeError(f"{engine} takes {port}, but was given {came}: axis {axis!r} is {expected} elsewhere")
    return axes
