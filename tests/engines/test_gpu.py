"""What only a GPU can prove: streams, pinned uploads, events, captures, memory, threads; ONNX Runtime there.

    pytest -m gpu

The module of CUDA needs cuda-bindings, ONNX Runtime onnxruntime-gpu; no other engine and no torch.
"""

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_graph import graph

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.engines.cuda import CudaBuffer, Device, Event
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBuffer
from lssgen.engines.registry import open_backend
from lssgen.errors import BackendError, EngineError
from lssgen.parity.accuracy import relative_error
from lssgen.runtime import Pipeline

pytestmark = pytest.mark.gpu

MANY = 1 << 26
"""Floats whose copies keep a GPU busy for long enough to be seen: 256 MB each."""


@pytest.fixture(scope="module")
def device() -> Device:
    return Device()


def filled(device: Device, count: int, number: float) -> CudaBuffer:
    buffer = CudaBuffer(device, (count,), np.float32)
    buffer.write(np.full(count, number, np.float32))
    return buffer


def copied(device: Device, source: CudaBuffer, target: CudaBuffer) -> Callable[[], None]:
    """Work for the stream: one buffer's contents into another."""
    kind = device.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    size = 4 * source.shape[0]
    return lambda: device.call("cudaMemcpyAsync", target.address, source.address, size, kind, device.stream)


def repeated(work: Callable[[], None], times: int) -> None:
    for _ in range(times):
        work()


def busy(device: Device, copies: int) -> Callable[[], None]:
    """Copies of 256 MB, a tenth of a millisecond and more each."""
    copy = copied(device, filled(device, MANY, 1), CudaBuffer(device, (MANY,), np.float32))
    return lambda: repeated(copy, copies)


def test_the_device_says_what_it_is(device: Device) -> None:
    said = device.describe()
    assert str(said["device"]).startswith("NVIDIA")
    assert str(said["target"]).startswith("sm")
    assert 0 < device.memory()[0] <= device.memory()[1] == said["memory_bytes"]


@pytest.mark.parametrize("count", [1, 1000, 3 * 2**20])  # the last is more than all of the pinned memory
def test_what_is_uploaded_is_downloaded(device: Device, count: int) -> None:
    buffer = CudaBuffer(device, (count,), np.float32)
    for seed in range(3):
        value = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
        buffer.write(value)
        np.testing.assert_array_equal(buffer.read(), value)


def test_an_uploaded_array_may_be_reused_at_once_behind_a_busy_stream(device: Device) -> None:
    buffers = [CudaBuffer(device, (1000,), np.float32) for _ in range(64)]
    work, value = busy(device, 50), np.empty(1000, np.float32)
    work()
    for number, buffer in enumerate(buffers):
        value[:] = number
        buffer.write(value)
    assert [buffer.read()[-1] for buffer in buffers] == list(range(64))


def test_small_uploads_do_not_make_the_host_wait(device: Device) -> None:
    work, buffer = busy(device, 400), CudaBuffer(device, (8,), np.float32)
    device.synchronize()
    work()
    for number in range(100):
        buffer.write(np.full(8, number, np.float32))
    behind = device.event()
    assert not behind.reached()
    assert buffer.read()[0] == 99


def test_events_time_the_device_and_not_the_launch(device: Device) -> None:
    few, many = busy(device, 20), busy(device, 200)
    few()
    device.synchronize()

    def seconds(work: Callable[[], None]) -> float:
        begin = device.event()
        work()
        end: Event = device.event()
        end.wait()
        return end.seconds_since(begin)

    times = [seconds(few), seconds(many)]
    # 256 MB are read and written; no memory of a GPU moves 20 TB in a second.
    assert times[0] > 20 * 2 * 4 * MANY / 20e12
    # Ten times the work; others may use the card meanwhile, which has stretched this to 16 times.
    assert times[1] > 3 * times[0]


def test_a_captured_graph_replays_what_is_there_then(device: Device) -> None:
    source, target = filled(device, 1000, 1), filled(device, 1000, 0)
    graph = device.capture(copied(device, source, target))
    assert target.read()[0] == 0  # recorded, and not run
    for number in (1, 2, 3):
        source.write(np.full(1000, number, np.float32))
        graph.launch()
        assert target.read()[0] == number


def test_a_capture_that_fails_leaves_the_stream_as_it_was(device: Device) -> None:
    source, target = filled(device, 1000, 5), filled(device, 1000, 0)

    def work() -> None:
        copied(device, source, target)()
        device.call("cudaStreamSynchronize", device.stream)  # which no capture can record

    with pytest.raises(EngineError, match="cudaErrorStreamCapture"):
        device.capture(work)
    copied(device, source, target)()
    assert target.read()[0] == 5
    device.capture(copied(device, source, target)).launch()


def test_what_dies_during_a_capture_is_freed_after_it(device: Device) -> None:
    source, target = filled(device, 1000, 1), filled(device, 1000, 0)
    dying = [CudaBuffer(device, (MANY,), np.float32)]
    before = device.allocated

    def work() -> None:
        copied(device, source, target)()
        dying.clear()  # cudaFree from here would make the capture invalid

    device.capture(work).launch()
    assert target.read()[0] == 1
    assert before - device.allocated == 4 * MANY


def test_garbage_of_a_library_is_not_collected_during_a_capture(device: Device) -> None:
    source, target = filled(device, 1000, 1), filled(device, 1000, 0)
    freed: list[int] = []

    class Owner:
        """A cycle whose end frees device memory by itself, as libraries do."""

        def __init__(self) -> None:
            self.me = self
            self.address = int(device.call("cudaMalloc", 4096))

        def __del__(self) -> None:
            device.call("cudaFree", self.address)
            freed.append(self.address)

    owners = [Owner() for _ in range(5)]

    def work() -> None:
        owners.clear()
        for _ in range(20_000):  # enough for several collections, if there were any
            _ = [[]]
        copied(device, source, target)()

    graph = device.capture(work)
    assert freed == []
    gc.collect()
    assert len(freed) == 5
    graph.launch()
    assert target.read()[0] == 1


def test_another_threads_allocation_does_not_break_a_capture(device: Device) -> None:
    """Straight at the runtime, as another library does, without our turn."""
    source, target = filled(device, 1000, 1), filled(device, 1000, 0)

    def allocated() -> int:
        device.cuda.cudaSetDevice(device.index)
        status, address = device.cuda.cudaMalloc(1 << 20)
        return int(status) or int(device.cuda.cudaFree(address)[0])

    with ThreadPoolExecutor(1) as other:

        def work() -> None:
            copied(device, source, target)()
            assert other.submit(allocated).result() == 0

        device.capture(work).launch()
    assert target.read()[0] == 1


def test_threads_that_work_at_once_do_not_mix_their_numbers(device: Device) -> None:
    buffers = [CudaBuffer(device, (60_000,), np.float32) for _ in range(4)]

    def work(number: int) -> bool:
        for turn in range(100):
            buffers[number].write(np.full(60_000, 10 * turn + number, np.float32))
            if not (buffers[number].read() == 10 * turn + number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_running_out_of_memory_is_said_and_the_device_goes_on(device: Device) -> None:
    with pytest.raises(BackendError, match=r"has no room for another \d+ MB: \d+ of \d+ MB are free"):
        CudaBuffer(device, (device.memory()[1],), np.float32)
    assert filled(device, 1000, 3).read()[0] == 3  # and the failure is nobody else's


def test_memory_goes_back_to_the_device(device: Device) -> None:
    device.synchronize()
    before = device.memory()[0]
    buffer = CudaBuffer(device, (1 << 28,), np.float32)
    assert before - device.memory()[0] >= 1 << 30
    del buffer
    assert device.memory()[0] >= before - (1 << 22)


@pytest.fixture(scope="module")
def cuda() -> Backend:
    return open_backend("onnxruntime-cuda")


def painted(bundle: Bundle, backend: Backend, seed: int = 3, **options: Any) -> Any:
    with Pipeline(bundle, backend) as pipeline:
        return pipeline("a red star above a blue circle on a white background", seed=seed, **options)


def test_onnx_runtime_paints_on_a_gpu_what_it_paints_on_the_cpu(demo: Bundle, cuda: Backend) -> None:
    """Latents of both stages in fp32; 1e-3 is a hundred times what a step differs by, and a tenth of a grey level."""
    on_gpu, on_cpu = painted(demo, cuda), painted(demo, open_backend("onnxruntime"))
    assert relative_error(on_gpu.latents, on_cpu.latents) < 1e-3


def test_the_same_seed_gives_the_same_picture_again(demo: Bundle, cuda: Backend) -> None:
    """But for rounding: 3e-6 between two sessions on an H100, where each may choose other kernels."""
    first, again = painted(demo, cuda), painted(demo, cuda)
    assert relative_error(again.latents, first.latents) < 1e-4


def test_two_threads_paint_on_one_gpu_as_if_alone(demo: Bundle) -> None:
    wanted = [painted(demo, open_backend("onnxruntime-cuda"), seed).latents for seed in (1, 2)]
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda seed: painted(demo, open_backend("onnxruntime-cuda"), seed).latents, (1, 2))
    for one, other in zip(wanted, found, strict=True):
        assert relative_error(other, one) < 1e-5  # the same kernels, in whatever order


def test_marks_of_onnx_runtime_are_the_devices(demo: Bundle, cuda: Backend) -> None:
    del demo
    first = cuda.mark()
    assert isinstance(first, Event)
    second = cuda.mark()
    second.wait()
    assert second.seconds_since(first) >= 0


def test_fp32_means_fp32_on_a_gpu_and_tf32_is_less(tmp_path: Path) -> None:
    """A product of 4096 x 512 normal numbers: float32 adds up to 1e-6, ten bits of mantissa give some 1e-4."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((4096, 512), (512, 512)))
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    bundle = graph(tmp_path, "(float[a, b] x, float[b, c] y) => (float[a, c] z) { z = MatMul (x, y) }")
    errors: list[float] = []
    for tf32 in (False, True):
        backend = open_backend("onnxruntime-cuda", tf32=tf32)
        buffers = {"x": backend.empty(x.shape, np.float32), "y": backend.empty(weight.shape, np.float32)}
        buffers["z"] = backend.empty(exact.shape, np.float32)
        buffers["x"].write(x)
        buffers["y"].write(weight)
        backend.open(bundle, Demand())["toy"].bind(buffers)()
        errors.append(relative_error(buffers["z"].read(), exact))
    assert errors[0] < 1e-5
    assert errors[1] > 1e-4


def test_parts_of_a_buffer_on_a_gpu_are_written_where_they_belong() -> None:
    for buffer in (OrtBuffer.new((4, 5), np.float32, "cuda", 0), CudaBuffer(Device(), (4, 5), np.float32)):
        buffer.write(np.zeros((4, 5)))
        buffer.write_part(3, np.ones(4, np.float32))
        np.testing.assert_array_equal(buffer.read().ravel(), [0] * 3 + [1] * 4 + [0] * 13)
        np.testing.assert_array_equal(buffer.read_part(2, 3), [0, 1, 1])


def test_a_tensor_that_the_gpu_has_no_room_for_is_one_sentence(cuda: Backend) -> None:
    with pytest.raises(BackendError, match=r"cuda has no room for a tensor of shape"):
        cuda.empty((2**20, 2**20), np.float32)
    buffer = cuda.empty((8,), np.float32)
    buffer.write(np.ones(8))
    assert buffer.read().sum() == 8
