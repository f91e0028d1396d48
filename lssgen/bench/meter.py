"""A backend that counts what it is asked for and times what it runs, around any other backend.

Counts are exact and need no clock: engine calls, copies, allocations. Times come from the backend's own marks, so that
on a GPU they are those of the device and never those of a launch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from time import perf_counter
from typing import Any, cast

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Binding, Buffer, Engine, Mark
from lssgen.engines.demand import Demand, size_in_cells
from lssgen.engines.wrapping import WrappedBackend, WrappedEngine, WrappedEngines
from lssgen.manifest import Graph
from lssgen.ports import Array


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an engine.

    Attributes:
        graph: Name of the graph.
        size: Size of its latent in pixels of the picture, "256x256" as width x height; empty for a graph without one.
        enqueue: Seconds that the host took to ask for it.
        begin, end: Marks on the device around it.
    """

    graph: str
    size: str
    enqueue: float
    begin: Mark
    end: Mark

    @property
    def compute(self) -> float:
        """Seconds on the device."""
        return self.end.seconds_since(self.begin)


@dataclass(slots=True)
class Tally:
    """Everything that was asked of a backend.

    Attributes:
        calls: Number of engine calls, by graph and size.
        allocations, allocated_bytes: Buffers that were made.
        uploads, uploaded_bytes: Copies from the host to a buffer.
        downloads, downloaded_bytes: Copies from a buffer to the host.
    """

    calls: Counter[str] = field(default_factory=Counter[str])
    allocations: int = 0
    allocated_bytes: int = 0
    uploads: int = 0
    uploaded_bytes: int = 0
    downloads: int = 0
    downloaded_bytes: int = 0


class Meter:
    """What a `MeteredBackend` has seen since it was last asked to forget.

    Args:
        timed: Keep a record of every call; without, calls are only counted.

    Attributes:
        tally: Counts.
        log: Calls in their order.
    """

    def __init__(self, *, timed: bool = True) -> None:
        self.timed = timed
        self.tally = Tally()
        self.log: list[Call] = []

    def forget(self) -> None:
        """Begin anew."""
        self.tally = Tally()
        self.log = []

    def compute(self, graph: str) -> float:
        """Seconds on the device of all calls of a graph."""
        return sum(call.compute for call in self.log if call.graph == graph)

    def gaps(self) -> list[float]:
        """Seconds that the device waited between two steps of one stage: what the host costs it."""
        return [
            max(after.begin.seconds_since(before.end), 0.0)
            for before, after in pairwise(self.log)
            if before.graph == after.graph == "step" and before.size == after.size
        ]


class MeteredBuffer:
    """`lssgen.engines.base.Buffer` of a `MeteredBackend`."""

    def __init__(self, inner: Buffer, meter: Meter) -> None:
        self.inner = inner
        self._meter = meter
        self._bytes = prod(inner.shape) * inner.dtype.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.inner.dtype

    def write(self, value: Array) -> None:
        tally = self._meter.tally
        tally.uploads += 1
        tally.uploaded_bytes += self._bytes
        self.inner.write(value)

    def read(self) -> Array:
        tally = self._meter.tally
        tally.downloads += 1
        tally.downloaded_bytes += self._bytes
        return self.inner.read()

    def write_part(self, first: int, values: Array) -> None:
        tally = self._meter.tally
        tally.uploads += 1
        tally.uploaded_bytes += values.nbytes
        self.inner.write_part(first, values)

    def read_part(self, first: int, count: int) -> Array:
        tally = self._meter.tally
        tally.downloads += 1
        tally.downloaded_bytes += count * self.dtype.itemsize
        return self.inner.read_part(first, count)


class MeteredEngine(WrappedEngine):
    """`lssgen.engines.base.Engine` of a `MeteredBackend`."""

    def __init__(self, backend: "MeteredBackend", engine: Engine, name: str, graph: Graph, cell_px: int) -> None:
        super().__init__(engine)
        self._backend = backend
        self._graph = name
        self._entry = graph
        self._cell_px = cell_px

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        run = self.engine.bind({name: cast(MeteredBuffer, buffer).inner for name, buffer in buffers.items()})
        graph, meter, mark = self._graph, self._backend.meter, self._backend.inner.mark
        size = size_of(self._entry, {name: buffer.shape for name, buffer in buffers.items()}, self._cell_px)
        key = f"{graph} {size}".rstrip()

        def metered() -> None:
            meter.tally.calls[key] += 1
            if not meter.timed:
                run()
                return
            begin, began = mark(), perf_counter()
            run()
            meter.log.append(Call(graph, size, perf_counter() - began, begin, mark()))

        return metered


class MeteredBackend(WrappedBackend):
    """`lssgen.engines.base.Backend` that counts and times.

    Args:
        inner: Backend that does the work.
        meter: Hears of everything.

    Attributes:
        meter: Meter, as given.
    """

    def __init__(self, inner: Backend, meter: Meter) -> None:
        super().__init__(inner)
        self.meter = meter

    def open(self, bundle: Bundle, demand: Demand) -> WrappedEngines:
        manifest = bundle.manifest

        def metered(graph: str, engine: Engine) -> MeteredEngine:
            return MeteredEngine(self, engine, graph, manifest.graphs[graph], manifest.facts.cell_px)

        return WrappedEngines(self.inner.open(bundle, demand), metered)

    def empty(self, shape: Sequence[int], dtype: Any) -> MeteredBuffer:
        buffer = super().empty(shape, dtype)
        tally = self.meter.tally
        tally.allocations += 1
        tally.allocated_bytes += prod(shape) * np.dtype(dtype).itemsize
        return MeteredBuffer(buffer, self.meter)


def size_of(graph: Graph, shapes: Mapping[str, Sequence[int]], cell_px: int) -> str:
    """The picture size that a graph's tensors belong to, "256x256"; empty where it has none."""
    size = size_in_cells(graph, shapes)
    return f"{size[1] * cell_px}x{size[0] * cell_px}" if size else ""
