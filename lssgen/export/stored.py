"""Tensors on disk: where the safetensors files of a checkpoint hold them, read from the headers alone."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.jsons import JsonError, decode_json
from lssgen.models.configs import read_json, refuse_pointer

TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
"""Types of safetensors, by their names there."""

PLAIN = frozenset((torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2))
"""Types of numbers that are what they say, and so can be weights."""

PACKED_BYTES: Mapping[str, float] = {"F4": 0.5}
"""Bytes of an element, where torch's type counts several as one."""

LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself reads no longer ones."""

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""Names that diffusers and transformers give to the weights of a component."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: File that it lies in, uncompressed, little-endian, row by row.
        offset, nbytes: First byte in the file, and number of bytes.
        dtype: Type in the file.
        shape: Size of each axis.
    """

    file: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start to stop (all by default) of the flattened tensor, in new memory.

        Raises:
            ModelError: The file is gone, or ends too early.
        """
        stop = math.prod(self.shape) if stop is None else stop
        size = self.dtype.itemsize
        try:
            data = np.fromfile(self.file, np.uint8, (stop - start) * size, offset=self.offset + start * size)
        except OSError as error:
            raise ModelError(f"{self.file} cannot be read: {error.strerror}") from error
        if data.size != (stop - start) * size:
            raise ModelError(f"{self.file} is cut off: it ends inside a tensor; fetch the checkpoint again")
        return torch.from_numpy(data).view(self.dtype) if data.size else torch.empty(0, dtype=self.dtype)


@dataclass(frozen=True, slots=True)
class LastMoment(Stored):
    """The last slice in time of a convolution over time: of the first moment of a film, a causal one sees no other.

    Attributes:
        whole: The kernel, (out, in, time, height, width).
    """

    whole: Stored

    @classmethod
    def of(cls, whole: Stored) -> "LastMoment":
        shape = (*whole.shape[:2], *whole.shape[3:])
        return cls(whole.file, whole.offset, whole.nbytes // whole.shape[2], whole.dtype, shape, whole)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.whole.read().reshape(self.whole.shape)[:, :, -1].flatten()[start:stop]


def find_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a component, by their keys.

    Args:
        path: A safetensors file, or a folder, where weights are looked for as diffusers and transformers write them:
            whole before sharded, the unmarked variant before fp16 and bf16.

    Raises:
        ModelError: No weights are there, only pickled ones, a shard is missing, or a file is damaged.
    """
    found: dict[str, Stored] = {}
    for file in [path] if path.is_file() else _files(path):
        found |= read_header(file)[0]
    return found


def file_sha256(file: Path) -> str:
    """Hash of a file's contents; of one in the hub's cache, without reading it."""
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):  # the hub's cache names large files by their hash
        return blob.name
    with blob.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    for variant in ("", ".fp16", ".bf16"):
        for stem in STEMS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.is_file():
                return [whole]
            for index in (  # libraries and their versions put the variant before or behind
                folder / f"{stem}.safetensors.index{variant}.json",
                folder / f"{stem}{variant}.safetensors.index.json",
            ):
                if index.is_file():
                    return _shards(index)
    pickled = [*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]
    if pickled:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run code when they are read; "
            "ask for a revision with safetensors, or convert them with diffusers' save_pretrained"
        )
    raise ModelError(f"{folder} has no weights; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors there")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} is damaged: no weight_map can be read from it; fetch the checkpoint again"
        ) from error
    # An index from elsewhere must not name files outside of its folder.
    odd = [name for name in names if not isinstance(name, str) or not name or Path(name).name != name]
    if odd:
        raise ModelError(f"{index} names {odd[0]!r}, which is not a file beside it; fetch the checkpoint again")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent} is incomplete: {', '.join(missing)} is missing; fetch the checkpoint again")
    return [index.parent / name for name in names]


def read_header(file: Path) -> tuple[Mapping[str, Stored], Mapping[str, str]]:
    """The header of a safetensors file: eight bytes of length, then JSON; offsets count from its end.

    Returns:
        The place of every tensor, and what the header says besides (`__metadata__`), texts by name.

    Raises:
        ModelError: The file is not whole, or not a safetensors file, or holds types that no weights have.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            stream.seek(0)
            # A file of Git LFS that was not fetched holds a few lines of text, and deserves a message of its own.
            refuse_pointer(file, stream.read(64))
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError("its header is longer than the file" if length > size - 8 else "it has no header")
            stream.seek(8)
            header = decode_json(stream.read(length), dict[str, Any])
        said = cast("Mapping[str, object]", header.pop("__metadata__", None) or {})
        found = {key: _entry(file, key, entry, 8 + length, size) for key, entry in header.items()}
        return found, {str(key): str(value) for key, value in said.items()}
    except (OSError, JsonError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}); fetch the checkpoint again") from error


def _entry(file: Path, key: str, entry: Mapping[str, Any], start: int, size: int) -> Stored:
    """One tensor of a header, if it lies where it says.

    Raises:
        ModelError: The type is none that weights have.
        ValueError, KeyError, TypeError: The entry makes no sense.
    """
    kind, shape, (begin, end) = entry["dtype"], _whole(entry["shape"]), _whole(entry["data_offsets"])
    if kind not in TYPES:
        raise ModelError(
            f"{file} holds {key} as {kind}, a type that is not known here; such files are quantised, or newer than "
            "this lssgen: give the fp32, fp16, bf16 or plain fp8 version"
        )
    nbytes = math.prod(shape) * PACKED_BYTES.get(kind, TYPES[kind].itemsize)
    # Sizes are the file's to claim: what they say is allocated before a byte is read.
    if end - begin != nbytes or start + end > size:
        raise ValueError(f"{key} does not lie inside the file")
    return Stored(file, start + begin, end - begin, TYPES[kind], shape)


def _whole(numbers: Sequence[Any]) -> tuple[int, ...]:
    """Sizes or places, none of them below zero."""
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers} are not sizes or places in a file")
    return tuple(numbers)
