"""Weights of a graph, from one data file into another, a tensor at a time."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from lssgen.calibration.numbers import Floats
from lssgen.calibration.smoothing import Edit
from lssgen.errors import CalibrationError
from lssgen.ports import Array

INLINE_BYTES = 1024
"""Size up to which numbers stay inside the ONNX file."""

PAGE = 1 << 16
"""Large tensors start at multiples of this, so that every platform can map them into memory."""

PIECE_BYTES = 1 << 24
"""Bytes that are copied at a time."""

Edits = Mapping[str, Sequence[Edit]]
"""Changes of initialisers, by name."""


def in_float32(value: ir.Value, edits: Edits) -> Floats:
    """The numbers of an initialiser, with its changes. Read and not mapped, so that the memory is given back."""
    tensor = value.const_value
    assert tensor is not None, f"{value.name} has no value"
    if isinstance(tensor, ir.ExternalTensor):
        raw = np.fromfile(tensor.path, np.uint8, tensor.nbytes, offset=tensor.offset or 0)
        _see_whole(tensor, len(raw))
        found = raw.view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
    else:
        found = tensor.numpy()
    wide = found.astype(np.float32)
    for edit in edits.get(str(value.name), ()):
        edit.apply(wide)
    return wide


class DataFile:
    """A data file that is being written; a context manager.

    Attributes:
        sha256: Hash of what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._digest = hashlib.sha256()
        self._offset = 0

    def __enter__(self) -> "DataFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def is_empty(self) -> bool:
        return self._offset == 0

    def keep(self, value: ir.Value) -> None:
        """Take an initialiser's bytes over as they are. Small ones stay in the graph, and new ones are here already."""
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path) != self._path:
            value.const_value = self._stored(tensor, _pieces(tensor))

    def put(self, name: str, numbers: Array, dtype: ir.DataType) -> ir.Value:
        """A new initialiser: in the file, or where it is small in the graph."""
        tensor = ir.Tensor(np.require(numbers, requirements="C"), dtype=dtype, name=name)
        stored = tensor if tensor.nbytes <= INLINE_BYTES else self._stored(tensor, iter((tensor.tobytes(),)))
        return ir.Value(name=name, const_value=stored, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape.numpy()))

    def _stored(self, tensor: ir.TensorProtocol, pieces: Iterator[bytes]) -> ir.ExternalTensor:
        gap = -self._offset % (PAGE if tensor.nbytes >= PAGE else 64)
        self._write(bytes(gap))
        place = ir.ExternalTensor(
            self._path.name,
            self._offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(tensor.name),
            base_dir=self._path.parent,
        )
        begin = self._offset
        for piece in pieces:
            self._write(piece)
        assert self._offset - begin == tensor.nbytes, f"{tensor.name}: {self._offset - begin} of {tensor.nbytes} bytes"
        return place

    def _write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self._offset += len(piece)


def _pieces(tensor: ir.ExternalTensor) -> Iterator[bytes]:
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        left = tensor.nbytes or 0
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                _see_whole(tensor, (tensor.nbytes or 0) - left)
            left -= len(piece)
            yield piece


def _see_whole(tensor: ir.ExternalTensor, found: int) -> None:
    """Raise CalibrationError if fewer bytes were found than the weight has."""
    if found < tensor.nbytes:
        raise CalibrationError(
            f"{tensor.path} ends within the weight {tensor.name}: {found} of its {tensor.nbytes} bytes are there; copy "
            "or make that file again"
        )
