"""The ordinary runtime with a listener in the step's place: `lssgen.engines.base.Backend` around another one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.calibration.taps import KINDS, Tap
from lssgen.engines.base import Backend, Binding, Buffer, Engine, Engines, Mark
from lssgen.engines.demand import Demand
from lssgen.manifest import Row, State
from lssgen.parity.samples import shape_of
from lssgen.ports import Array, Port

Told = Mapping[str, tuple[Array, ...]]
"""Numbers that a call's taps say, by tensor: the arrays of `KINDS`, and the mean squares of the products' results."""

Hear = Callable[[tuple[int, int], float, Told], None]
"""Given a call's latent size in cells, its label (what the network is told of the noise), and what its taps say."""


class ListeningBackend:
    """A backend whose step says what goes through it; the runtime does not notice.

    Args:
        backend: Backend that does the work.
        taps: Taps of the step's graph.
        hear: Hears of every step.
    """

    def __init__(self, backend: Backend, taps: Sequence[Tap], hear: Hear) -> None:
        self._backend = backend
        self._taps = tuple(taps)
        self._hear = hear
        self._latent = self._row = ""

    @property
    def name(self) -> str:
        return self._backend.name

    def open(self, bundle: Bundle, demand: Demand) -> "_ListeningEngines":
        step = bundle.manifest.graphs["step"]
        (latent,) = (name for name, feed in step.feeds.items() if isinstance(feed, State) and feed.start == "latent")
        (row,) = (name for name, feed in step.feeds.items() if isinstance(feed, Row))
        self._latent, self._row = latent, row
        return _ListeningEngines(self._backend.open(bundle, demand), self)

    def empty(self, shape: Sequence[int], dtype: Any) -> Buffer:
        return self._backend.empty(shape, dtype)

    def mark(self) -> Mark:
        return self._backend.mark()

    def free_bytes(self) -> int | None:
        return self._backend.free_bytes()

    def describe(self) -> Mapping[str, object]:
        return self._backend.describe()

    def listened(self, engine: Engine) -> "_ListeningEngine":
        """The step's engine, with buffers for what its taps say."""
        ports = (port for tap in self._taps for port in tap.ports)
        buffers = {port.name: self.empty(shape_of(port, {}), np.float32) for port in ports}
        return _ListeningEngine(engine, buffers, self)

    def tell(self, given: Mapping[str, Buffer], buffers: Mapping[str, Buffer]) -> None:
        """Read what the taps said in a call, and pass it on.

        Args:
            given: Buffers of the runtime.
            buffers: Buffers of the taps.
        """
        told: dict[str, tuple[Array, ...]] = {}
        for tap in self._taps:
            numbers = [buffers[tap.port(kind).name].read() for kind in KINDS]
            power = [buffers[port.name].read() for port in tap.power]
            told[tap.tensor] = (*numbers, np.concatenate(power) if power else np.empty(0, np.float32))
        height, width = given[self._latent].shape[-2:]
        self._hear((height, width), float(given[self._row].read()[0, 0]), told)


class _ListeningEngines:
    """`lssgen.engines.base.Engines` of a `ListeningBackend`."""

    def __init__(self, engines: Engines, backend: ListeningBackend) -> None:
        self._engines = engines
        self._backend = backend
        self._step: _ListeningEngine | None = None

    def __getitem__(self, graph: str) -> Engine:
        engine = self._engines[graph]
        if graph != "step":
            return engine
        if self._step is None or self._step.engine is not engine:
            self._step = self._backend.listened(engine)
        return self._step

    def require(self, demand: Demand) -> None:
        self._engines.require(demand)

    def close(self) -> None:
        self._engines.close()


class _ListeningEngine:
    """`lssgen.engines.base.Engine` of a `ListeningBackend`: the taps' outputs are its own affair."""

    def __init__(self, engine: Engine, buffers: Mapping[str, Buffer], backend: ListeningBackend) -> None:
        self.engine = engine
        self._buffers = buffers
        self._backend = backend

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(port for port in self.engine.outputs if port.name not in self._buffers)

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        run = self.engine.bind({**buffers, **self._buffers})

        def listened() -> None:
            run()
            self._backend.tell(buffers, self._buffers)

        return listened
