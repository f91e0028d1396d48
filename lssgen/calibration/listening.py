"""The ordinary runtime with a listener in the step's place: `lssgen.engines.base.Backend` around another one."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lssgen.bundle import Bundle
from lssgen.calibration.taps import KINDS, Tap
from lssgen.engines.base import Backend, Binding, Buffer, Engine
from lssgen.engines.demand import Demand
from lssgen.engines.wrapping import WrappedBackend, WrappedEngine, WrappedEngines
from lssgen.manifest import Row, State
from lssgen.parity.samples import shape_of
from lssgen.ports import Array, Port

Told = Mapping[str, tuple[Array, ...]]
"""Numbers that a call's taps say, by tensor: the arrays of `KINDS`, and the mean squares of the products' results."""

Hear = Callable[[tuple[int, int], float, Told], None]
"""Given a call's latent size in cells, its label (what the network is told of the noise), and what its taps say."""


class ListeningBackend(WrappedBackend):
    """A backend whose step says what goes through it; the runtime does not notice.

    Args:
        backend: Backend that does the work.
        taps: Taps of the step's graph.
        hear: Hears of every step.
    """

    def __init__(self, backend: Backend, taps: Sequence[Tap], hear: Hear) -> None:
        super().__init__(backend)
        self._taps = tuple(taps)
        self._hear = hear
        self._latent = self._row = ""

    def open(self, bundle: Bundle, demand: Demand) -> WrappedEngines:
        step = bundle.manifest.graphs["step"]
        (latent,) = (name for name, feed in step.feeds.items() if isinstance(feed, State) and feed.start == "latent")
        (row,) = (name for name, feed in step.feeds.items() if isinstance(feed, Row))
        self._latent, self._row = latent, row
        return WrappedEngines(self.inner.open(bundle, demand), self._in_place_of)

    def _in_place_of(self, graph: str, engine: Engine) -> Engine:
        """The step's engine, with buffers for what its taps say; others as they are."""
        if graph != "step":
            return engine
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


class _ListeningEngine(WrappedEngine):
    """`lssgen.engines.base.Engine` of a `ListeningBackend`: the taps' outputs are its own affair."""

    def __init__(self, engine: Engine, buffers: Mapping[str, Buffer], backend: ListeningBackend) -> None:
        super().__init__(engine)
        self._buffers = buffers
        self._backend = backend

    @property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(port for port in self.engine.outputs if port.name not in self._buffers)

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        run = self.engine.bind({**buffers, **self._buffers})

        def listened() -> None:
            run()
            self._backend.tell(buffers, self._buffers)

        return listened
