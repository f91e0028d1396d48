"""A double of the executing half of `tensorrt_rtx` (and of `tensorrt`), which computes with ONNX Runtime.

It enforces the order and the rules that NVIDIA's documentation states, and raises `RuleBrokenError` where the real
library would fail, compute nonsense or crash:

    profile, then shapes, then addresses, then execution; the profile's switch is waited for
    shapes lie inside the profile; addresses are device memory, long enough; scratch is large enough and aligned
    a graph is captured after a plain execution of the same context, and replayed only while neither the context
        nor the weights have changed
    a budget for streamed weights is set before a context exists; streamed weights forbid a capture
    nothing is used after its engine is gone

A plan of the double is a JSON text: the ONNX file, the profiles, the memory of weights and scratch. The building half
is in `builder_double`, what exchanges weights in `refit_double`.
"""

import json
import weakref
from enum import IntEnum
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builder_double
import numpy as np
import onnxruntime as ort
import refit_double
from cuda_double import CudaDouble, RuleBrokenError

from lssgen.engines.trt.fit import Need
from lssgen.ports import Array

VERSION = "1.7.1.116"


def plan_of(onnx: Path, need: Need, *, weights: int, scratch: int) -> bytes:
    """What the double takes for an engine; sizes in bytes."""
    profiles = [{axis: [e.low, e.best, e.high] for axis, e in profile.axes.items()} for profile in need.profiles]
    streamed = bool(need.options.get("weight_streaming"))
    return builder_double.plan(str(onnx), profiles, weights=weights, scratch=scratch, streamed=streamed)


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    """What serialisation returns; it has the buffer protocol."""


class IRuntimeCache:
    def __init__(self, device: str) -> None:
        self._device = device
        self._kernels = 0

    def _compile(self) -> None:
        self._kernels += 1

    def serialize(self) -> IHostMemory:
        return IHostMemory(f"{self._device} {self._kernels}".encode())

    def deserialize(self, blob: Any) -> bool:
        device, _, kernels = bytes(blob).decode().rpartition(" ")
        if device != self._device:
            return False
        self._kernels = int(kernels)
        return True


class IRuntimeConfig:
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self._strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache("Double")

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache


class ICudaEngine:
    """An engine, as both libraries have it."""

    def __init__(self, cuda: CudaDouble, blob: bytes) -> None:
        self._cuda = cuda
        self._blob = blob
        self._generation = 0
        self._weights: int | None = None
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self._plan: dict[str, Any] = json.loads(blob)
        self._budget = int(self._plan["weights"])
        self._session: ort.InferenceSession = refit_double.session_of(self._plan)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}

    def __del__(self) -> None:
        if self._weights is not None:
            self._cuda.release(self._weights, "an engine's weights")

    def _allocate(self) -> None:
        status, address = self._cuda.cudaMalloc(max(1, self._budget))
        if status:
            raise MemoryError("no room for the weights")
        self._weights = address
        self._generation += 1

    @property
    def refittable(self) -> bool:
        return bool(self._plan["refittable"])

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(self._plan | {"refittable": False}).encode())  # unless INCLUDE_REFIT is asked for

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        if not self._plan["streamed"]:
            raise RuleBrokenError("a budget for weights that cannot be streamed")
        if self._contexts:
            raise RuleBrokenError("a weight streaming budget set while a context exists")
        self._budget = budget

    def get_weight_streaming_automatic_budget(self) -> int:
        return min(int(self._plan["weights"]), self._cuda.cudaMemGetInfo()[1] // 2)

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._plan["scratch"])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        axes = self._plan["profiles"][profile_index]
        return [
            tuple(axes[size][corner] if isinstance(size, str) else size for size in self._inputs[name].shape)
            for corner in range(3)
        ]

    def create_execution_context(self, runtime_config: Any = None) -> "IExecutionContext":
        strategy = runtime_config
        if isinstance(runtime_config, IRuntimeConfig):
            strategy = runtime_config.get_execution_context_allocation_strategy()
            cache = runtime_config.get_runtime_cache()
            if cache is not None:
                cache._compile()
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuleBrokenError("a context with memory of its own")
        if self._weights is None and self._plan["streamed"]:
            self._allocate()  # as much as the budget says
        context = self._context_type(self)
        self._contexts.add(context)
        return context

    @property
    def _context_type(self) -> "type[IExecutionContext]":
        return IExecutionContext


class RtxEngine(ICudaEngine):
    """What TensorRT-RTX adds: weights that come and go, and kernels that are compiled for the device."""

    _deferred = False

    @property
    def weights_loaded(self) -> bool:
        return self._weights is not None

    def load_weights(self, blob: Any) -> bool:
        if not self._deferred or self._weights is not None or bytes(blob) != self._blob:
            return False
        self._allocate()
        return True

    def unload_weights(self) -> bool:
        if not self._deferred or self._weights is None:
            return False
        if self._cuda.busy:
            raise RuleBrokenError("unload_weights with work in flight; synchronise first")
        self._cuda.cudaFree(self._weights)
        self._weights = None
        return True

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    @property
    def _context_type(self) -> "type[IExecutionContext]":
        return RtxContext


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._cuda = engine._cuda
        self._profile: int | None = None
        self._switched = False
        self._memory: tuple[int, int] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._version = 0
        self._ran: int | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        del stream_handle
        if not 0 <= profile_index < len(self._engine._plan["profiles"]):
            return False
        self._profile = profile_index
        self._changed()
        self._shapes.clear()
        self._switched = False

        def arrive() -> None:
            self._switched = True

        self._cuda.put(arrive)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256 or size < self._engine.device_memory_size_v2:
            raise RuleBrokenError(f"scratch of {size} bytes at {memory:#x}: misaligned or too small")
        self._cuda.check(memory, size)
        self._memory = (memory, size)
        self._changed()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile is None:
            raise RuleBrokenError(f"shape of {name} before a profile")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(shape) != len(low) or not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        self._changed()
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._engine._inputs if name not in self._shapes]
        if not missing:
            axes = self._axes()
            for name, value in self._engine._outputs.items():
                self._shapes[name] = tuple(axes[size] if isinstance(size, str) else size for size in value.shape)
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, (-1,))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._shapes:
            raise RuleBrokenError(f"address of {name} before its shape is known")
        self._cuda.check(memory, prod(self._shapes[name]) * self._dtype(name).itemsize)
        self._addresses[name] = memory
        self._changed()
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        del stream_handle
        self._see_ready()
        capturing = self._cuda.recording is not None
        if capturing and self._engine._plan["streamed"]:
            raise RuleBrokenError("captured while weights are streamed")
        if capturing and self._ran != self._version:
            raise RuleBrokenError("captured before a plain execution with these shapes and addresses")
        version, generation, alive = self._version, self._engine._generation, weakref.ref(self)
        kept = None if capturing else self  # a graph does not keep its context alive

        def run() -> None:
            context = kept or alive()
            if context is None:
                raise RuleBrokenError("a graph was replayed after its context was gone")
            if capturing and (context._version != version or context._engine._generation != generation):
                raise RuleBrokenError("a graph was replayed after its context or its weights had changed")
            context._compute()

        self._cuda.put(run)
        if not capturing:
            self._ran = version
        return True

    def _see_ready(self) -> None:
        if self._profile is None or not self._switched:
            raise RuleBrokenError("executed before the profile had been switched; set it and synchronise")
        if self._memory is None:
            raise RuleBrokenError("executed without scratch memory")
        if missing := sorted({*self._engine._inputs, *self._engine._outputs} - set(self._addresses)):
            raise RuleBrokenError(f"executed without addresses of {missing}")
        if self._engine._weights is None:
            raise RuleBrokenError("executed without weights")

    def _compute(self) -> None:
        self._see_ready()
        assert self._memory is not None
        memory, size = self._memory
        self._cuda.view(memory, (size,), np.uint8)[:] = 0xAA  # whoever keeps something there loses it
        feed = {name: self._tensor(name).copy() for name in self._engine._inputs}
        names = list(self._engine._outputs)
        for name, value in zip(names, self._engine._session.run(names, feed), strict=True):
            self._tensor(name)[...] = value

    def _tensor(self, name: str) -> Array:
        return self._cuda.view(self._addresses[name], self._shapes[name], self._dtype(name))

    def _dtype(self, name: str) -> Any:
        value = (self._engine._inputs | self._engine._outputs)[name]
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        return np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))

    def _axes(self) -> dict[str, int]:
        assert self._profile is not None
        axes = {axis: extent[2] for axis, extent in self._engine._plan["profiles"][self._profile].items()}
        for name, value in self._engine._inputs.items():
            axes |= {
                size: came for size, came in zip(value.shape, self._shapes[name], strict=True) if isinstance(size, str)
            }
        return axes

    def _changed(self) -> None:
        self._version += 1


class RtxContext(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        del stream
        return True


class Runtime:
    """The real one finds its device in the CUDA context; this one is told in `module`."""

    _cuda: CudaDouble
    _engine_type = ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        try:
            engine = self._engine_type(self._cuda, bytes(serialized_engine))
            self._settle(engine)
        except (ValueError, MemoryError) as error:
            message = f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({error}. In read at plan.cpp:1)"
            self._logger.log(Severity.ERROR, message)
            return None
        return engine

    def _settle(self, engine: Any) -> None:
        if not engine._plan["streamed"]:
            engine._allocate()


class RtxRuntime(Runtime):
    _engine_type = RtxEngine

    def __init__(self, logger: ILogger) -> None:
        super().__init__(logger)
        self.defer_weights_loading = False

    def _settle(self, engine: Any) -> None:
        engine._deferred = self.defer_weights_loading
        if not engine._deferred:
            engine._allocate()


def module(cuda: CudaDouble, *, rtx: bool = True) -> Any:
    """The double as a module on a device: `tensorrt_rtx`, or `tensorrt`, which lacks some of it."""
    shared = (
        ILogger, ExecutionContextAllocationStrategy, builder_double.NetworkDefinitionCreationFlag,
        builder_double.ProfilingVerbosity, builder_double.LayerType, builder_double.Dims,
        builder_double.IProgressMonitor, builder_double.OnnxParser, refit_double.OnnxParserRefitter,
    )  # fmt: skip
    names: dict[str, Any] = {one.__name__: one for one in shared} | {
        "__version__": VERSION,
        "Runtime": type("Runtime", (RtxRuntime if rtx else Runtime,), {"_cuda": cuda}),
        "Builder": type("Builder", (builder_double.Builder,), {"_cuda": cuda, "_version": VERSION}),
        "Refitter": type("Refitter", (refit_double.Refitter,), {}),
        "BuilderFlag": builder_double.RtxBuilderFlag if rtx else builder_double.BuilderFlag,
    }
    if rtx:
        names |= {"CudaGraphStrategy": CudaGraphStrategy, "ComputeCapability": builder_double.ComputeCapability}
    return SimpleNamespace(**names)
