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
from lssgen.engines.base import Backend, Binding, Buffer, Engine, Engines, Mark
from lssgen.engines.demand import Demand
from lssgen.manifest import Graph
from lssgen.ports import Array, Port


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


class MeteredEngine:
    """`lssgen.engines.base.Engine` of a `MeteredBackend`."""

    def __init__(self, backend: "MeteredBackend", engine: Engine, name: str, graph: Graph, cell_px: int) -> None:
        self.engine = engine
        self._backend = backend
        self._graph = name
        self._entry = graph
        self._cell_px = cell_px

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.engine.outputs

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


class MeteredEngines:
    """`lssgen.engines.base.Engines` of a `MeteredBackend`."""

    def __init__(self, backend: "MeteredBackend", engines: Engines, bundle: Bundle) -> None:
        self._backend = backend
        self._engines = engines
        self._bundle = bundle
        self._known: dict[str, MeteredEngine] = {}

    def __getitem__(self, graph: str) -> MeteredEngine:
        engine, known = self._engines[graph], self._known.get(graph)
        if known is None or known.engine is not engine:
            manifest = self._bundle.manifest
            entry, cell = manifest.graphs[graph], manifest.facts.cell_px
            known = self._known[graph] = MeteredEngine(self._backend, engine, graph, entry, cell)
        return known

    def require(self, demand: Demand) -> None:
        self._engines.require(demand)

    def close(self) -> None:
        self._engines.close()


class MeteredBackend:
    """`lssgen.engines.base.Backend` that counts and times.

    Args:
        inner: Backend that does the work.
        meter: Hears of everything.

    Attributes:
        inner, meter: Backend and meter, as given.
    """

    def __init__(self, inner: Backend, meter: Meter) -> None:
        self.inner = inner
        self.meter = meter

    @property
    def name(self) -> str:
        return self.inner.name

    def open(self, bundle: Bundle, demand: Demand) -> MeteredEngines:
        return MeteredEngines(self, self.inner.open(bundle, demand), bundle)

    def empty(self, shape: Sequence[int], dtype: Any) -> MeteredBuffer:
        buffer = self.inner.empty(shape, dtype)
        tally = self.meter.tally
        tally.allocations += 1
        tally.allocated_bytes += prod(shape) * np.dtype(dtype).itemsize
        return MeteredBuffer(buffer, self.meter)

    def mark(self) -> Mark:
        return self.inner.mark()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def describe(self) -> Mapping[str, object]:
        return self.inner.describe()


def size_of(graph: Graph, shapes: Mapping[str, Sequence[int]], cell_px: int) -> str:
    """The picture size that a graph's tensors belong to, "256x256"; empty where it has none."""
    found = {
        graph.axes.get(axis): size
        for port in (*graph.inputs, *graph.outputs)
        for axis, size in zip(port.shape, shapes[port.name], strict=True)
        if isinstance(axis, str)
    }
    return f"{found['width'] * cell_px}x{found['height'] * cell_px}" if "width" in found else ""
