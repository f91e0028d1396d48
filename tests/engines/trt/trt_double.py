"""A double of the executing half of `tensorrt_rtx` (and of `tensorrt`), which computes with ONNX Runtime.

It enforces the order and the rules that NVIDIA's documentation states, and raises `RuleBrokenError` where the real
library would fail, compute nonsense or crash:

    profile, then shapes, then addresses, then execution; the profile's switch is waited for
    shapes lie inside the profile; addresses are device memory, long enough; scratch is large enough and aligned
    a graph is captured after a plain execution of the same context, and replayed only while neither the context
        nor the weights have changed
    a budget for streamed weights is set before a context exists; streamed weights forbid a capture
    a thread has chosen the GPU that the engine is on
    kernels that TensorRT-RTX runs until the right ones are compiled are not captured
    nothing is used after its engine is gone

What may go wrong on a GPU goes wrong where a test asks for it: `module` has fields for that.

A plan of the double is a JSON text: the ONNX file, the profiles, the memory of weights and scratch. The building half
is in `builder_double`, contexts are in `context_double`, what exchanges weights is in `refit_double`.
"""

import json
import weakref
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builder_double
import onnxruntime as ort
import refit_double
from context_double import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    IExecutionContext,
    IHostMemory,
    IRuntimeConfig,
    RtxContext,
)
from cuda_double import CudaDouble, RuleBrokenError

from lssgen.engines.trt.need import Need

VERSION = "1.7.1.116"


def plan_of(onnx: Path, need: Need, *, weights: int, scratch: int) -> bytes:
    """What the double takes for an engine; sizes in bytes."""
    profiles = [{axis: [e.low, e.best, e.high] for axis, e in profile.axes.items()} for profile in need.profiles]
    streamed = bool(need.options.get("weight_streaming"))
    return builder_double.plan(str(onnx), profiles, weights=weights, scratch=scratch, streamed=streamed)


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity

    def __init__(self) -> None: ...

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


@dataclass
class Faults:
    """What goes wrong, and what was done.

    Attributes:
        context_bytes: Device memory that a context takes for itself.
        capturable: Whether TensorRT-RTX says that a stream may be captured.
        shapes_contradict: True where shapes cannot be inferred.
        loads: Graphs whose weights were brought to the device, one entry each time.
    """

    context_bytes: int = 1000
    capturable: bool = True
    shapes_contradict: bool = False
    loads: list[str] = field(default_factory=list)


class ICudaEngine:
    """An engine, as both libraries have it."""

    _logger: Any = None

    def __init__(self, cuda: CudaDouble, faults: "Faults", blob: bytes) -> None:
        self._cuda = cuda
        self._gpu = cuda.gpu
        self._faults = faults
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

    def _see_gpu(self) -> None:
        if self._cuda.gpu != self._gpu:
            raise RuleBrokenError(f"an engine of GPU {self._gpu} used by a thread that has chosen {self._cuda.gpu}")

    def _allocate(self) -> None:
        self._see_gpu()
        self._faults.loads.append(str(self._plan["onnx"]))
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

    def create_execution_context(self, runtime_config: Any = None) -> "IExecutionContext | None":
        strategy = runtime_config
        if isinstance(runtime_config, IRuntimeConfig):
            strategy = runtime_config.get_execution_context_allocation_strategy()
            cache = runtime_config.get_runtime_cache()
            if cache is not None:
                cache._compile()
        self._see_gpu()
        if strategy != ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuleBrokenError("a context with memory of its own")
        if self._weights is None and self._plan["streamed"]:
            self._allocate()  # as much as the budget says
        status, memory = self._cuda.cudaMalloc(self._faults.context_bytes)
        if status:
            self._logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (no room for a context)")
            return None
        context = self._context_type(self, memory, runtime_config)
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


class Runtime:
    """The real one finds its device in the CUDA context; this one is told in `module`."""

    _cuda: CudaDouble
    _faults: "Faults"
    _engine_type = ICudaEngine

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        try:
            engine = self._engine_type(self._cuda, self._faults, bytes(serialized_engine))
            engine._logger = self._logger
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
    faults = Faults()
    names: dict[str, Any] = {one.__name__: one for one in shared} | {
        "__version__": VERSION,
        "faults": faults,
        "Runtime": type("Runtime", (RtxRuntime if rtx else Runtime,), {"_cuda": cuda, "_faults": faults}),
        "Builder": type("Builder", (builder_double.Builder,), {"_cuda": cuda, "_version": VERSION}),
        "Refitter": type("Refitter", (refit_double.Refitter,), {}),
        "BuilderFlag": builder_double.RtxBuilderFlag if rtx else builder_double.BuilderFlag,
    }
    if rtx:
        for one in (CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy, builder_double.ComputeCapability):
            names[one.__name__] = one
    return SimpleNamespace(**names)
