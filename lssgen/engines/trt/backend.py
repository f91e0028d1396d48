"""TensorRT and TensorRT-RTX: compiled engines with static profiles, bound once, replayed as CUDA graphs.

one engine a graph       its weights are on the device once, whatever the number of profiles
one context a binding    its profile, shapes and addresses never change, so its CUDA graph stays valid
one arena                scratch memory of all contexts of all engines, since they run one after another
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lssgen.bundle import Bundle
from lssgen.engines.cuda import CudaBuffer, Device, Memory
from lssgen.engines.graphs import bundle_of
from lssgen.engines.options import EngineOptions
from lssgen.engines.trt.cache import Entry, entry_at
from lssgen.engines.trt.engine import TrtEngine
from lssgen.engines.trt.fit import Need, device_bytes, misfits, stays
from lssgen.engines.trt.library import Flavour, Library, open_library
from lssgen.engines.trt.order import Order, build_engines, progress_bar
from lssgen.engines.trt.report import Report, megabytes
from lssgen.errors import BackendError, BundleError, EngineError, StaleEngineError

_LOG = logging.getLogger("lssgen")
_CUDA_BYTES = 500_000_000
"""What the CUDA context and the libraries take; 300 to 500 MB are usual."""


class TensorRT:
    """`lssgen.engines.base.Backend` on one GPU.

    When the first graph of a bundle is loaded, engines that are missing are built, and the device memory of the whole
    run is predicted.

    Args:
        library: From `open_library`.
        device: The GPU.
        order: What to build where something is missing. Its targets do not matter: the device is the target.
        low_memory: Keep the weights of one large engine at a time on the device. Chosen, with a warning, where they
            do not fit together.

    Raises:
        BackendError: The library does not start on this device.
    """

    def __init__(self, library: Library, device: Device, order: Order, *, low_memory: bool = False) -> None:
        self.library = library
        self.device = device
        self.low_memory = low_memory
        self._order = replace(order, targets=(device.target,), device_id=device.index)
        self._engines: dict[Path, dict[str, Entry]] = {}
        self._arena: Memory | None = None
        self._predicted = 0
        self._largest = 0
        self._awake: weakref.ref[TrtEngine] | None = None
        with library.listen() as log:
            self.runtime: Any = library.module.Runtime(library.logger)
            if self.runtime is None:
                raise BackendError(f"{library.flavour} does not start on {device.name}: {log.reason()}")

    @property
    def name(self) -> str:
        return self.library.flavour

    def load(self, graph: Path, *, name: str) -> TrtEngine:
        """Load a graph of a bundle (its .onnx file), or the folder of an engine.

        Raises:
            BackendError: Not enough device memory; known before anything is loaded.
            BuildError: The engine was missing, and cannot be built.
            StaleEngineError: The engine is for another device, or of another library or version.
            EngineError: The engine is damaged.
            BundleError: The graph is of no bundle.
        """
        if graph.is_dir():
            entries, own = self._given(graph)
        else:
            found = bundle_of(graph)
            if found is None:
                raise BundleError(
                    f"{graph} is no graph of a bundle; {self.name} needs the manifest to know the sizes to build for"
                )
            bundle, own = found
            entries = self._built(bundle)
            if own not in entries:
                raise EngineError(f"{name} has no engine: no run at the bundle's resolutions needs this graph")
        self._make_room([entry.report for entry in entries.values()])
        return TrtEngine(self, name, entries[own])

    def empty(self, shape: Sequence[int], dtype: Any) -> CudaBuffer:
        return CudaBuffer(self.device, shape, dtype)

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "version": self.library.version,
            **self.device.describe(),
            "low_memory": self.low_memory,
            "engine_folder": str(self._order.folder),
            "predicted_bytes": self._predicted,
            "engines": {entry.report.graph: entry.key for built in self._engines.values() for entry in built.values()},
        }

    def arena(self, size: int) -> Memory:
        """Scratch memory of at least this size, for whoever runs at the moment."""
        if self._arena is None or self._arena.size < size:
            # Contexts made before keep the block whose address is in their CUDA graphs.
            self._arena = self.device.allocate(size)
        return self._arena

    def admit(self, engine: TrtEngine) -> None:
        """See that an engine's weights are on the device; in low-memory mode, and no other large one's."""
        if self.low_memory and not stays(engine.weight_bytes, self._largest):
            awake = self._awake() if self._awake else None
            if awake is not None and awake is not engine:
                awake.sleep()
            self._awake = weakref.ref(engine)
        engine.wake()

    def _built(self, bundle: Bundle) -> dict[str, Entry]:
        if bundle.folder not in self._engines:
            with progress_bar() as tell:
                self._engines[bundle.folder] = build_engines(bundle, self._order, tell)
        return self._engines[bundle.folder]

    def _given(self, folder: Path) -> tuple[dict[str, Entry], str]:
        entry = entry_at(folder)
        if entry is None:
            raise EngineError(f"{folder} holds no whole engine; build one with lssgen-export --engine {self.name}")
        report = entry.report
        need = Need(
            graph=report.graph,
            content=report.content,
            backend=self.library.flavour,
            version=self.library.version,
            targets=(self.device.target,),
            options=report.options,
            profiles=report.profiles,
        )
        if why := misfits(need, report):
            raise StaleEngineError(
                f"the engine in {folder} {why}; build it again with lssgen-export --engine {self.name} "
                f"--target {self.device.target}"
            )
        return {report.graph: entry}, report.graph

    def _make_room(self, reports: Sequence[Report]) -> None:
        """Predict the device memory of a run, choose the mode, and reserve the scratch memory."""
        self._largest = max(self._largest, *(report.weight_bytes for report in reports))
        if self._arena is not None:
            return
        free, total = self.device.memory()
        in_turn = device_bytes(reports, in_turn=True) + _CUDA_BYTES
        together = device_bytes(reports, in_turn=False) + _CUDA_BYTES
        if not self.low_memory and together > free:
            said = megabytes(together), megabytes(free)
            _LOG.warning("all networks need %s of device memory, %s are free: they take turns on the device", *said)
            self.low_memory = True
        self._predicted = in_turn if self.low_memory else together
        if self._predicted > free:
            raise BackendError(
                f"this run needs {megabytes(self._predicted)} of device memory, with one network at a time; "
                f"{self.device.name} has {megabytes(free)} free of {megabytes(total)}. Paint smaller pictures or fewer "
                "at a time, close other programs, or export in fp16 or bf16"
            )
        mode = "one network at a time" if self.low_memory else f"{megabytes(in_turn)} with --low-memory"
        said = megabytes(self._predicted), mode, megabytes(free), megabytes(total)
        _LOG.info("predicted device memory: %s (%s); %s of %s are free", *said)
        self.arena(max((size for report in reports for size in report.activation_bytes), default=0))


def open_tensorrt(options: EngineOptions) -> TensorRT:
    """The "tensorrt" engine of the registry."""
    return _open("tensorrt", options)


def open_tensorrt_rtx(options: EngineOptions) -> TensorRT:
    """The "tensorrt-rtx" engine of the registry."""
    return _open("tensorrt-rtx", options)


def _open(flavour: Flavour, options: EngineOptions) -> TensorRT:
    order = Order(
        flavour=flavour,
        demand=options.demand,
        options=options.build,
        bounds=options.bounds,
        folder=options.engines,
        device_id=options.device_id,
    )
    return TensorRT(open_library(flavour), Device(options.device_id), order, low_memory=options.low_memory)
