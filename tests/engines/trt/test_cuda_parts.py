"""Parts of buffers on the CUDA side, on a double that runs work as late as a GPU may."""

import numpy as np
import pytest
from cuda_double import CudaDouble

from lssgen.engines import cuda as cuda_module
from lssgen.engines.cuda import CudaBuffer, Device
from lssgen.errors import ShapeError


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    double = CudaDouble()
    monkeypatch.setattr(cuda_module, "bindings", lambda: double)
    return double


@pytest.mark.usefixtures("double")
def test_a_part_is_written_where_it_belongs_and_the_rest_stays() -> None:
    buffer = CudaBuffer(Device(), (3, 4), np.float32)
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    buffer.write(whole)
    row = np.array([7, 8, 9, 10])
    buffer.write_part(4, row)
    row[:] = 0  # the array may be reused at once
    whole[1] = [7, 8, 9, 10]
    assert np.array_equal(buffer.read(), whole)
    assert np.array_equal(buffer.read_part(4, 4), whole[1])


def test_writing_a_part_does_not_make_the_host_wait(double: CudaDouble) -> None:
    buffer = CudaBuffer(Device(), (3, 4), np.float32)
    buffer.write_part(8, np.ones(4, np.float32))
    assert double.busy


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("first", "count"), [(10, 3), (-1, 1)])
def test_a_part_that_lies_outside_is_refused(first: int, count: int) -> None:
    buffer = CudaBuffer(Device(), (3, 4), np.float32)
    with pytest.raises(ShapeError, match="has no"):
        buffer.write_part(first, np.zeros(count, np.float32))
    with pytest.raises(ShapeError, match="has no"):
        buffer.read_part(first, count)
