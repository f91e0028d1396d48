"""A backend whose engines do nothing, for any bundle: what is left of a run is what the host does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import Binding, Buffer, GraphEngine, HostBuffer, HostMark, check_buffers, see_graph
from lssgen.engines.demand import Demand


class IdleEngine(GraphEngine):
    """`lssgen.engines.base.Engine` that does nothing."""

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        check_buffers(self._name, (*self.inputs, *self.outputs), buffers)
        return _nothing


class IdleEngines:
    """`lssgen.engines.base.Engines` of an `IdleBackend`."""

    def __init__(self, bundle: Bundle, demand: Demand) -> None:
        self._bundle = bundle
        self._engines: dict[str, IdleEngine] = {}
        self.require(demand)

    def __getitem__(self, graph: str) -> IdleEngine:
        return self._engines[graph]

    def require(self, demand: Demand) -> None:
        for graph in demand.graphs or self._bundle.manifest.graphs:
            entry = see_graph(self._bundle, graph)
            self._engines.setdefault(graph, IdleEngine(f"idle/{graph}", entry))

    def close(self) -> None:
        pass


class IdleBackend:
    """`lssgen.engines.base.Backend` that reads no graph and computes nothing."""

    @property
    def name(self) -> str:
        return "idle"

    def open(self, bundle: Bundle, demand: Demand) -> IdleEngines:
        return IdleEngines(bundle, demand)

    def empty(self, shape: Sequence[int], dtype: Any) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))  # zeros, with which a run that computes nothing can go on

    def mark(self) -> HostMark:
        return HostMark()

    def free_bytes(self) -> int | None:
        return None

    def describe(self) -> Mapping[str, object]:
        return {"backend": self.name}


def _nothing() -> None:
    pass
