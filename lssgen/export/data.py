"""The weights of a graph, streamed into one file."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

INLINE_BYTES = 1024
"""Constants up to this size stay inside the ONNX file."""

PAGE = 1 << 16
"""Large tensors start at multiples of this, so that every platform can map them into memory."""

TORCH_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}

Slabs = Callable[[ir.Value], Iterator[Tensor]]


def write_data(values: Sequence[ir.Value], slabs: Slabs, path: Path) -> str:
    """Write every value's bytes, one after the other, and point the value at its place in the file.

    Args:
        values: Initialisers; type and shape are set.
        slabs: The value's elements, in its type and its order, in pieces.
        path: The file to write.

    Returns:
        sha256 of the file.
    """
    digest = hashlib.sha256()
    offset = 0
    with path.open("wb") as file:
        for value in values:
            assert value.name is not None
            assert value.dtype is not None
            assert value.shape is not None
            nbytes = math.prod(value.shape.numpy()) * int(value.dtype.itemsize)
            gap = -offset % (PAGE if nbytes >= PAGE else 64)  # a page for each bias would be mostly padding
            length = 0
            for chunk in itertools.chain((b"\0" * gap,), map(_bytes, slabs(value))):  # one slab in memory at a time
                file.write(chunk)
                digest.update(chunk)
                length += len(chunk)
            # Else all offsets behind it would be wrong, and the graph would read other weights without a word.
            assert length == gap + nbytes, f"{value.name}: {length - gap} bytes, expected {nbytes}"
            value.const_value = ir.ExternalTensor(
                path.name, offset + gap, nbytes, value.dtype, shape=value.shape, name=value.name, base_dir=path.parent
            )
            offset += length
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
