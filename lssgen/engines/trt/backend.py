"""TensorRT and TensorRT-RTX: compiled engines with static profiles, bound once, replayed as CUDA graphs.

one engine a graph       its weights are on the device once, whatever the number of profiles
one context a binding    its profile, shapes and addresses never change, so its CUDA graph stays valid
one arena                scratch memory of all contexts of all engines, since they run one after another
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from lssgen.bundle import Bundle
from lssgen.engines.base import see_graph
from lssgen.engines.cuda import CudaBuffer, Device, Event
from lssgen.engines.demand import Demand, Profile, profiles_of
from lssgen.engines.trt.cache import Entry
from lssgen.engines.trt.engine import TrtEngine
from lssgen.engines.trt.library import Flavour, Library, require_library
from lssgen.engines.trt.need import arranged
from lssgen.engines.trt.options import TrtOptions, bounds, build_options
from lssgen.engines.trt.order import Order, engines_for
from lssgen.engines.trt.progress import progress_bar
from lssgen.engines.trt.residence import Residence
from lssgen.errors import BackendError, EngineError


class TensorRT:
    """`lssgen.engines.base.Backend` on one GPU.

    Args:
        library: From `require_library`.
        device: The GPU.
        options: What the user chose. Low-memory mode is chosen, with a warning, where engines do not fit together.

    Raises:
        BackendError: The library does not start on this device.
    """

    def __init__(self, library: Library, device: Device, options: TrtOptions) -> None:
        self._library = library
        self._device = device
        self._options = options
        self._residence = Residence(device, low_memory=options.low_memory)
        self._opened: weakref.WeakSet[TrtEngines] = weakref.WeakSet()
        # A runtime belongs to the GPU that its thread has chosen when it is made.
        device.choose()
        with library.listen() as log:
            self._runtime: Any = library.module.Runtime(library.logger)
            if self._runtime is None:
                raise BackendError(f"{library.flavour} does not start on {device.name}: {log.reason()}")

    @property
    def name(self) -> str:
        return self._library.flavour

    @property
    def low_memory(self) -> bool:
        """Whether the weights of one large engine are on the device at a time."""
        return self._residence.low_memory

    def open(self, bundle: Bundle, demand: Demand) -> "TrtEngines":
        engines = TrtEngines(self, bundle)
        engines.require(demand)
        self._opened.add(engines)
        return engines

    def empty(self, shape: Sequence[int], dtype: Any) -> CudaBuffer:
        return CudaBuffer(self._device, shape, dtype)

    def mark(self) -> Event:
        return self._device.event()

    def free_bytes(self) -> int | None:
        return self._device.memory()[0]

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "version": self._library.version,
            **self._device.describe(),
            "low_memory": self.low_memory,
            "engine_folder": str(self._options.engines),
            "predicted_bytes": self._residence.predicted,
            "engines": {graph: key for engines in self._opened for graph, key in engines.keys.items()},
        }

    def provide(self, bundle: Bundle, sizes: Mapping[str, Sequence[Profile]]) -> dict[str, Entry]:
        """Engines for this device that hold these profiles: found, or built with a bar on a terminal."""
        order = Order(
            flavour=self._library.flavour,
            targets=(self._device.target,),
            options=build_options(self._options),
            bounds=bounds(self._options),
            folder=self._options.engines,
            device_id=self._device.index,
        )
        with progress_bar() as tell:
            return engines_for(bundle, sizes, order, tell)

    def load(self, entries: Mapping[str, Entry], names: str, instead: Sequence[TrtEngine]) -> dict[str, TrtEngine]:
        """Load engines, in the place of others: these sleep, and wake again where they run all the same.

        Args:
            entries: Engines by graph.
            names: Name of the model, for messages.
            instead: Engines whose place they take.

        Raises:
            BackendError: There is not enough memory; known before anything is loaded.
            EngineError: One of them cannot be loaded; none of them is left.
        """
        loaded: dict[str, TrtEngine] = {}
        # From the look at free memory to the last engine, so that no other thread takes what was free.
        with self._device.turn:
            self._residence.make_room([entry.report for entry in entries.values()], instead)
            for old in instead:
                old.sleep()
            try:
                for graph, entry in entries.items():
                    engine = TrtEngine(
                        self._library, self._device, self._runtime, self._residence, f"{names}/{graph}", entry
                    )
                    loaded[graph] = engine
                    self._residence.add(engine)
            except BaseException:
                for engine in loaded.values():
                    engine.close()
                raise
        return loaded


class TrtEngines:
    """The engines of a bundle; `lssgen.engines.base.Engines`."""

    def __init__(self, backend: TensorRT, bundle: Bundle) -> None:
        self._backend = backend
        self._bundle = bundle
        self._sizes: dict[str, tuple[Profile, ...]] = {}
        self._engines: dict[str, TrtEngine] = {}

    def __getitem__(self, graph: str) -> TrtEngine:
        if graph not in self._engines:
            raise EngineError(
                f"{self._bundle.manifest.facts.name}/{graph} was not demanded, or does not run at any of the sizes "
                f"demanded; there are {', '.join(self._engines) or 'no engines'}"
            )
        return self._engines[graph]

    @property
    def keys(self) -> dict[str, str]:
        """The key of every engine, by graph."""
        return {graph: engine.entry.key for graph, engine in self._engines.items()}

    def require(self, demand: Demand) -> None:
        for graph in demand.graphs:
            see_graph(self._bundle, graph)
        sizes = dict(self._sizes)
        for graph, profiles in profiles_of(self._bundle.manifest, demand).items():
            # Sizes met before too, so that one engine, with its weights on the device once, serves them all.
            sizes[graph] = arranged((*sizes.get(graph, ()), *profiles))
        lacking = {graph: profiles for graph, profiles in sizes.items() if not self._holds(graph, profiles)}
        if lacking:
            entries = self._backend.provide(self._bundle, lacking)
            old = [self._engines[graph] for graph in entries if graph in self._engines]
            self._engines |= self._backend.load(entries, self._bundle.manifest.facts.name, old)
            # After the new ones are there: where they cannot be built or loaded, the old ones go on.
            for engine in old:
                engine.close()
        self._sizes = sizes

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._sizes.clear()

    def _holds(self, graph: str, profiles: Sequence[Profile]) -> bool:
        engine = self._engines.get(graph)
        return engine is not None and all(profile in engine.report.profiles for profile in profiles)


def open_tensorrt(options: TrtOptions) -> TensorRT:
    """The "tensorrt" engine of the registry."""
    return _open("tensorrt", options)


def open_tensorrt_rtx(options: TrtOptions) -> TensorRT:
    """The "tensorrt-rtx" engine of the registry."""
    return _open("tensorrt-rtx", options)


def _open(flavour: Flavour, options: TrtOptions) -> TensorRT:
    return TensorRT(require_library(flavour), Device(options.device_id), options)
