"""A double of `cuda.bindings.runtime`, in host memory, as lazy and as strict as a GPU.

Work on a stream runs when somebody waits for it, and not before: who reuses host memory too early, or frees device
memory that queued work still reads, gets wrong numbers here as there. What CUDA forbids raises `RuleBrokenError`.
"""

# ruff: noqa: N802, N815 - the names are NVIDIA's

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from lssgen.ports import Array


class RuleBrokenError(AssertionError):
    """Something that the real library forbids, or leaves undefined."""


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass(eq=False)
class Recording:
    """Captured work; each piece says whether it may be replayed, and does it."""

    work: list[Callable[[], None]] = field(default_factory=list)


@dataclass(eq=False)
class Mark:
    position: int = 0


class CudaDouble:
    """One device with one stream. Attribute and parameter names are those of the real module.

    Args:
        memory: Device memory in bytes.
        capability: Compute capability.
        driver: CUDA version that the driver supports, as CUDA writes it; 0 is no driver.
    """

    cudaError_t = Status
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, memory: int = 2**30, capability: tuple[int, int] = (8, 9), driver: int = 13050) -> None:
        self._total = memory
        self.capability = capability
        self._driver = driver
        self._blocks: dict[int, tuple[int, Any]] = {}
        self._pinned: dict[int, Any] = {}
        self._queue: list[Callable[[], None]] = []
        self._done = 0
        self.recording: Recording | None = None
        self.launches = 0
        self.peak = 0
        self.broken: list[str] = []
        self.measured: list[str] = []
        self.threads: set[int] = set()

    # What the tests and the TensorRT double use.

    @property
    def sizes(self) -> list[int]:
        """Sizes of all allocated blocks of device memory."""
        return [size for size, _ in self._blocks.values()]

    @property
    def used(self) -> int:
        """Allocated device memory."""
        return sum(self.sizes)

    @property
    def busy(self) -> bool:
        """Whether queued work waits."""
        return bool(self._queue)

    def release(self, address: int, what: str) -> None:
        """Free memory from a destructor, where nothing can be raised: what is wrong is noted in `broken`."""
        if self.busy or self.recording is not None:
            self.broken.append(f"{what} freed while work is queued or captured")
        del self._blocks[address]

    def put(self, work: Callable[[], None]) -> None:
        """Queue work on the stream, or record it."""
        (self._queue if self.recording is None else self.recording.work).append(work)

    def check(self, address: int, size: int) -> None:
        """See that this is allocated device memory."""
        for begin, (length, _) in self._blocks.items():
            if begin <= address and address + size <= begin + length:
                return
        raise RuleBrokenError(f"{size} bytes at {address:#x} are not allocated device memory (freed, or too short)")

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """A window on device memory."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        self.check(address, size)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)

    def drain(self, until: int | None = None) -> None:
        """Run the queued work."""
        end = self._done + len(self._queue) if until is None else until
        while self._done < end:
            self._done += 1
            self._queue.pop(0)()

    # The module.

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self._driver < 13000:
            return (Status.cudaErrorInsufficientDriver, None)
        return (Status.cudaSuccess, 1)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self._driver)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, 13050)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        del device
        self.threads.add(threading.get_ident())
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        del device
        major, minor = self.capability
        return (Status.cudaSuccess, SimpleNamespace(name=b"Double", major=major, minor=minor))

    def cudaGetErrorString(self, error: Status) -> tuple[Any, ...]:
        return (Status.cudaSuccess, error.name.encode())

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self._total - self.used, self._total)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._not_while_capturing("cudaMalloc")
        if size > self._total - self.used:
            return (Status.cudaErrorMemoryAllocation, None)
        block = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN, where somebody reads before writing
        self._blocks[address] = (size, block)
        self.peak = max(self.peak, self.used)
        return (Status.cudaSuccess, address)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        self._not_while_capturing("cudaFree")
        self.drain()
        del self._blocks[devPtr]
        return (Status.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        del flags
        block = (ctypes.c_uint8 * size)()
        self._pinned[ctypes.addressof(block)] = block
        return (Status.cudaSuccess, ctypes.addressof(block))

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        self.drain()
        del self._pinned[ptr]
        return (Status.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: CopyKind, stream: int) -> tuple[Any, ...]:
        del stream
        device = dst if kind == CopyKind.cudaMemcpyHostToDevice else src

        def copy() -> None:
            self.check(device, count)
            ctypes.memmove(dst, src, count)

        self.check(device, count)
        self.put(copy)
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        return (Status.cudaSuccess, 7)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del stream
        return (Status.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        del stream
        self._not_while_capturing("cudaStreamSynchronize")
        self.drain()
        return (Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        del flags
        return (Status.cudaSuccess, Mark())

    def cudaEventRecord(self, event: Mark, stream: int) -> tuple[Any, ...]:
        del stream
        event.position = self._done + len(self._queue)
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, event: Mark) -> tuple[Any, ...]:
        self.drain(event.position)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: Mark, end: Mark) -> tuple[Any, ...]:
        return (Status.cudaSuccess, float(end.position - start.position))

    def cudaEventDestroy(self, event: Mark) -> tuple[Any, ...]:
        del event
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Any, ...]:
        del stream, mode
        self._not_while_capturing("cudaStreamBeginCapture")
        self.recording = Recording()
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        del stream
        recording, self.recording = self.recording, None
        return (Status.cudaSuccess, recording)

    def cudaGraphInstantiate(self, graph: Recording, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        if not graph.work:
            raise RuleBrokenError("a graph was captured with nothing in it")
        return (Status.cudaSuccess, Recording(list(graph.work)))

    def cudaGraphLaunch(self, graphExec: Recording, stream: int) -> tuple[Any, ...]:
        del stream
        self.launches += 1
        for work in graphExec.work:
            self.put(work)
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Recording) -> tuple[Any, ...]:
        graph.work.clear()
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: Recording) -> tuple[Any, ...]:
        graphExec.work.clear()
        return (Status.cudaSuccess,)

    def _not_while_capturing(self, function: str) -> None:
        if self.recording is not None:
            raise RuleBrokenError(f"{function} while the stream is captured")
