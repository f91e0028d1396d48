"""The CUDA side, on a double in host memory that runs work as late as a GPU may."""

import sys

import numpy as np
import pytest
from cuda_double import CudaDouble

from lssgen.engines import cuda as cuda_module
from lssgen.engines.cuda import CudaBuffer, Device, bindings
from lssgen.errors import BackendError, ShapeError


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
