"""Checkpoint weights, read one tensor at a time.

A `Weights` knows where every tensor of a checkpoint lies and reads it when it is asked for, so that a 24 GB checkpoint
passes through the memory of one tensor. Names are `<component>.<checkpoint key>`, as the modules of an export name
their parameters: "transformer.transformer_blocks.0.attn.to_q.weight".
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lssgen.errors import ModelError

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
}
"""Types of safetensors, by their names there."""

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""How diffusers and transformers call the weights of a component."""

IGNORED = (
    r"\.position_ids$",
    r"\.logit_scale$",
    r"\.text_projection\.",
    r"\.vision_model\.",
    r"\.visual_projection\.",
    r"\.decoder\.",
    r"\.lm_head\.",
)
"""Keys of published text encoders that the encoder itself does not have."""

WRAPPERS = ("text_model.", "model.", "transformer.")
"""Prefixes that checkpoints have and classes lack, or the other way round, depending on the version that saved them."""

OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention in the VAEs of SD 1.x and 2.x, as diffusers called it before 0.15."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: Where it lies, uncompressed, little-endian, row by row.
        offset, nbytes: Its bytes in the file.
        dtype: Its type there.
        shape: Its sizes.
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
class Delta:
    """A low-rank change of a weight: scale * up @ down, shaped like the weight.

    Attributes:
        down: (rank, ...) first factor; a convolution's kernel is flattened behind the rank.
        up: (out, rank) second factor.
        scale: Multiplies the product; the strength asked for times alpha / rank.
    """

    down: Tensor
    up: Tensor
    scale: float

    def added(self) -> Tensor:
        """The change as a matrix, (out, everything else), float32."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on disk until they are read.

    Attributes:
        stored: Where each tensor lies.
        deltas: Changes to merge when a tensor is read, in order.
    """

    stored: Mapping[str, Stored] = field(default_factory=dict[str, Stored])
    deltas: Mapping[str, tuple[Delta, ...]] = field(default_factory=dict[str, tuple[Delta, ...]])

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __getitem__(self, name: str) -> Stored:
        """Where a tensor lies.

        Raises:
            ModelError: There is no such tensor.
        """
        try:
            return self.stored[name]
        except KeyError:
            raise ModelError(f"the checkpoint has no tensor for {name}; is it for another architecture?") from None

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read one tensor, deltas merged, in `dtype` (by default as it is stored).

        Raises:
            ModelError: There is no such tensor, or its file is cut off.
        """
        stored = self[name]
        tensor = stored.read().reshape(stored.shape)
        dtype = dtype or tensor.dtype
        if deltas := self.deltas.get(name, ()):
            tensor = tensor.float()
            for delta in deltas:
                tensor += delta.added().reshape(stored.shape)
        return tensor.to(dtype)

    def slabs(self, name: str, dtype: torch.dtype, elements: int = 1 << 24) -> Iterator[Tensor]:
        """One tensor, flattened, in pieces of at most `elements`; a tensor with deltas comes whole.

        Raises:
            ModelError: As for `tensor`.
        """
        stored = self[name]
        if name in self.deltas:
            yield self.tensor(name, dtype).flatten()
            return
        count = math.prod(stored.shape)
        for start in range(0, count, elements):
            yield stored.read(start, min(start + elements, count)).to(dtype)

    def with_delta(self, deltas: Mapping[str, Delta]) -> "Weights":
        """These weights with low-rank changes (a LoRA), merged tensor by tensor as they are read.

        Raises:
            ModelError: A delta is for a weight that is not here, or does not have its shape; lists all of them.
        """
        problems: list[str] = []
        for name, delta in deltas.items():
            if name not in self:
                problems.append(f"{name}: the model has no such weight")
                continue
            shape = self[name].shape
            made = (delta.up.shape[0], math.prod(delta.down.shape[1:]))
            if made != (shape[0], math.prod(shape[1:])):
                problems.append(f"{name}: changes a weight of shape {list(made)}, the model's is {list(shape)}")
        if problems:
            raise ModelError("the LoRA is for another model:\n  " + "\n  ".join(problems))
        merged = {name: (*self.deltas.get(name, ()), delta) for name, delta in deltas.items()}
        return replace(self, deltas={**self.deltas, **merged})

    def fit(self, module: nn.Module) -> "Weights":
        """The module's tensors, by the module's names; published checkpoints may know them by older names.

        Components that the module does not have are left out. Buffers that the module computes itself may be missing;
        tied parameters need one of their names.

        Raises:
            ModelError: Lists the keys that are missing or unexpected, and the shapes that differ.
        """
        wanted = tensors_of(module)
        sizes = {name: tuple(tensor.shape) for names, tensor in wanted for name in names}
        found: dict[str, Stored] = {}
        deltas: dict[str, tuple[Delta, ...]] = {}
        extra: list[str] = []
        components = {name for name, _ in module.named_children()}
        for key, stored in self.stored.items():
            name = next((name for name in _names(key) if name in sizes), None)
            if name is not None and (name == key or name not in found):
                same = _squeezed(stored.shape) == _squeezed(sizes[name])  # 1 x 1 convolutions have become linear layers
                found[name] = replace(stored, shape=sizes[name]) if same else stored
                if key in self.deltas:
                    deltas[name] = self.deltas[key]
            elif (
                name is None
                and key.split(".")[0] in components
                and not any(re.search(pattern, key) for pattern in IGNORED)
            ):
                extra.append(key)
        missing = [names[0] for names, tensor in wanted if tensor.is_meta and not any(name in found for name in names)]
        shapes = [
            f"{name} is {list(stored.shape)}, the model has {list(sizes[name])}"
            for name, stored in found.items()
            if stored.shape != sizes[name]
        ]
        problems = [
            f"\n  {what} ({len(names)}): {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
            if names
        ]
        if problems:
            raise ModelError(
                "the checkpoint does not fit the model that its config describes; tensors" + "".join(problems)
            )
        return Weights(found, deltas)

    def load_into(self, module: nn.Module) -> None:
        """Give the module real memory: every tensor of the checkpoint, in the type the module asks for.

        Raises:
            ModelError: As for `fit`.
        """
        fitted = self.fit(module)
        values: dict[int, Tensor] = {}
        for names, tensor in tensors_of(module):
            name = next((name for name in names if name in fitted), None)
            if name is not None:
                value = fitted.tensor(name, tensor.dtype)
                values[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
        for part in module.modules():
            slots: dict[str, Any]
            for slots in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
                slots.update({key: values[id(old)] for key, old in slots.items() if id(old) in values})

    @cached_property
    def sha256(self) -> Mapping[Path, str]:
        """Hash of every file's contents; reads them all, but for those that the hub's cache has named by their hash."""
        return {file: _sha256(file) for file in sorted({stored.file for stored in self.stored.values()})}


def tensors_of(module: nn.Module) -> list[tuple[tuple[str, ...], Tensor]]:
    """Every parameter and persistent buffer, once, with all the names it is known by."""
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return [(tuple(names[key]), tensors[key]) for key in names]


def _names(key: str) -> Iterator[str]:
    """What a module may call the tensor that a checkpoint calls `key`, most likely first."""
    for old, new in (("", ""), *OLD_NAMES.items()):
        component, _, rest = key.replace(old, new).partition(".")
        yield f"{component}.{rest}"
        for wrapper in WRAPPERS:
            yield f"{component}.{rest.removeprefix(wrapper)}"
            yield f"{component}.{wrapper}{rest}"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def open_weights(components: Mapping[str, Path]) -> Weights:
    """Find the tensors of a checkpoint.

    Args:
        components: Folder of each component, by the component's name; a safetensors file stands for itself. In a
            folder, weights are looked for as diffusers and transformers write them: whole before sharded, the
            unmarked variant before fp16 and bf16.

    Raises:
        ModelError: No weights are there, only pickled ones, a shard is missing, or a file is damaged.
    """
    stored: dict[str, Stored] = {}
    for component, path in components.items():
        for file in [path] if path.is_file() else _files(path):
            stored.update({f"{component}.{key}": tensor for key, tensor in _index(file).items()})
    return Weights(stored)


def _files(folder: Path) -> list[Path]:
    for variant in ("", ".fp16", ".bf16"):
        for stem in STEMS:
            whole = folder / f"{stem}{variant}.safetensors"
            if whole.is_file():
                return [whole]
            for index in (
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
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} is damaged: no weight_map can be read from it; fetch the checkpoint again"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(f"{index.parent} is incomplete: {', '.join(missing)} is missing; fetch the checkpoint again")
    return [index.parent / name for name in names]


def _index(file: Path) -> dict[str, Stored]:
    """The header of a safetensors file: eight bytes of length, then JSON; offsets count from its end."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = file.stat().st_size
            if not 2 <= length <= size - 8:
                raise ValueError("header longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        found = {
            key: Stored(
                file,
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
                TYPES[entry["dtype"]],
                tuple(entry["shape"]),
            )
            for key, entry in header.items()
            if key != "__metadata__"
        }
        for key, tensor in found.items():
            if tensor.nbytes != math.prod(tensor.shape) * tensor.dtype.itemsize or tensor.offset + tensor.nbytes > size:
                raise ValueError(f"{key} does not lie inside the file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is no whole safetensors file ({error}); fetch the checkpoint again") from error
    return found


def _sha256(file: Path) -> str:
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):  # the hub's cache names large files by their hash
        return blob.name
    with blob.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
