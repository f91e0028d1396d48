"""The engine "auto": for every component of a bundle, at each size, the fastest of the CPU's engines that is right.

Measured once on every machine for every bundle, in turn, and remembered. All engines read and write the same host
memory, so that components of one run may be computed by different ones.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import (
    Backend,
    Binding,
    Buffer,
    Engine,
    Engines,
    GraphEngine,
    HostBuffer,
    HostMark,
    check_buffers,
    see_graph,
)
from lssgen.engines.cpu.choice import LARGE_BYTES, Choice, chosen, forgotten, measuring, recalled, remembered
from lssgen.engines.cpu.trial import trials_of
from lssgen.engines.demand import Demand, size_in_cells
from lssgen.engines.onnxruntime import OrtBuffer
from lssgen.engines.options import OrtOptions, OvOptions
from lssgen.errors import ShapeError
from lssgen.machine import free_memory
from lssgen.manifest import Graph
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


class AutoEngine(GraphEngine):
    """One component on the engine that was chosen for each of its sizes; `lssgen.engines.base.Engine`.

    Args:
        graph: The graph's entry in the manifest.
        engines: Engines by the name of their backend; that of the largest size first.
        choice: Says which of them runs at a size.
        cell_px: Pixels along one side of a latent cell.
    """

    def __init__(self, graph: Graph, engines: Mapping[str, Engine], choice: Choice, cell_px: int) -> None:
        super().__init__(next(iter(engines.values())).name, graph)
        self.engines = engines
        self._graph = graph
        self._choice = choice
        self._cell_px = cell_px

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        check_buffers(self.name, (*self.inputs, *self.outputs), buffers)
        size = size_in_cells(self._graph, {name: buffer.shape for name, buffer in buffers.items()})
        backend = self._choice.engine_at(size and (size[0] * self._cell_px, size[1] * self._cell_px))
        return self.engines[backend].bind({name: _own(buffer).seen_by(backend) for name, buffer in buffers.items()})


class AutoEngines:
    """The engines of a bundle; `lssgen.engines.base.Engines`."""

    def __init__(self, backend: "AutoBackend", bundle: Bundle, demand: Demand) -> None:
        self._backend = backend
        self._bundle = bundle
        self._inner: dict[str, Engines] = {}
        self._known: dict[str, AutoEngine] = {}
        self.require(demand)

    def __getitem__(self, graph: str) -> AutoEngine:
        choice, known = self._backend.chosen(self._bundle)[graph], self._known.get(graph)
        engines = {name: self._inner[name][graph] for name in choice.engines}
        if known is None or known.engines != engines:
            manifest = self._bundle.manifest
            known = AutoEngine(manifest.graphs[graph], engines, choice, manifest.facts.cell_px)
            self._known[graph] = known
        return known

    def require(self, demand: Demand) -> None:
        graphs = demand.graphs or tuple(self._bundle.manifest.graphs)
        for graph in graphs:
            see_graph(self._bundle, graph)
        chosen = self._backend.choose(self._bundle, graphs)
        for name in dict.fromkeys(name for graph in graphs for name in chosen[graph].engines):
            own = tuple(graph for graph in graphs if name in chosen[graph].engines)
            part = replace(demand, graphs=own)
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
    """

    def __init__(self, options: OrtOptions) -> None:
        self._options = options
        self._backends: dict[str, Backend] = {}
        self._chosen: dict[Path, dict[str, Choice]] = {}
        self._told = False

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
        last = next(reversed(self._chosen.values()), {})  # a run has one bundle
        components = {graph: str(choice) for graph, choice in last.items()}
        return {"backend": self.name, **asdict(self._options), "engines": inner, "components": components}

    def chosen(self, bundle: Bundle) -> dict[str, Choice]:
        """Choice for every graph of a bundle that was asked for."""
        return self._chosen.setdefault(bundle.folder.resolve(), {})

    def choose(self, bundle: Bundle, graphs: Sequence[str]) -> Mapping[str, Choice]:
        """Choice for every graph: remembered, or measured now."""
        chosen = self.chosen(bundle)
        for graph in graphs:
            if graph not in chosen:
                choice = self.choice(bundle, graph)
                once = self._options.low_memory or bundle.stored_bytes(graph) > LARGE_BYTES
                chosen[graph] = choice.alike() if once else choice
        return chosen

    def forget(self, bundle: Bundle, graph: str) -> None:
        """Let the next choice for a graph be measured anew."""
        forgotten(bundle, graph, self._options.threads, candidates())

    def choice(self, bundle: Bundle, graph: str) -> Choice:
        """The choice for one graph, with what was measured.

        Raises:
            BackendError: No engine runs it.
        """
        names, threads = candidates(), self._options.threads
        if (known := recalled(bundle, graph, threads, names)) is not None:
            return known
        with measuring(_LOG.info):
            if (known := recalled(bundle, graph, threads, names)) is not None:  # another process has measured it
                return known
            _LOG.info("measuring %s on %s, once on this machine", graph, " and ".join(names))
            trials = trials_of(bundle, graph, {name: self.backend(name) for name in names})
            return remembered(bundle, threads, names, chosen(graph, trials), self._tell_once)

    def _tell_once(self, said: str) -> None:
        if not self._told:
            _LOG.warning("%s", said)
        self._told = True


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
