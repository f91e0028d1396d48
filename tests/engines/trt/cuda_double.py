"""A double of `cuda.bindings.runtime`, in host memory, as lazy, as strict and as unkind as a GPU.

Work on a stream runs when somebody waits for it, and not before: who reuses host memory too early, or frees device
memory that queued work still reads, gets wrong numbers here as there. Every thread begins with the first GPU, and
memory, streams and kernels are of the one that it has chosen. What CUDA forbids raises `RuleBrokenError`, or makes a
capture invalid.
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

STREAMS = 7
"""Handle of the first GPU's stream; those of the others follow."""


class RuleBrokenError(AssertionError):
    """Something that the real library forbids, or leaves undefined."""


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class CaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


@dataclass(eq=False)
class Recording:
    """Captured work; each piece says whether it may be replayed, and does it.

    Attributes:
        thread: Thread that captures; what is unsafe is unsafe for it alone.
        broken: Reason why the capture is invalid; empty: it is not.
    """

    work: list[Callable[[], None]] = field(default_factory=list)
    thread: int = 0
    broken: str = ""


@dataclass(eq=False)
class Mark:
    position: int = 0


@dataclass(frozen=True)
class Block:
    """Allocated device memory."""

    size: int
    gpu: int
    host: Any


class CudaDouble:
    """GPUs with one stream each. Attribute and parameter names are those of the real module.

    Args:
        memory: Device memory of each in bytes.
        capability: Compute capability.
        driver: CUDA version that the driver supports, as CUDA writes it; 0 is no driver.
        gpus: Number of GPUs.

    Attributes:
        capture_fails: Reason why every capture turns out invalid; empty: none does.
        graphs_left: Number of graphs that there is memory for.
    """

    cudaError_t = Status
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(
        self, memory: int = 2**30, capability: tuple[int, int] = (8, 9), driver: int = 13050, gpus: int = 1
    ) -> None:
        self._total = memory
        self.capability = capability
        self._driver = driver
        self._gpus = gpus
        self._chosen = threading.local()
        self._blocks: dict[int, Block] = {}
        self._pinned: dict[int, Any] = {}
        self._queue: list[Callable[[], None]] = []
        self._done = 0
        self._draining = threading.RLock()
        self.recording: Recording | None = None
        self.capture_fails = ""
        self.graphs_left = 10**6
        self.errors_seen = 0
        self.launches = 0
        self.peak = 0
        self.broken: list[str] = []
        self.measured: list[str] = []
        self.threads: set[int] = set()

    # What the tests and the TensorRT double use.

    @property
    def sizes(self) -> list[int]:
        """Sizes of all allocated blocks of device memory."""
        return [block.size for block in self._blocks.values()]

    @property
    def used(self) -> int:
        """Allocated device memory, of all GPUs."""
        return sum(self.sizes)

    def used_on(self, gpu: int) -> int:
        """Allocated device memory of one GPU."""
        return sum(block.size for block in self._blocks.values() if block.gpu == gpu)

    @property
    def gpu(self) -> int:
        """The GPU that this thread works on."""
        return int(getattr(self._chosen, "gpu", 0))

    @property
    def busy(self) -> bool:
        """Whether queued work waits."""
        return bool(self._queue)

    def release(self, address: int, what: str) -> None:
        """Free memory from a destructor, where nothing can be raised: what is wrong is noted in `broken`."""
        if self.busy or self._capturing():
            self.broken.append(f"{what} freed while work is queued or captured")
        del self._blocks[address]

    def put(self, work: Callable[[], None], stream: int | None = None) -> None:
        """Queue work on the stream, or record it."""
        if stream is not None and stream != STREAMS + self.gpu:
            raise RuleBrokenError(f"work for stream {stream} from a thread that has chosen GPU {self.gpu}")
        if self.recording is None:
            self._queue.append(work)
            return
        if self.recording.thread != threading.get_ident():
            raise RuleBrokenError("work of another thread got into a capture")
        self.recording.work.append(work)

    def check(self, address: int, size: int) -> None:
        """See that this is allocated device memory."""
        for begin, block in list(self._blocks.items()):
            if begin <= address and address + size <= begin + block.size:
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
        with self._draining:
            end = self._done + len(self._queue) if until is None else until
            while self._done < end:
                self._done += 1
                self._queue.pop(0)()

    # The module.

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self._driver < 13000:
            return (Status.cudaErrorInsufficientDriver, None)
        return (Status.cudaSuccess, self._gpus)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self._driver)

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, 13050)

    def cudaSetDevice(self, device: int) -> tuple[Any, ...]:
        if not 0 <= device < self._gpus:
            return (Status.cudaErrorInvalidDevice,)
        self.threads.add(threading.get_ident())
        self._chosen.gpu = device
        return (Status.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        del device
        major, minor = self.capability
        return (Status.cudaSuccess, SimpleNamespace(name=b"Double", major=major, minor=minor))

    def cudaGetErrorString(self, error: Status) -> tuple[Any, ...]:
        return (Status.cudaSuccess, error.name.encode())

    def cudaGetLastError(self) -> tuple[Any, ...]:
        self.errors_seen += 1
        return (Status.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[Any, ...]:
        return (Status.cudaSuccess, self._total - self.used_on(self.gpu), self._total)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self._breaks_capture("cudaMalloc"):
            return (Status.cudaErrorStreamCaptureUnsupported, None)
        if size > self._total - self.used_on(self.gpu):
            return (Status.cudaErrorMemoryAllocation, None)
        block = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(block) // 256) * 256
        ctypes.memset(address, 0xFF, size)  # NaN, where somebody reads before writing
        self._blocks[address] = Block(size, self.gpu, block)
        self.peak = max(self.peak, self.used)
        return (Status.cudaSuccess, address)

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        if self._breaks_capture("cudaFree"):
            return (Status.cudaErrorStreamCaptureUnsupported,)
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
        device = dst if kind == CopyKind.cudaMemcpyHostToDevice else src

        def copy() -> None:
            self.check(device, count)
            ctypes.memmove(dst, src, count)

        self.check(device, count)
        self.put(copy, stream)
        return (Status.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        return (Status.cudaSuccess, STREAMS + self.gpu)

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del stream
        return (Status.cudaSuccess,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        del flags
        return (Status.cudaSuccess, Mark())

    def cudaEventRecord(self, event: Mark, stream: int) -> tuple[Any, ...]:
        if stream != STREAMS + self.gpu:
            raise RuleBrokenError(f"an event on stream {stream} from a thread that has chosen GPU {self.gpu}")
        event.position = self._done + len(self._queue)
        return (Status.cudaSuccess,)

    def cudaEventQuery(self, event: Mark) -> tuple[Any, ...]:
        return (Status.cudaSuccess if event.position <= self._done else Status.cudaErrorNotReady,)

    def cudaEventSynchronize(self, event: Mark) -> tuple[Any, ...]:
        if self._breaks_capture("cudaEventSynchronize"):
            return (Status.cudaErrorStreamCaptureUnsupported,)
        self.drain(event.position)
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: Mark, end: Mark) -> tuple[Any, ...]:
        return (Status.cudaSuccess, float(end.position - start.position))

    def cudaEventDestroy(self, event: Mark) -> tuple[Any, ...]:
        del event
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[Any, ...]:
        del stream, mode
        if self.recording is not None:
            raise RuleBrokenError("cudaStreamBeginCapture while the stream is captured")
        self.recording = Recording(thread=threading.get_ident(), broken=self.capture_fails)
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        del stream
        recording, self.recording = self.recording, None
        assert recording is not None
        if recording.broken:
            return (Status.cudaErrorStreamCaptureInvalidated, None)
        return (Status.cudaSuccess, recording)

    def cudaGraphInstantiate(self, graph: Recording, flags: int) -> tuple[Any, ...]:
        assert flags == 0
        if not graph.work:
            raise RuleBrokenError("a graph was captured with nothing in it")
        if self.graphs_left == 0:
            return (Status.cudaErrorMemoryAllocation, None)
        self.graphs_left -= 1
        return (Status.cudaSuccess, Recording(list(graph.work)))

    def cudaGraphLaunch(self, graphExec: Recording, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in graphExec.work:
            self.put(work, stream)
        return (Status.cudaSuccess,)

    def cudaGraphDestroy(self, graph: Recording) -> tuple[Any, ...]:
        graph.work.clear()
        return (Status.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec: Recording) -> tuple[Any, ...]:
        graphExec.work.clear()
        return (Status.cudaSuccess,)

    def _capturing(self) -> bool:
        return self.recording is not None and self.recording.thread == threading.get_ident()

    def _breaks_capture(self, function: str) -> bool:
        """Whether this thread captures, and has just made its capture invalid."""
        if self.recording is None or not self._capturing():
            return False
        self.recording.broken = f"{function} while the stream is captured"
        return True
