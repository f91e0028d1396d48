"""The CUDA side, on a double in host memory that runs work as late as a GPU may."""

import gc
import sys
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
from cuda_double import CudaDouble

from lssgen.engines import cuda as cuda_module
from lssgen.engines.cuda import CudaBuffer, Device, bindings
from lssgen.errors import BackendError, EngineError, ShapeError


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    double = CudaDouble()
    monkeypatch.setattr(cuda_module, "bindings", lambda: double)
    return double


@pytest.mark.parametrize("count", [1, 1000, 3 * 2**20])  # the last is more than all of the pinned memory
@pytest.mark.usefixtures("double")
def test_what_is_written_is_read(count: int) -> None:
    buffer = CudaBuffer(Device(), (count,), np.float32)
    for seed in range(3):
        value = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
        buffer.write(value)
        np.testing.assert_array_equal(buffer.read(), value)


@pytest.mark.usefixtures("double")
def test_a_written_array_may_be_reused_at_once() -> None:
    device = Device()
    buffers = [CudaBuffer(device, (300_000,), np.float32) for _ in range(12)]
    value = np.empty(300_000, np.float32)
    for index, buffer in enumerate(buffers):
        value[:] = index
        buffer.write(value)
    assert [buffer.read()[-1] for buffer in buffers] == list(range(12))


def test_small_writes_do_not_make_the_host_wait(double: CudaDouble) -> None:
    buffer = CudaBuffer(Device(), (8,), np.float32)
    for index in range(100):
        buffer.write(np.full(8, index, np.float32))
    assert double.busy


@pytest.mark.usefixtures("double")
def test_a_buffer_refuses_an_array_of_another_shape() -> None:
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) was given an array of shape \(3, 2\)"):
        CudaBuffer(Device(), (2, 3), np.float32).write(np.zeros((3, 2), np.float32))


@pytest.mark.usefixtures("double")
def test_a_buffer_converts_to_its_own_type() -> None:
    buffer = CudaBuffer(Device(), (2,), np.float32)
    buffer.write(np.array([1, 2], np.int64))
    assert buffer.read().tolist() == [1.0, 2.0]


def test_memory_goes_back_with_its_buffer(double: CudaDouble) -> None:
    buffer = CudaBuffer(Device(), (1000,), np.float32)
    assert double.used == 4000
    del buffer
    assert double.used == 0


@pytest.mark.usefixtures("double")
def test_running_out_of_memory_says_how_much_there_is() -> None:
    with pytest.raises(BackendError, match=r"no room for another 4000 MB: 1074 of 1074 MB are free"):
        CudaBuffer(Device(), (10**9,), np.float32)


def test_no_driver_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "bindings", lambda: CudaDouble(driver=0))
    with pytest.raises(BackendError, match="no NVIDIA driver answers on this machine"):
        Device()


def test_a_driver_older_than_the_package_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "bindings", lambda: CudaDouble(driver=12040))
    said = (
        r'supports CUDA 12\.4, but cuda-bindings needs 13\.5; .*"cuda-bindings==12\.\*", with tensorrt-cu12 .* or with'
    )
    with pytest.raises(BackendError, match=said):
        Device()


def test_a_driver_that_no_package_fits_must_be_upgraded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_module, "bindings", lambda: CudaDouble(driver=11080))
    with pytest.raises(BackendError, match=r"CUDA 11\.8, but cuda-bindings needs 13\.5; upgrade the driver$"):
        Device()


@pytest.mark.usefixtures("double")
def test_a_gpu_that_is_not_there_is_said_in_words() -> None:
    with pytest.raises(BackendError, match="no GPU 3; this machine has 1"):
        Device(3)


def test_a_missing_package_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r'cuda-bindings cannot be imported.*pip install "lssgen\[tensorrt\]"'):
        bindings()


def test_the_real_package_without_a_driver_is_said_in_words() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        BackendError, match=r"no NVIDIA driver answers|the NVIDIA driver supports|the driver shows no GPU"
    ):
        Device()


def test_every_thread_allocates_on_the_devices_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's choice of a GPU is each thread's own, and begins with the first."""
    double = two_gpus(monkeypatch)
    device = Device(1)
    with ThreadPoolExecutor() as other:
        buffer = other.submit(CudaBuffer, device, (1000,), np.float32).result()
        other.submit(buffer.write, np.ones(1000, np.float32)).result()
        np.testing.assert_array_equal(other.submit(buffer.read).result(), 1)
    assert (double.used_on(0), double.used_on(1)) == (0, 4000)


def test_two_devices_in_one_thread_keep_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    double = two_gpus(monkeypatch)
    first, second = Device(0), Device(1)
    buffers = [CudaBuffer(device, (256,), np.float32) for device in (first, second, first)]
    for number, buffer in enumerate(buffers):
        buffer.write(np.full(256, number, np.float32))
    assert [buffer.read()[0] for buffer in buffers] == [0, 1, 2]
    assert (double.used_on(0), double.used_on(1)) == (2048, 1024)
    assert (first.allocated, second.allocated) == (2048, 1024)


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    double = CudaDouble(gpus=2)
    monkeypatch.setattr(cuda_module, "bindings", lambda: double)
    return double


@pytest.mark.usefixtures("double")
def test_threads_that_write_at_once_do_not_mix_their_numbers() -> None:
    device = Device()
    buffers = [CudaBuffer(device, (60_000,), np.float32) for _ in range(4)]

    def work(number: int) -> bool:
        mine = buffers[number]
        for turn in range(20):
            mine.write(np.full(60_000, 10 * turn + number, np.float32))
            if not (mine.read() == 10 * turn + number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


@pytest.mark.usefixtures("double")
def test_a_mark_is_reached_when_the_work_before_it_is_done() -> None:
    device = Device()
    buffer = CudaBuffer(device, (8,), np.float32)
    before = device.event()
    buffer.write(np.zeros(8, np.float32))
    mark = device.event()
    assert (before.reached(), mark.reached()) == (True, False)
    mark.wait()
    assert mark.reached()
    assert mark.seconds_since(before) == pytest.approx(1e-3)  # the double takes a millisecond for anything


def test_out_of_memory_in_a_call_without_a_size_is_said_in_words(double: CudaDouble) -> None:
    device, buffer = Device(), []
    double.graphs_left = 0
    buffer.append(CudaBuffer(device, (8,), np.float32))
    with pytest.raises(BackendError, match=r"has no room for what cudaGraphInstantiate needs: 1074 of 1074 MB are"):
        device.capture(lambda: buffer[0].write(np.zeros(8, np.float32)))


def test_a_capture_that_fails_leaves_the_stream_as_it_was(double: CudaDouble) -> None:
    device = Device()
    buffer = CudaBuffer(device, (8,), np.float32)
    double.capture_fails = "whatever the driver says"
    with pytest.raises(EngineError, match="cudaStreamEndCapture failed: cudaErrorStreamCaptureInvalidated"):
        device.capture(lambda: buffer.write(np.zeros(8, np.float32)))
    assert double.errors_seen == 1  # nobody else is told of it
    with pytest.raises(ZeroDivisionError):
        device.capture(lambda: print(1 / 0))
    buffer.write(np.ones(8, np.float32))
    np.testing.assert_array_equal(buffer.read(), 1)


def test_what_dies_during_a_capture_is_freed_after_it(double: CudaDouble) -> None:
    device = Device()
    kept, dying = CudaBuffer(device, (8,), np.float32), [CudaBuffer(device, (1000,), np.float32)]

    def work() -> None:
        kept.write(np.zeros(8, np.float32))
        dying.clear()
        assert double.used == 4256

    graph = device.capture(work)
    assert double.used == 256
    graph.launch()


@pytest.mark.usefixtures("double")
def test_the_garbage_collector_rests_during_a_capture() -> None:
    """What a library owns it frees by itself, and a collection may come at any line of Python."""
    device = Device()
    buffer = CudaBuffer(device, (8,), np.float32)
    seen: list[bool] = []

    def work() -> None:
        buffer.write(np.zeros(8, np.float32))
        seen.append(gc.isenabled())

    device.capture(work)
    assert (seen, gc.isenabled()) == ([False], True)


@pytest.mark.usefixtures("double")
def test_another_threads_work_waits_for_the_end_of_a_capture() -> None:
    device = Device()
    mine, yours = (CudaBuffer(device, (8,), np.float32) for _ in range(2))
    with ThreadPoolExecutor() as other:

        def work() -> None:
            mine.write(np.zeros(8, np.float32))
            writing.append(other.submit(yours.write, np.ones(8, np.float32)))
            assert wait(writing, timeout=0.1).not_done

        writing: list[Future[None]] = []
        device.capture(work)
        writing[0].result()
    np.testing.assert_array_equal(yours.read(), 1)
