"""The little of CUDA that engines need: one device, one stream, memory, events, graphs. NVIDIA's cuda-bindings inside.

Everything a device does for lssgen is ordered on one stream, so a write, a network and a read follow each other
without the host waiting, except in `read`, `synchronize` and a mark's `wait`. Any thread may call: every call chooses
the GPU, since CUDA's choice is each thread's own, and whoever puts work on the stream holds `Device.turn`, so that
nothing of another thread gets into a capture.
"""

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from importlib import import_module
from math import prod
from typing import Any

import numpy as np

from lssgen.engines.base import check_part
from lssgen.engines.waste import Waste, no_collector
from lssgen.errors import BackendError, EngineError, ShapeError
from lssgen.ports import Array

_BLOCKS, _BLOCK_BYTES = 4, 2**20
_ALIGNMENT = 256
_PACKAGES_OF_CUDA_12 = (
    ', or take the packages for CUDA 12: pip install "cuda-bindings==12.*", with tensorrt-cu12 in place of tensorrt '
    "and tensorrt-cu13, or with tensorrt-rtx-cu12 in place of tensorrt-rtx-cu13"
)
"""A library built for CUDA 13 does not run on an older driver, whichever cuda-bindings there is."""


def bindings() -> Any:
    """The module `cuda.bindings.runtime`.

    Raises:
        BackendError: Not installed, or broken.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"NVIDIA's Python package cuda-bindings cannot be imported ({error}); install it with "
            'pip install "lssgen[tensorrt]" or "lssgen[tensorrt-rtx]"'
        ) from error


class Device:
    """One GPU and the stream that all work on it goes through.

    Args:
        index: Number of the GPU, as nvidia-smi counts those that CUDA_VISIBLE_DEVICES leaves.

    Attributes:
        cuda: The module `cuda.bindings.runtime`.
        name: "NVIDIA H100 80GB HBM3".
        target: Its architecture as a build target: "sm90".
        stream: Handle, for libraries that take one.
        turn: Lock of whoever puts work on the stream; one thread may take it several times.

    Raises:
        BackendError: No driver, a driver older than the package, or no such GPU.
    """

    def __init__(self, index: int = 0) -> None:
        self.cuda: Any = bindings()
        self.index = index
        # Reentrant: a binding that has the turn calls functions that take it.
        self.turn = threading.RLock()
        self.waste = Waste()
        self._memories: weakref.WeakSet[Memory] = weakref.WeakSet()
        self._see_driver()
        properties = self.call("cudaGetDeviceProperties", index)
        self.name: str = properties.name.decode().strip("\0")
        self.target = f"sm{properties.major}{properties.minor}"
        # Non-blocking: what other libraries put on the default stream neither waits for ours nor breaks a capture.
        self.stream = int(self.call("cudaStreamCreateWithFlags", self.cuda.cudaStreamNonBlocking))
        self._staging = _Staging(self)
        # finalize and not __del__: it has the handle only, runs once, and at interpreter exit while modules are still
        # there.
        weakref.finalize(self, self.waste.free, self.cuda.cudaStreamDestroy, self.stream)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime on this GPU; the result without its status.

        Raises:
            BackendError: Out of memory.
            EngineError: Any other failure, by CUDA's own name.
        """
        with self.turn:
            self.choose()
            status, *results = getattr(self.cuda, function)(*arguments)
            if status != self.cuda.cudaError_t.cudaSuccess:
                raise self._failure(function, arguments, status)
        return results[0] if len(results) == 1 else tuple(results)

    def choose(self) -> None:
        """Let this thread work on this GPU: every thread begins with the first one, and other libraries choose too.

        Raises:
            EngineError: CUDA does not let it.
        """
        (status,) = self.cuda.cudaSetDevice(self.index)
        if status != self.cuda.cudaError_t.cudaSuccess:
            raise EngineError(f"cudaSetDevice({self.index}) failed: {status.name}")

    def memory(self) -> tuple[int, int]:
        """Free and total device memory in bytes."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    @property
    def allocated(self) -> int:
        """Device memory in bytes that came from `allocate` and is in use."""
        with self.turn:
            return sum(memory.size for memory in self._memories)

    def allocate(self, size: int) -> "Memory":
        """Device memory, aligned to 256 bytes; freed with the object.

        Raises:
            BackendError: There is not so much left.
        """
        memory = Memory(self, size)
        with self.turn:
            self._memories.add(memory)
        return memory

    def upload(self, source: Array, target: int) -> None:
        """Copy a contiguous host array to a device address; the array may be reused at once."""
        with self.turn:
            self._staging.upload(source.reshape(-1).view(np.uint8), target)

    def download(self, source: int, target: Array) -> None:
        """Copy to a contiguous host array, after everything before it on the stream."""
        self.synchronize()  # without the turn, which a copy to such memory would keep until the stream has come there
        kind = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", target.ctypes.data, source, target.nbytes, kind, self.stream)
        self.synchronize()

    def synchronize(self) -> None:
        """Wait for all work so far; other threads may go on meanwhile."""
        self.event().wait()

    def event(self) -> "Event":
        """A mark at the stream's present end."""
        return Event(self)

    def capture(self, work: Callable[[], None]) -> "Graph":
        """Record what `work` puts on the stream, without running it.

        Raises:
            EngineError: The work cannot be captured, or there is no memory for the graph. The stream is as before.
        """
        # Thread-local: a cudaMalloc of another thread, another library's perhaps, does not make the capture invalid.
        mode = self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.turn, no_collector(), self.waste.kept():
            self.call("cudaStreamBeginCapture", self.stream, mode)
            try:
                work()
            except BaseException:
                self._end_failed_capture()
                raise
            recorded = self.call("cudaStreamEndCapture", self.stream)
            try:
                return Graph(self, self.call("cudaGraphInstantiate", recorded, 0))
            finally:
                self.call("cudaGraphDestroy", recorded)

    def describe(self) -> dict[str, object]:
        """For run.json."""
        return {
            "device": self.name,
            "target": self.target,
            "driver_cuda": _dotted(self.call("cudaDriverGetVersion")),
            "runtime_cuda": _dotted(self.call("cudaRuntimeGetVersion")),
            "memory_bytes": self.memory()[1],
        }

    def _failure(self, function: str, arguments: Sequence[Any], status: Any) -> EngineError:
        self.cuda.cudaGetLastError()  # else the next one to ask, a library's kernel launch, is told of this one
        if status != self.cuda.cudaError_t.cudaErrorMemoryAllocation:
            return EngineError(f"{function} failed: {status.name}, {self.cuda.cudaGetErrorString(status)[1].decode()}")
        wanted = f"another {arguments[0] / 1e6:.0f} MB" if function == "cudaMalloc" else f"what {function} needs"
        # Not by `memory`, which comes here again where it fails.
        _, free, total = self.cuda.cudaMemGetInfo()
        return BackendError(
            f"{self.name} has no room for {wanted}: {free / 1e6:.0f} of {total / 1e6:.0f} MB are free; close other "
            "programs, use fewer pictures at a time or smaller ones"
        )

    def _end_failed_capture(self) -> None:
        # Ended all the same, or the stream stays in capture mode and nothing runs on it any more.
        status, recorded = self.cuda.cudaStreamEndCapture(self.stream)
        if status == self.cuda.cudaError_t.cudaSuccess:
            self.call("cudaGraphDestroy", recorded)
        self.cuda.cudaGetLastError()

    def _see_driver(self) -> None:
        cuda = self.cuda
        needs = _dotted(cuda.cudaRuntimeGetVersion()[1])
        try:
            status, count = cuda.cudaGetDeviceCount()
            driver = cuda.cudaDriverGetVersion()[1]
        except RuntimeError as error:  # cuda-bindings loads the driver late
            raise BackendError(f"no NVIDIA driver answers on this machine ({error}); run where a GPU is") from error
        if status == cuda.cudaError_t.cudaErrorInsufficientDriver and driver:
            raise BackendError(
                f"the NVIDIA driver supports CUDA {_dotted(driver)}, but cuda-bindings needs {needs}; upgrade the "
                "driver" + (_PACKAGES_OF_CUDA_12 if driver >= 12000 else "")
            )
        if status != cuda.cudaError_t.cudaSuccess or not count:
            # CUDA gives 0 as the driver's version where there is none.
            why = "no NVIDIA driver answers" if not driver else f"the driver shows no GPU ({status.name})"
            raise BackendError(f"{why} on this machine; run where an NVIDIA GPU is, or with --engine onnxruntime")
        if self.index >= count:
            raise BackendError(f"there is no GPU {self.index}; this machine has {count}, counted from 0")


class Memory:
    """Device memory; see `Device.allocate`.

    Attributes:
        size: Number of bytes.
        address: Address on the device; the same until the object dies.
    """

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        # cudaMalloc(0) gives no address, and engines want one for every tensor and for scratch of no bytes.
        self.address = int(device.call("cudaMalloc", max(size, _ALIGNMENT)))
        weakref.finalize(self, device.waste.free, device.cuda.cudaFree, self.address)


class CudaBuffer:
    """A tensor on a GPU; `lssgen.engines.base.Buffer`."""

    def __init__(self, device: Device, shape: Sequence[int], dtype: Any) -> None:
        self._device = device
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)
        self._memory = device.allocate(prod(shape) * self._dtype.itemsize)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def address(self) -> int:
        return self._memory.address

    def write(self, value: Array) -> None:
        if value.shape != self._shape:
            raise ShapeError(f"a buffer of shape {self._shape} was given an array of shape {value.shape}")
        # CUDA copies bytes: another type or order of axes would become nonsense unseen.
        self._device.upload(np.ascontiguousarray(value, self._dtype), self.address)

    def read(self) -> Array:
        value = np.empty(self._shape, self._dtype)
        self._device.download(self.address, value)
        return value

    def write_part(self, first: int, values: Array) -> None:
        check_part(self._shape, first, values.size)
        self._device.upload(np.ascontiguousarray(values, self._dtype), self.address + first * self._dtype.itemsize)

    def read_part(self, first: int, count: int) -> Array:
        check_part(self._shape, first, count)
        values = np.empty(count, self._dtype)
        self._device.download(self.address + first * self._dtype.itemsize, values)
        return values


class Event:
    """A point on the stream; `lssgen.engines.base.Mark`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        # 0 keeps timing on, which `seconds_since` needs.
        self.handle = device.call("cudaEventCreateWithFlags", 0)
        weakref.finalize(self, device.waste.free, device.cuda.cudaEventDestroy, self.handle)
        self.record()

    def record(self) -> None:
        """Move the mark to the stream's present end."""
        self._device.call("cudaEventRecord", self.handle, self._device.stream)

    def reached(self) -> bool:
        cuda = self._device.cuda
        self._device.choose()
        # Not by `call`, to which "not ready" is a failure.
        (status,) = cuda.cudaEventQuery(self.handle)
        if status == cuda.cudaError_t.cudaErrorNotReady:
            return False
        if status != cuda.cudaError_t.cudaSuccess:
            raise EngineError(f"the work before a mark failed: {status.name}")
        return True

    def wait(self) -> None:
        cuda = self._device.cuda
        self._device.choose()
        (status,) = cuda.cudaEventSynchronize(self.handle)  # not by `call`: others may have their turn
        if status != cuda.cudaError_t.cudaSuccess:
            raise EngineError(f"the work before a mark failed: {status.name}")

    def seconds_since(self, earlier: "Event") -> float:
        return float(self._device.call("cudaEventElapsedTime", earlier.handle, self.handle)) / 1e3


class Graph:
    """Captured work, replayed with one call. The addresses it uses are those of the capture."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._device = device
        self._handle = handle
        weakref.finalize(self, device.waste.free, device.cuda.cudaGraphExecDestroy, handle)

    def launch(self) -> None:
        self._device.call("cudaGraphLaunch", self._handle, self._device.stream)


class _Staging:
    """Pinned host memory that uploads go through, so that they neither wait nor keep the caller's array.

    Blocks are filled in turn; one is used again once the last copy out of it is done. Whoever uploads has the turn.
    """

    def __init__(self, device: Device) -> None:
        # The device holds its staging: a reference back would leave both, and pinned memory, to the garbage collector.
        self._device = weakref.proxy(device)
        self._address = int(device.call("cudaHostAlloc", _BLOCKS * _BLOCK_BYTES, device.cuda.cudaHostAllocDefault))
        weakref.finalize(self, device.waste.free, device.cuda.cudaFreeHost, self._address)
        self._bytes = np.ctypeslib.as_array((ctypes.c_uint8 * (_BLOCKS * _BLOCK_BYTES)).from_address(self._address))
        self._left = [Event(self._device) for _ in range(_BLOCKS)]
        self._block = 0
        self._used = 0

    def upload(self, source: Array, target: int) -> None:
        kind = self._device.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        done = 0
        while done < source.size:
            if self._used == _BLOCK_BYTES:
                self._left[self._block].record()
                self._block, self._used = (self._block + 1) % _BLOCKS, 0
                # Only where the host is four blocks ahead of the device.
                self._left[self._block].wait()
            size = min(source.size - done, _BLOCK_BYTES - self._used)
            start = self._block * _BLOCK_BYTES + self._used
            self._bytes[start : start + size] = source[done : done + size]
            self._device.call("cudaMemcpyAsync", target + done, self._address + start, size, kind, self._device.stream)
            self._used += size
            done += size


def _dotted(version: int) -> str:
    """13050 -> "13.5"."""
    return f"{version // 1000}.{version % 1000 // 10}"
