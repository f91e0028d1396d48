"""The part of the double that runs an engine at one size: execution contexts, and how they are configured."""

import weakref
from enum import IntEnum
from math import prod
from typing import Any

import numpy as np
from cuda_double import RuleBrokenError

from lssgen.ports import Array


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


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
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
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


class IExecutionContext:
    def __init__(self, engine: Any, own: int, config: Any) -> None:
        self._engine = engine
        self._cuda = engine._cuda
        self._own = own
        self._config = config
        self._runs = 0
        self._profile: int | None = None
        self._switched = False
        self._memory: tuple[int, int] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._version = 0
        self._ran: int | None = None

    def __del__(self) -> None:
        self._cuda.release(self._own, "a context")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._engine._plan["profiles"]):
            return False
        self._profile = profile_index
        self._changed()
        self._shapes.clear()
        self._switched = False

        def arrive() -> None:
            self._switched = True

        self._cuda.put(arrive, stream_handle)
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
        if self._engine._faults.shapes_contradict:
            raise RuntimeError("Shape inference failed.")
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
        self._see_ready()
        self._engine._see_gpu()
        capturing = self._cuda.recording is not None
        if capturing and self._engine._plan["streamed"]:
            raise RuleBrokenError("captured while weights are streamed")
        if capturing and self._ran != self._version:
            raise RuleBrokenError("captured before a plain execution with these shapes and addresses")
        if capturing and self._lazy and self._runs < 2:
            raise RuleBrokenError("kernels that were to run until the right ones are compiled, captured for ever")
        self._runs += 1
        version, generation, alive = self._version, self._engine._generation, weakref.ref(self)
        kept = None if capturing else self  # a graph does not keep its context alive

        def run() -> None:
            context = kept or alive()
            if context is None:
                raise RuleBrokenError("a graph was replayed after its context was gone")
            if capturing and (context._version != version or context._engine._generation != generation):
                raise RuleBrokenError("a graph was replayed after its context or its weights had changed")
            context._compute()

        self._cuda.put(run, stream_handle)
        if isinstance(self._config, IRuntimeConfig) and self._runs == 1:
            cache = self._config.get_runtime_cache()
            if cache is not None:
                cache._compile()
        if not capturing:
            self._ran = version
        return True

    @property
    def _lazy(self) -> bool:
        lazy = DynamicShapesKernelSpecializationStrategy.LAZY
        return getattr(self._config, "dynamic_shapes_kernel_specialization_strategy", None) == lazy

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
        return self._engine._faults.capturable
