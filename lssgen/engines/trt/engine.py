"""A deserialised engine, its contexts and its bindings."""

import mmap
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.engines.base import Binding, Buffer, check_buffers
from lssgen.engines.cuda import CudaBuffer, Graph, Memory
from lssgen.engines.trt.cache import Entry, damaged, file_name, touch, write_whole
from lssgen.errors import EngineError, ShapeError, StaleEngineError
from lssgen.ports import Port

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs; what only TensorRT-RTX has is `Any` here

    from lssgen.engines.trt.backend import TensorRT


class TrtEngine:
    """`lssgen.engines.base.Engine`.

    Its weights are on the device from `wake` to `sleep`. Where everything fits they stay there from the beginning.
    """

    def __init__(self, backend: "TensorRT", name: str, entry: Entry) -> None:
        self._backend = backend
        self._name = name
        self._entry = entry
        self._engine: trt.ICudaEngine | None = None
        self._config: trt.IRuntimeConfig | None = None
        self._kernels: Any = None
        self._idle: dict[int, list[trt.IExecutionContext]] = {}
        self._bindings: weakref.WeakSet[TrtBinding] = weakref.WeakSet()
        self._closed = False
        with entry.plan.open("rb") as file:
            self._plan = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        touch(entry)
        backend.admit(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._entry.report.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._entry.report.outputs

    @property
    def weight_bytes(self) -> int:
        """Device memory of the weights."""
        return self._entry.report.weight_bytes

    @property
    def capturable(self) -> bool:
        """Whether CUDA graphs may be captured: not where weights are streamed during a run."""
        return not self._entry.report.options.get("weight_streaming")

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot be bound any more; load it again")
        report = self._entry.report
        axes = check_buffers(self._name, (*report.inputs, *report.outputs), buffers)
        profile = next((i for i, profile in enumerate(report.profiles) if profile.holds(axes)), None)
        if profile is None:
            came = ", ".join(f"{axis} {size}" for axis, size in sorted(axes.items()))
            raise ShapeError(
                f"{self._name} was asked for {came}, but was built for {'; or '.join(map(str, report.profiles))}. "
                "Ask for one of these, or build engines for it: lssgen-export --engine, with these sizes"
            )
        binding = TrtBinding(self._backend, self, profile, {name: _own(buffer) for name, buffer in buffers.items()})
        self._bindings.add(binding)
        return binding

    def close(self) -> None:
        self._closed = True
        self.sleep()
        self._forget()

    def wake(self) -> None:
        """Bring the weights to the device.

        Raises:
            StaleEngineError: The library refuses the engine.
            EngineError: The file is damaged, the engine was closed, or the device has no room.
        """
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot run any more; load it again")
        if self._engine is None:
            self._load()
        engine: Any = self._engine
        if self._defers and not engine.weights_loaded:
            with self._backend.library.listen() as log:
                if not engine.load_weights(self._plan):
                    raise EngineError(f"{self._name} cannot bring its weights to the device: {log.reason()}")

    def sleep(self) -> None:
        """Take the weights off the device. Bindings stay valid; the engine must be awake when they run."""
        engine: Any = self._engine
        if engine is None:
            return
        self._backend.device.synchronize()
        for binding in self._bindings:
            binding.forget_graph()
        if not (getattr(engine, "weights_loaded", False) and engine.unload_weights()):
            self._forget()

    def take_context(self, profile: int) -> "trt.IExecutionContext":
        """An execution context with this profile: one that no binding uses any more, or a new one."""
        idle = self._idle.setdefault(profile, [])
        if idle:
            return idle.pop()
        strategy = self._backend.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._backend.library.listen() as log:
            context = self._awake.create_execution_context(self._config or strategy)
            if not (context and context.set_optimization_profile_async(profile, self._backend.device.stream)):
                raise EngineError(f"{self._name} cannot prepare its profile {profile}: {log.reason()}")
        self._backend.device.synchronize()
        self._keep_kernels()
        return context

    def give_context(self, profile: int, context: "trt.IExecutionContext") -> None:
        """Take back a context whose binding is gone."""
        if self._engine is not None:
            self._idle.setdefault(profile, []).append(context)

    def scratch(self) -> Memory:
        """Scratch memory for any profile of this engine."""
        return self._backend.arena(self._awake.device_memory_size_v2)

    @property
    def _awake(self) -> "trt.ICudaEngine":
        assert self._engine is not None, "bindings wake their engine before they use it"
        return self._engine

    @property
    def _defers(self) -> bool:
        """Whether the weights come and go by themselves: TensorRT-RTX, in low-memory mode."""
        return self._backend.low_memory and hasattr(self._backend.runtime, "defer_weights_loading")

    def _load(self) -> None:
        """Deserialise. A weight budget comes before any context, or the library does not take it."""
        runtime = self._backend.runtime
        with self._backend.library.listen() as log:
            if hasattr(runtime, "defer_weights_loading"):
                runtime.defer_weights_loading = self._defers
            engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(self._plan)
            if engine is None:
                raise self._unreadable(log.reason())
        self._see_profiles(engine)
        if not self.capturable:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        if hasattr(engine, "load_weights"):
            self._configure(engine)
        self._engine = engine

    def _forget(self) -> None:
        """Free the engine; what hangs on it first."""
        for binding in self._bindings:
            binding.forget_context()
        self._idle.clear()
        self._config = self._kernels = self._engine = None

    def _see_profiles(self, engine: "trt.ICudaEngine") -> None:
        """The plan's own profiles are those of its report, or file and report do not belong together."""
        report = self._entry.report
        for index, profile in enumerate(report.profiles):
            for port in report.inputs:
                largest = _sizes(engine.get_tensor_profile_shape(port.name, index)[2])
                if largest != tuple(extent.high for extent in profile.shape(port)):
                    raise StaleEngineError(
                        f"{self._entry.plan} takes {port.name} {list(largest)} in profile {index}, its report says "
                        f"{profile}; remove {self._entry.folder} and build again"
                    )

    def _configure(self, engine: Any) -> None:
        """TensorRT-RTX compiles kernels for the device when a context is made, and can keep them in a file."""
        module = self._backend.library.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED  # bindings capture their own
        kernels = config.create_runtime_cache()
        if self._kernel_file.is_file():
            kernels.deserialize(self._kernel_file.read_bytes())  # refuses another device or driver: a cold start
        config.set_runtime_cache(kernels)
        self._config, self._kernels = config, kernels

    def _keep_kernels(self) -> None:
        if self._kernels is not None:
            write_whole(self._kernel_file, memoryview(self._kernels.serialize()))

    @property
    def _kernel_file(self) -> Path:
        return self._entry.folder / f"{file_name('kernels', self._backend.device.name)}.cache"

    def _unreadable(self, reason: str) -> EngineError:
        folder = self._entry.folder
        if damaged(self._entry):
            return EngineError(
                f"{self._entry.plan} is damaged: it is not what was built. Remove {folder}, and it will be built again"
            )
        return StaleEngineError(
            f"{self._backend.library.flavour} {self._backend.library.version} on {self._backend.device.name} refuses "
            f"{self._entry.plan}, built by {self._entry.report.version} for {', '.join(self._entry.report.targets)}: "
            f"{reason}. Remove {folder}, and it will be built again"
        )


class TrtBinding:
    """An engine with one profile and fixed addresses.

    The first call runs the context as it is, which settles everything that must not happen during a capture; the
    second captures a CUDA graph; from then on a call is one launch.
    """

    def __init__(self, backend: "TensorRT", engine: TrtEngine, profile: int, buffers: Mapping[str, CudaBuffer]) -> None:
        self._backend = backend
        self._engine = engine
        self._profile = profile
        self._buffers = buffers
        self._context: trt.IExecutionContext | None = None
        self._scratch: Memory | None = None
        self._graph: Graph | None = None
        self._warm = False

    def __call__(self) -> None:
        if self._graph is not None:
            self._graph.launch()
            return
        self._backend.admit(self._engine)
        if self._context is None:
            self._prepare()
        if self._warm and self._engine.capturable and self._stream_capturable():
            self._graph = self._backend.device.capture(self._enqueue)
            self._graph.launch()
        else:
            self._enqueue()
            self._warm = True

    def forget_graph(self) -> None:
        """The weights move, and their addresses are in the graph."""
        self._graph, self._warm = None, False

    def forget_context(self) -> None:
        """The engine goes."""
        self.forget_graph()
        self._context = self._scratch = None

    def __del__(self) -> None:
        self._graph = None
        if self._context is not None:
            self._engine.give_context(self._profile, self._context)

    def _prepare(self) -> None:
        context = self._engine.take_context(self._profile)
        self._scratch = self._engine.scratch()
        own = self._engine
        tie(context, own.name, own.inputs, own.outputs, self._buffers, self._scratch)
        self._context = context

    def _enqueue(self) -> None:
        assert self._context is not None, "prepared by the first call"
        with self._backend.library.listen() as log:
            if not self._context.execute_async_v3(self._backend.device.stream):
                raise EngineError(f"{self._engine.name} failed on {self._backend.device.name}: {log.reason()}")

    def _stream_capturable(self) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX only
        return ask is None or bool(ask(self._backend.device.stream))


def tie(
    context: "trt.IExecutionContext",
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    buffers: Mapping[str, CudaBuffer],
    scratch: Memory,
) -> None:
    """Give a context that has its profile what it computes with: scratch, shapes, addresses, in this order.

    Raises:
        ShapeError, EngineError: The engine called `name` does not take them.
    """
    context.set_device_memory(scratch.address, scratch.size)
    for port in inputs:
        if not context.set_input_shape(port.name, buffers[port.name].shape):
            raise ShapeError(f"{name} does not take {port.name} {buffers[port.name].shape}")
    if missing := context.infer_shapes():
        raise EngineError(f"{name} does not know the shapes of {', '.join(missing)}")
    for port in outputs:
        made, given = _sizes(context.get_tensor_shape(port.name)), buffers[port.name].shape
        if made != given:
            raise ShapeError(f"{name} makes {port.name} {list(made)}, and was given a buffer of {list(given)}")
    for port_name, buffer in buffers.items():
        if not context.set_tensor_address(port_name, buffer.address):
            raise EngineError(f"{name} does not take an address for {port_name}")


def _sizes(dims: Any) -> tuple[int, ...]:
    """A shape of the library, which its stubs do not know to be a sequence."""
    return tuple(dims)


def _own(buffer: Buffer) -> CudaBuffer:
    if not isinstance(buffer, CudaBuffer):
        raise ShapeError(f"TensorRT binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()")
    return buffer
