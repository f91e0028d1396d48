"""Backends around other backends: what hears, counts or times, and leaves everything else as it is."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Binding, Buffer, Engine, Engines, Mark
from lssgen.engines.demand import Demand
from lssgen.ports import Port

Wrap = Callable[[str, Engine], Engine]
"""Makes what stands in an engine's place, from the name of its graph and the engine."""


class WrappedEngine:
    """`lssgen.engines.base.Engine` around another, whose name and ports it has.

    Attributes:
        engine: Engine that does the work.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
        return self.engine.bind(buffers)


class WrappedEngines:
    """`lssgen.engines.base.Engines` around others.

    Args:
        engines: Engines that do the work.
        wrap: Makes what stands in the place of each.
    """

    def __init__(self, engines: Engines, wrap: Wrap) -> None:
        self._engines = engines
        self._wrap = wrap
        self._known: dict[str, tuple[Engine, Engine]] = {}

    def __getitem__(self, graph: str) -> Engine:
        engine, (inner, wrapped) = self._engines[graph], self._known.get(graph, (None, None))
        # `require` may put another engine in a graph's place, and close the one that was wrapped before.
        if wrapped is None or inner is not engine:
            wrapped = self._wrap(graph, engine)
            self._known[graph] = (engine, wrapped)
        return wrapped

    def require(self, demand: Demand) -> None:
        self._engines.require(demand)

    def close(self) -> None:
        self._engines.close()


class WrappedBackend:
    """`lssgen.engines.base.Backend` around another, to derive from.

    Attributes:
        inner: Backend that does the work.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    def open(self, bundle: Bundle, demand: Demand) -> Engines:
        return self.inner.open(bundle, demand)

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        return self.inner.empty(shape, dtype)

    def mark(self) -> Mark:
        return self.inner.mark()

    def free_bytes(self) -> int | None:
        return self.inner.free_bytes()

    def describe(self) -> Mapping[str, object]:
        return self.inner.describe()
