"""A deserialised engine, its contexts and its bindings."""

import mmap
import re
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lssgen.engines.base import Binding, Buffer, Port, check_buffers
from lssgen.engines.cache import Entry, damaged, touch, write_whole
from lssgen.engines.cuda import CudaBuffer, Graph, Memory
from lssgen.errors import EngineError, ShapeError, StaleEngineError

if TYPE_CHECKING:
    from lssgen.engines.tensorrt import TensorRT


class TrtEngine:
    """`lssgen.engines.base.Engine`.

    Its weights are on the device from `wake` to `sleep`. Where everything fits they stay there from the beginning.
    """

    def __init__(self, backend: "TensorRT", name: str, entry: Entry) -> None:
        self._backend = backend
        self._name = name
        self._entry = entry
        self._engine: Any = None
        self._config: Any = None
        self._kernels: Any = None
        self._idle: dict[int, list[Any]] = {}
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
        runtime = self._backend.runtime
        defers = self._backend.low_memory and hasattr(runtime, "defer_weights_loading")
        if self._engine is None:
            with self._backend.library.listen() as log:
                if hasattr(runtime, "defer_weights_loading"):
                    runtime.defer_weights_loading = defers
                self._engine = runtime.deserialize_cuda_engine(self._plan)
                if self._engine is None:
                    raise self._unreadable(log.reason())
            self._see_profiles()
            if not self.capturable:
                self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
            if hasattr(self._engine, "load_weights"):
                self._configure()
        if defers and not self._engine.weights_loaded:
            with self._backend.library.listen() as log:
                if not self._engine.load_weights(self._plan):
                    raise EngineError(f"{self._name} cannot bring its weights to the device: {log.reason()}")

    def sleep(self) -> None:
        """Take the weights off the device. Bindings stay valid; the engine must be awake when they run."""
        if self._engine is None:
            return
        self._backend.device.synchronize()
        for binding in self._bindings:
            binding.forget_graph()
        if not (getattr(self._engine, "weights_loaded", False) and self._engine.unload_weights()):
            self._forget()

    def take_context(self, profile: int) -> Any:
        """An execution context with this profile: one that no binding uses any more, or a new one."""
        idle = self._idle.setdefault(profile, [])
        if idle:
            return idle.pop()
        strategy = self._backend.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        with self._backend.library.listen() as log:
            context = self._engine.create_execution_context(strategy if self._config is None else self._config)
            if context is None or not context.set_optimization_profile_async(profile, self._backend.device.stream):
                raise EngineError(f"{self._name} cannot prepare its profile {profile}: {log.reason()}")
        self._backend.device.synchronize()
        self._keep_kernels()
        return context

    def give_context(self, profile: int, context: Any) -> None:
        """Take back a context whose binding is gone."""
        if self._engine is not None:
            self._idle.setdefault(profile, []).append(context)

    def scratch(self) -> Memory:
        """Scratch memory for any profile of this engine."""
        return self._backend.arena(self._engine.device_memory_size_v2)

    def _forget(self) -> None:
        """Free the engine; what hangs on it first."""
        for binding in self._bindings:
            binding.forget_context()
        self._idle.clear()
        self._config = self._kernels = self._engine = None

    def _see_profiles(self) -> None:
        """The plan's own profiles are those of its report, or file and report do not belong together."""
        report = self._entry.report
        for index, profile in enumerate(report.profiles):
            for port in report.inputs:
                shape = tuple(self._engine.get_tensor_profile_shape(port.name, index)[2])
                if shape != tuple(extent.high for extent in profile.shape(port)):
                    raise StaleEngineError(
                        f"{self._entry.plan} takes {port.name} {list(shape)} in profile {index}, its report says "
                        f"{profile}; remove {self._entry.folder} and build again"
                    )

    def _configure(self) -> None:
        """TensorRT-RTX compiles kernels for the device when a context is made, and can keep them in a file."""
        trt = self._backend.library.module
        self._config = self._engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # bindings capture their own
        self._kernels = self._config.create_runtime_cache()
        if self._kernel_file.is_file():
            self._kernels.deserialize(self._kernel_file.read_bytes())  # refuses another device or driver: a cold start
        self._config.set_runtime_cache(self._kernels)

    def _keep_kernels(self) -> None:
        if self._kernels is not None:
            write_whole(self._kernel_file, memoryview(self._kernels.serialize()))

    @property
    def _kernel_file(self) -> Any:
        return self._entry.folder / f"kernels-{re.sub(r'[^A-Za-z0-9]+', '-', self._backend.device.name)}.cache"

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
        self._context: Any = None
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
        """Profile, scratch, shapes, addresses: in this order."""
        context = self._engine.take_context(self._profile)
        self._scratch = self._engine.scratch()
        context.set_device_memory(self._scratch.address, self._scratch.size)
        for port in self._engine.inputs:
            if not context.set_input_shape(port.name, self._buffers[port.name].shape):
                raise ShapeError(f"{self._engine.name} does not take {port.name} {self._buffers[port.name].shape}")
        if missing := context.infer_shapes():
            raise EngineError(f"{self._engine.name} does not know the shapes of {', '.join(missing)}")
        for port in self._engine.outputs:
            if tuple(context.get_tensor_shape(port.name)) != self._buffers[port.name].shape:
                raise ShapeError(
                    f"{self._engine.name} makes {port.name} {list(context.get_tensor_shape(port.name))}, and was given "
                    f"a buffer of {list(self._buffers[port.name].shape)}"
                )
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise EngineError(f"{self._engine.name} does not take an address for {name}")
        self._context = context

    def _enqueue(self) -> None:
        with self._backend.library.listen() as log:
            if not self._context.execute_async_v3(self._backend.device.stream):
                raise EngineError(f"{self._engine.name} failed on {self._backend.device.name}: {log.reason()}")

    def _stream_capturable(self) -> bool:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX only
        return ask is None or bool(ask(self._backend.device.stream))


def _own(buffer: Buffer) -> CudaBuffer:
    if not isinstance(buffer, CudaBuffer):
        raise ShapeError(f"TensorRT binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()")
    return buffer
