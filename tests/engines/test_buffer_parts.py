"""Parts of buffers: what is written there is read there, and the rest stays."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lssgen.engines.base import Buffer
from lssgen.engines.onnxruntime import OrtBuffer
from lssgen.errors import ShapeError
from lssgen.testing import FakeBuffer

Make = Callable[[Sequence[int], Any], Buffer]


MAKERS = [
    pytest.param(FakeBuffer, id="fake"),
    pytest.param(lambda shape, dtype: OrtBuffer.new(shape, dtype, "cpu", 0), id="onnxruntime"),
]


@pytest.mark.parametrize("make", MAKERS)
@given(data=st.data())
def test_a_part_is_written_where_it_belongs_and_the_rest_stays(make: Make, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    size = int(np.prod(shape))
    first = data.draw(st.integers(0, size))
    count = data.draw(st.integers(0, size - first))
    buffer, whole = make(shape, np.float32), np.arange(size, dtype=np.float32)
    buffer.write(whole.reshape(shape))
    part = -1 - np.arange(count, dtype=np.float32)
    buffer.write_part(first, part)
    whole[first : first + count] = part
    assert np.array_equal(buffer.read(), whole.reshape(shape))
    assert np.array_equal(buffer.read_part(first, count), part)


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_read_is_the_callers_own(make: Make) -> None:
    buffer = make((2, 3), np.float32)
    buffer.write(np.zeros((2, 3), np.float32))
    mine = buffer.read_part(0, 3)
    mine[:] = 7
    buffer.write_part(3, mine)
    mine[:] = 9
    assert np.array_equal(buffer.read(), [[0, 0, 0], [7, 7, 7]])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("first", "count"), [(5, 2), (-1, 1), (7, 0)])
def test_a_part_that_lies_outside_is_refused(make: Make, first: int, count: int) -> None:
    buffer = make((2, 3), np.float32)
    with pytest.raises(ShapeError, match=r"a buffer of shape \(2, 3\) has no"):
        buffer.write_part(first, np.zeros(count, np.float32))
    with pytest.raises(ShapeError, match=r"a buffer of shape \(2, 3\) has no"):
        buffer.read_part(first, count)
