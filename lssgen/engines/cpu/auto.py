"""The engine "auto": for every component of a bundle the fastest of the CPU's engines that computes it rightly.

Measured once on every machine for every bundle, in turn, and remembered. All engines read and write the same host
memory, so that components of one run may be computed by different ones.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import (
    Backend,
    Binding,
    Buffer,
    Engine,
    Engines,
    HostBuffer,
    HostMark,
    check_buffers,
    see_graph,
)
from lssgen.engines.cpu.choice import Choice, forgotten, recalled, remembered
from lssgen.engines.cpu.trial import trials_of
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBuffer
from lssgen.engines.options import OrtOptions, OvOptions
from lssgen.engines.wrapping import WrappedEngine
from lssgen.errors import ShapeError
from lssgen.machine import free_memory
from lssgen.ports import Array

_LOG = logging.getLogger("lssgen")


class SharedBuffer(HostBuffer):
    """Host memory that every engine of the CPU can bind."""

    def __init__(self, array: Array) -> None:
        super().__init__(array)
        self._seen: dict[str, Buffer] = {}

    def seen_by(self, engine: str) -> Buffer:
        """The same memory as a buffer of one engine's own."""
        if engine not in self._seen:
            self._seen[engine] = _VIEWS[engine](self.array)
        return self._seen[engine]


def _ov_buffer(array: Array) -> Buffer:
    return import_module("lssgen.engines.cpu.openvino").OvBuffer(array)


_VIEWS = {"onnxruntime": OrtBuffer.over, "openvino": _ov_buffer}
"""Function that makes an engine's own buffer of an array, by the engine's name."""


class AutoEngine(WrappedEngine):
    """One component on the engine that was chosen for it; `lssgen.engines.base.Engine`."""

    def __init__(self, engine: Engine, backend: str) -> None:
        super().__init__(engine)
        self._backend = backend

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        check_buffers(self.name, (*self.inputs, *self.outputs), buffers)
        return self.engine.bind({name: _own(buffer).seen_by(self._backend) for name, buffer in buffers.items()})


class AutoEngines:
    """The engines of a bundle; `lssgen.engines.base.Engines`."""

    def __init__(self, backend: "AutoBackend", bundle: Bundle, demand: Demand) -> None:
        self._backend = backend
        self._bundle = bundle
        self._inner: dict[str, Engines] = {}
        self._known: dict[str, AutoEngine] = {}
        self.require(demand)

    def __getitem__(self, graph: str) -> AutoEngine:
        name = self._backend.chosen[graph]
        engine, known = self._inner[name][graph], self._known.get(graph)
        if known is None or known.engine is not engine:
            known = self._known[graph] = AutoEngine(engine, name)
        return known

    def require(self, demand: Demand) -> None:
        graphs = demand.graphs or tuple(self._bundle.manifest.graphs)
        for graph in graphs:
            see_graph(self._bundle, graph)
        self._backend.choose(self._bundle, graphs)
        for name in dict.fromkeys(self._backend.chosen[graph] for graph in graphs):
            own = tuple(graph for graph in graphs if self._backend.chosen[graph] == name)
            part = Demand(own, demand.batches, demand.branches, demand.resolutions, demand.previews)
            if name in self._inner:
                self._inner[name].require(part)
            else:
                self._inner[name] = self._backend.backend(name).open(self._bundle, part)

    def close(self) -> None:
        for engines in self._inner.values():
            engines.close()
        self._inner.clear()
        self._known.clear()


class AutoBackend:
    """The CPU's engines behind one door; `lssgen.engines.base.Backend`.

    Args:
        options: How to run, whichever engine runs.

    Attributes:
        chosen: Name of the engine of every graph that was asked for.
    """

    def __init__(self, options: OrtOptions) -> None:
        self._options = options
        self._backends: dict[str, Backend] = {}
        self.chosen: dict[str, str] = {}

    @property
    def name(self) -> str:
        return "auto"

    def backend(self, name: str) -> Backend:
        """An engine's backend, made when it is first asked for."""
        if name not in self._backends:
            threads, low_memory = self._options.threads, self._options.low_memory
            if name == "openvino":
                self._backends[name] = import_module("lssgen.engines.cpu.openvino").OvBackend(
                    OvOptions(threads=threads, low_memory=low_memory)
                )
            else:
                self._backends[name] = import_module("lssgen.engines.onnxruntime").OrtBackend(
                    OrtOptions(threads=threads, low_memory=low_memory)
                )
        return self._backends[name]

    def open(self, bundle: Bundle, demand: Demand) -> AutoEngines:
        return AutoEngines(self, bundle, demand)

    def empty(self, shape: Sequence[int], dtype: Any) -> SharedBuffer:
        return SharedBuffer(np.empty(shape, dtype))

    def mark(self) -> HostMark:
        return HostMark()

    def free_bytes(self) -> int | None:
        return free_memory()

    def describe(self) -> Mapping[str, object]:
        inner = {name: dict(backend.describe()) for name, backend in self._backends.items()}
        return {"backend": self.name, "threads": self._options.threads, "engines": inner, "components": self.chosen}

    def choose(self, bundle: Bundle, graphs: Sequence[str]) -> None:
        """See that every graph has its engine: remembered, or measured now."""
        for graph in graphs:
            if graph not in self.chosen:
                self.chosen[graph] = self.choice(bundle, graph).engine

    def forget(self, bundle: Bundle, graph: str) -> None:
        """Let the next choice for a graph be measured anew."""
        forgotten(bundle, graph, self._options.threads, candidates())

    def choice(self, bundle: Bundle, graph: str) -> Choice:
        """The choice for one graph, with what was measured.

        Raises:
            BackendError: No engine runs it.
        """
        names, threads = candidates(), self._options.threads
        known = recalled(bundle, graph, threads, names)
        if known is not None:
            return known
        _LOG.info("measuring %s on %s, once on this machine", graph, " and ".join(names))
        trials = trials_of(bundle, graph, {name: self.backend(name) for name in names})
        return remembered(bundle, graph, threads, names, trials)


def candidates() -> tuple[str, ...]:
    """Engines of the CPU to choose from; the first is the reference, and wins a draw."""
    return ("onnxruntime", "openvino") if find_spec("openvino") else ("onnxruntime",)


def open_auto(options: OrtOptions) -> Backend:
    """The "auto" engine of the registry; where ONNX Runtime is alone there is nothing to choose, and it is that one."""
    if find_spec("openvino") is None:
        return import_module("lssgen.engines.onnxruntime").open_cpu(options)
    return AutoBackend(options)


def _own(buffer: Buffer) -> SharedBuffer:
    if not isinstance(buffer, SharedBuffer):
        raise ShapeError(
            f'engine "auto" binds its own buffers, not a {type(buffer).__name__}; use the backend\'s empty()'
        )
    return buffer
