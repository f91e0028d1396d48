"""What every backend offers: one door to a bundle's engines, devices that hold tensors, and engines that are bound to
them once and then run.

The life of a network in a run:

    engines = backend.open(bundle, demand)               # compiled where that comes first, weights on the device, once
    x, y    = backend.empty((1, 16, 64, 64), float32), ...
    step    = engines["step"].bind({"latent": x, "row": row, "next_latent": y, ...})   # shapes checked here, once
    row.write(numbers); step()                           # nothing is allocated, checked or copied here
    engines.require(more)                                # another size, another graph: the same door

A binding is a network at one static shape with fixed addresses: on a GPU backend it is one optimisation profile,
one execution context and, where possible, one captured CUDA graph.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from time import perf_counter
from typing import Any, Protocol, Self

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.errors import BundleError, ShapeError
from lssgen.manifest import Graph
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

    def write_part(self, first: int, values: Array) -> None:
        """Copy a host array over the items from number `first` on, in the order of memory; the others stay.

        Raises:
            ShapeError: The buffer ends before the array does.
        """
        ...

    def read_part(self, first: int, count: int) -> Array:
        """A host copy, (count,), of the items from number `first` on; waits as `read` does.

        Raises:
            ShapeError: The buffer has fewer.
        """
        ...


class Mark(Protocol):
    """A point in the backend's work: what was asked for before it is done when it is reached."""

    def reached(self) -> bool:
        """Whether the device has come here; does not wait."""
        ...

    def wait(self) -> None:
        """Block the host until the device has come here."""
        ...

    def seconds_since(self, earlier: Self) -> float:
        """Time on the device between two marks of one backend, both of which it has reached."""
        ...


class Engine(Protocol):
    """A network, compiled or loaded."""

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


class Engines(Protocol):
    """The engines of one bundle on a backend, by graph; from `Backend.open`."""

    def __getitem__(self, graph: str) -> Engine:
        """The engine of a graph that was demanded. It may be another one after `require`: bind that one again."""
        ...

    def require(self, demand: Demand) -> None:
        """See that the engines hold what is demanded, besides all that was demanded before.

        Raises:
            BundleError: The bundle has no such graph.
            BackendError, BuildError, StaleEngineError: As for `Backend.open`. What was there before stays.
        """
        ...

    def close(self) -> None:
        """Free everything. The bindings of its engines must not be called any more."""
        ...


class Backend(Protocol):
    """A place where networks run."""

    @property
    def name(self) -> str: ...

    def open(self, bundle: Bundle, demand: Demand) -> Engines:
        """The engines of a bundle for what is demanded: found, built where they are missing, and loaded.

        Raises:
            BundleError: The bundle has no such graph.
            BackendError: There is not enough memory; known before anything is loaded.
            BuildError, StaleEngineError: As their names say.
        """
        ...

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        """A new buffer, contents undefined."""
        ...

    def mark(self) -> Mark:
        """A mark behind all work so far."""
        ...

    def free_bytes(self) -> int | None:
        """Memory that the device has left; None where it is not known."""
        ...

    def describe(self) -> Mapping[str, object]:
        """What to write into run.json: versions, device, options."""
        ...


class HostBuffer:
    """A buffer in host memory with a fixed address.

    Args:
        array: The memory, in the order of memory.
    """

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def write(self, value: Array) -> None:
        if value.shape != self.shape:
            raise ShapeError(f"a buffer of shape {self.shape} was given an array of shape {value.shape}")
        np.copyto(self.array, value, casting="unsafe")

    def read(self) -> Array:
        return self.array.copy()

    def write_part(self, first: int, values: Array) -> None:
        check_part(self.shape, first, values.size)
        self.array.reshape(-1)[first : first + values.size] = values.reshape(-1)

    def read_part(self, first: int, count: int) -> Array:
        check_part(self.shape, first, count)
        return self.array.reshape(-1)[first : first + count].copy()


class Ported(Protocol):
    """What has ports: a graph's entry in the manifest, or what stands in its place."""

    @property
    def inputs(self) -> tuple[Port, ...]: ...

    @property
    def outputs(self) -> tuple[Port, ...]: ...


class GraphEngine:
    """A graph as an engine, to derive from: its name, and its ports as the manifest has them.

    Args:
        name: Name for messages.
        ports: The graph's entry in the manifest.
    """

    def __init__(self, name: str, ports: Ported) -> None:
        self._name = name
        self._ports = ports

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._ports.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._ports.outputs


class HostMark:
    """The mark of a backend whose calls return when their work is done."""

    def __init__(self) -> None:
        self._time = perf_counter()

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: "HostMark") -> float:
        return self._time - earlier._time


def see_graph(bundle: Bundle, graph: str) -> Graph:
    """The graph's entry in the manifest.

    Raises:
        BundleError: The bundle has no such graph.
    """
    if graph not in bundle.manifest.graphs:
        raise BundleError(f"bundle {bundle.folder} has no graph {graph!r}; export the model again")
    return bundle.manifest.graphs[graph]


def check_part(shape: Sequence[int], first: int, count: int) -> None:
    """See that a buffer of some shape has so many items from number `first` on.

    Raises:
        ShapeError: It has not.
    """
    if not 0 <= first <= first + count <= prod(shape):
        raise ShapeError(f"a buffer of shape {tuple(shape)} has no {count} items from number {first} on")


def check_buffers(engine: str, ports: Sequence[Port], buffers: Mapping[str, Buffer]) -> dict[str, int]:
    """See that every port has a buffer of its type and shape, and that equal axis names are equal sizes.

    Returns:
        The size of every dynamic axis.

    Raises:
        ShapeError: Says what came and what fits.
    """
    known = {port.name for port in ports}
    # Unknown ones too: a misspelt port would be missing and superfluous, and a library would take either in silence.
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
