"""A deserialised engine, its contexts and its bindings."""

import logging
import mmap
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.durable import write_whole
from lssgen.engines.base import Binding, Buffer, check_buffers
from lssgen.engines.cuda import CudaBuffer, Device, Graph, Memory
from lssgen.engines.trt.cache import Entry, damaged, file_name
from lssgen.engines.trt.context import enqueue, new_context, sizes_of, tie
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.report import Report
from lssgen.engines.trt.residence import Residence
from lssgen.errors import EngineError, ShapeError, StaleEngineError
from lssgen.ports import Port

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs; what only TensorRT-RTX has is `Any` here

_LOG = logging.getLogger("lssgen")


class TrtEngine:
    """`lssgen.engines.base.Engine`. Its weights are on the device from `wake` to `sleep`; making it loads nothing.

    Args:
        library: Library that it is of.
        device: GPU that it runs on.
        runtime: The library's runtime, which outlives it.
        residence: Decides when its weights are on the device.
        name: Name for messages.
        entry: Its files.

    Raises:
        EngineError: The files are gone.
    """

    def __init__(
        self, library: Library, device: Device, runtime: Any, residence: Residence, name: str, entry: Entry
    ) -> None:
        self.library = library
        self.device = device
        self.residence = residence
        self.entry = entry
        self._runtime = runtime
        self._name = name
        self._engine: trt.ICudaEngine | None = None
        self._config: trt.IRuntimeConfig | None = None
        self._kernels: Any = None
        self._kept_kernels = b""
        self._idle: dict[int, list[trt.IExecutionContext]] = {}
        self._bindings: weakref.WeakSet[TrtBinding] = weakref.WeakSet()
        self._closed = False
        try:
            with entry.plan.open("rb") as file:
                # Mapped: the library reads it once and, in low-memory mode, again at every `load_weights`; the host
                # keeps no copy.
                self._plan = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise EngineError(f"{entry.plan} is gone ({error.strerror}); run again, and it will be built") from error

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self.report.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.report.outputs

    @property
    def report(self) -> Report:
        """What it is and how it was built."""
        return self.entry.report

    @property
    def streamed(self) -> bool:
        """Whether its weights may stay on the host during a run, which forbids CUDA graphs."""
        return bool(self.report.options.get("weight_streaming"))

    @property
    def awake(self) -> bool:
        """Whether its weights are on the device."""
        # TensorRT has no such attribute: its engines come with their weights.
        return self._engine is not None and bool(getattr(self._engine, "weights_loaded", True))

    @property
    def device_weights(self) -> int:
        """Bytes of its weights that are on the device."""
        if self._engine is None or not self.awake:
            return 0
        return int(self._engine.weight_streaming_budget_v2) if self.streamed else self.report.weight_bytes

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        self._see_open("bound")
        report = self.report
        axes = check_buffers(self._name, (*report.inputs, *report.outputs), buffers)
        # Profiles are smallest first, so this is the one with the least scratch.
        profile = next((i for i, profile in enumerate(report.profiles) if profile.holds(axes)), None)
        if profile is None:
            came = ", ".join(f"{axis} {size}" for axis, size in sorted(axes.items()))
            raise ShapeError(
                f"{self._name} was asked for {came}, but was built for {'; or '.join(map(str, report.profiles))}. "
                "Ask for one of these, or require these sizes of the engines before"
            )
        binding = TrtBinding(self, profile, {name: _own(buffer) for name, buffer in buffers.items()})
        self._bindings.add(binding)
        return binding

    def close(self) -> None:
        """Free everything; it cannot be used any more."""
        with self.device.turn:
            self.residence.remove(self)
            self._closed = True
            if self._engine is not None:
                # Work that is still on the stream reads the weights.
                self.device.synchronize()
                self._forget()

    def wake(self) -> None:
        """Bring the weights to the device.

        Raises:
            StaleEngineError: The library refuses the engine.
            EngineError: The file is damaged, the engine was closed, or the device has no room.
        """
        self._see_open("run")
        self.device.choose()
        if self._engine is None:
            self._engine = self._loaded()
        engine: Any = self._engine
        if not self.awake:
            with self.library.listen() as log:
                if not engine.load_weights(self._plan):
                    raise EngineError(f"{self._name} cannot bring its weights to the device: {log.reason()}")

    def sleep(self) -> None:
        """Take the weights off the device. Bindings stay valid, and wake the engine."""
        engine: Any = self._engine
        if engine is None:
            return
        self.device.synchronize()
        for binding in self._bindings:
            binding.forget_graph()
        if not (self.awake and hasattr(engine, "unload_weights") and engine.unload_weights()):
            self._forget()

    def take_context(self, profile: int) -> "trt.IExecutionContext":
        """An execution context with this profile: one that no binding uses any more, or a new one.

        Raises:
            EngineError: The library cannot make it.
        """
        idle = self._idle.setdefault(profile, [])
        if idle:
            return idle.pop()
        assert self._engine is not None, "bindings wake their engine before they use it"
        try:
            context = new_context(self.library, self.device, self._engine, self._name, profile, self._config)
        except EngineError:
            if not any(self._idle.values()):
                raise
            self._idle.clear()  # contexts take memory, and these serve nobody
            return self.take_context(profile)
        # TensorRT-RTX compiles for the device when a context is made: a kill later on shall not cost that again.
        self.keep_kernels()
        return context

    def give_context(self, profile: int, context: "trt.IExecutionContext") -> None:
        """Take back a context whose binding is gone."""
        # After `_forget` there is no engine that the context could run on.
        if self._engine is not None:
            self._idle.setdefault(profile, []).append(context)

    def scratch(self) -> Memory:
        """Scratch memory for any profile of this engine."""
        assert self._engine is not None, "bindings wake their engine before they use it"
        return self.residence.arena(self._engine.device_memory_size_v2)

    def keep_kernels(self) -> None:
        """Write down the kernels that were compiled for this device, if there are new ones."""
        if self._kernels is None:
            return
        compiled = bytes(memoryview(self._kernels.serialize()))
        if compiled != self._kept_kernels:
            self._kept_kernels = compiled
            with suppress(OSError):  # only a convenience
                write_whole(self._kernel_file, compiled)

    def _see_open(self, what: str) -> None:
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot be {what} any more; take it from the engines again")

    def _loaded(self) -> "trt.ICudaEngine":
        """Deserialise. A weight budget comes before any context, or the library does not take it.

        TensorRT-RTX can leave the weights for later, and take them off again while contexts live; in low-memory mode
        it shall. Weights that are streamed are on the host anyway.
        """
        with self.library.listen() as log:
            if hasattr(self._runtime, "defer_weights_loading"):
                self._runtime.defer_weights_loading = self.residence.low_memory and not self.streamed
            engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(self._plan)
            if engine is None:
                raise self._unreadable(log.reason())
        self._see_profiles(engine)
        if self.streamed:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        if hasattr(engine, "load_weights"):
            self._configure(engine)
        return engine

    def _forget(self) -> None:
        """Free the engine; what hangs on it first."""
        for binding in self._bindings:
            binding.forget_context()
        self._idle.clear()
        self._config = self._kernels = self._engine = None

    def _see_profiles(self, engine: "trt.ICudaEngine") -> None:
        """The plan's own profiles are those of its report, or file and report do not belong together."""
        for index, profile in enumerate(self.report.profiles):
            for port in self.report.inputs:
                # Of (smallest, best, largest).
                largest = sizes_of(engine.get_tensor_profile_shape(port.name, index)[2])
                if largest != tuple(extent.high for extent in profile.shape(port)):
                    raise StaleEngineError(
                        f"{self.entry.plan} takes {port.name} {list(largest)} in profile {index}, its report says "
                        f"{profile}; remove {self.entry.folder} and build again"
                    )

    def _configure(self, engine: Any) -> None:
        """TensorRT-RTX compiles kernels for the device when an engine runs, and can keep them in a file.

        Unless told to wait for them, it runs others at first, which a CUDA graph would then repeat for ever.
        """
        module = self.library.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # bindings capture their own
        eager = module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        kernels = config.create_runtime_cache()
        if self._kernel_file.is_file():
            self._kept_kernels = self._kernel_file.read_bytes()
            kernels.deserialize(self._kept_kernels)  # refuses another device or driver: a cold start
        config.set_runtime_cache(kernels)
        self._config, self._kernels = config, kernels

    @property
    def _kernel_file(self) -> Path:
        return self.entry.folder / f"{file_name('kernels', self.device.name)}.cache"

    def _unreadable(self, reason: str) -> EngineError:
        folder = self.entry.folder
        if damaged(self.entry):
            return EngineError(
                f"{self.entry.plan} is damaged: it is not what was built. Remove {folder}, and it will be built again"
            )
        return StaleEngineError(
            f"{self.library.flavour} {self.library.version} on {self.device.name} refuses {self.entry.plan}, built by "
            f"{self.report.version} for {', '.join(self.report.targets)}: {reason}. Where that is not for lack of "
            f"memory, remove {folder}, and it will be built again"
        )


class TrtBinding:
    """An engine with one profile and fixed addresses.

    The first call runs the context as it is, which settles everything that must not happen during a capture; the
    second captures a CUDA graph; from then on a call is one launch. Where a capture fails, every call runs plainly.
    """

    def __init__(self, owner: TrtEngine, profile: int, buffers: Mapping[str, CudaBuffer]) -> None:
        self._owner = owner
        self._device = owner.device
        self._profile = profile
        self._buffers = buffers
        self._context: trt.IExecutionContext | None = None
        self._scratch: Memory | None = None
        self._graph: Graph | None = None
        self._warm = False
        self._plain = owner.streamed

    def __call__(self) -> None:
        with self._device.turn:
            if self._graph is None:
                # Under the turn with all that leads to it: what another thread put on the stream would be in the
                # capture.
                self._run()
            else:
                self._graph.launch()

    def forget_graph(self) -> None:
        """The weights move, and their addresses are in the graph."""
        self._graph, self._warm = None, False

    def forget_context(self) -> None:
        """The engine goes."""
        self.forget_graph()
        self._context = self._scratch = None

    def __del__(self) -> None:
        # The graph first: it replays the context that another binding may be given now.
        self._graph = None
        if self._context is not None:
            self._owner.give_context(self._profile, self._context)

    def _run(self) -> None:
        self._owner.residence.admit(self._owner)
        if self._context is None:
            self._prepare()
        if self._warm and not self._plain and self._stream_capturable():
            self._capture()
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue()
        if not self._warm:
            self._owner.keep_kernels()  # some are compiled when they are first needed
            self._warm = True

    def _prepare(self) -> None:
        context = self._owner.take_context(self._profile)
        self._scratch = self._owner.scratch()
        owner = self._owner
        tie(context, owner.name, owner.inputs, owner.outputs, self._buffers, self._scratch)
        self._context = context

    def _capture(self) -> None:
        """Make a graph. Where that fails, say so once and never try again: the network runs all the same."""
        try:
            self._graph = self._device.capture(self._enqueue)
        except EngineError as error:
            self._plain = True
            _LOG.warning("%s runs without a CUDA graph, some microseconds slower: %s", self._owner.name, error)

    def _enqueue(self) -> None:
        assert self._context is not None, "prepared by the first call"
        enqueue(self._owner.library, self._device, self._context, self._owner.name)

    def _stream_capturable(self) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX only
        return ask is None or bool(ask(self._device.stream))


def _own(buffer: Buffer) -> CudaBuffer:
    if not isinstance(buffer, CudaBuffer):
        raise ShapeError(f"TensorRT binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()")
    return buffer
