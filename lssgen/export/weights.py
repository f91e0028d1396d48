"""Checkpoint weights, read one tensor at a time.

A `Weights` knows where every tensor of a checkpoint lies and reads it when it is asked for, so that a 24 GB checkpoint
passes through the memory of one tensor. Names are `<component>.<checkpoint key>`, as the modules of an export name
their parameters: "transformer.transformer_blocks.0.attn.to_q.weight".
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lssgen.errors import ModelError, ProbeError
from lssgen.export.changes import Change, changed
from lssgen.export.stored import PLAIN, TYPES, LastMoment, Stored, file_sha256, find_tensors

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

WRAPPERS = (
    "text_model.",
    "model.",
    "transformer.",
    "model.language_model.",
    "language_model.model.",
    "language_model.",
)
"""Prefixes that checkpoints have and classes lack, or the other way round, depending on the version that saved them."""

OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention in the VAEs of SD 1.x and 2.x, as diffusers called it before 0.15."""

QUANTISED = re.compile(
    r"(^|\.)(scaled_fp8|scale_(weight|input)|(weight|input)_scale(_2)?|comfy_quant|absmax|quant_map|quant_state\..+|"
    r"qweight|qzeros|weight_zero_point|weight_packed)$"
)
"""Keys that go with weights which mean nothing without them."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, on disk until they are read.

    Attributes:
        stored: Place of each tensor.
        deltas: Changes to merge when a tensor is read, in order.
    """

    stored: Mapping[str, Stored] = field(default_factory=dict[str, Stored])
    deltas: Mapping[str, tuple[Change, ...]] = field(default_factory=dict[str, tuple[Change, ...]])

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
            ModelError: There is no such tensor, its file is cut off, or it holds NaN or infinity, changed or not.
        """
        stored = self[name]
        tensor = stored.read().reshape(stored.shape)
        # Before the cast, so that a damaged file is told from a number that is too large for fp16.
        _see_finite(name, stored, tensor)
        dtype = dtype or tensor.dtype
        if deltas := self.deltas.get(name, ()):
            tensor = changed(tensor, deltas)
            if not _finite(tensor):
                raise ModelError(f"{name} becomes NaN or infinity when its LoRAs are merged; ask for less strength")
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
            tensor = stored.read(start, min(start + elements, count))
            _see_finite(name, stored, tensor)
            yield tensor.to(dtype)

    def with_delta(self, deltas: Mapping[str, Change]) -> "Weights":
        """These weights with changes (a LoRA's), merged tensor by tensor as they are read.

        Raises:
            ModelError: A delta is for a weight that is not here, or does not have its shape; lists all of them.
        """
        problems: list[str] = []
        for name, delta in deltas.items():
            if name not in self:
                problems.append(f"{name}: the model has no such weight")
                continue
            if misfit := delta.misfit(self[name].shape):
                problems.append(f"{name}: {misfit}")
        if problems:
            more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise ModelError("the LoRA is for another model:\n  " + "\n  ".join(problems[:20]) + more)
        merged = {name: (*self.deltas.get(name, ()), delta) for name, delta in deltas.items()}
        return replace(self, deltas={**self.deltas, **merged})

    def fit(self, module: nn.Module) -> "Weights":
        """The module's tensors, by the module's names; published checkpoints may know them by older names.

        Components that the module does not have are left out, and so is what begins with one of `module.left_out`:
        parts that it has taken off itself. Buffers that the module computes itself may be missing; tied parameters need
        one of their names.

        Raises:
            ModelError: Lists the keys that are missing or unexpected, and the shapes that differ.
        """
        tensors = tensors_of(module)
        sizes = {name: tuple(tensor.shape) for names, tensor in tensors for name in names}
        names = {key: next((name for name in _names(key) if name in sizes), None) for key in self.stored}
        keys = _keys_by_name(names)
        found = {name: _in_shape(self.stored[key], sizes[name]) for name, key in keys.items()}
        components = {name for name, _ in module.named_children()}
        left_out: tuple[str, ...] = getattr(module, "left_out", ())
        _refuse_misfits(
            {
                # What is not on the meta device, the module has computed itself.
                "missing": [known[0] for known, tensor in tensors if tensor.is_meta and found.keys().isdisjoint(known)],
                "unexpected": [
                    key
                    for key, name in names.items()
                    if name is None
                    and _matters(key, components)
                    and not any(known.startswith(left_out) for known in _names(key))
                ],
                "of another shape": [
                    f"{name} is {list(stored.shape)}, the model has {list(sizes[name])}"
                    for name, stored in found.items()
                    if stored.shape != sizes[name]
                ],
            }
        )
        return Weights(found, {name: self.deltas[key] for name, key in keys.items() if key in self.deltas})

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
                # By identity, so that tied parameters stay one tensor.
                values[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
        for part in module.modules():
            slots: dict[str, Any]
            for slots in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
                slots.update({key: values[id(old)] for key, old in slots.items() if id(old) in values})

    @cached_property
    def sha256(self) -> Mapping[Path, str]:
        """Hash of every file's contents; reads them all, but for those that the hub's cache has named by their hash."""
        return {file: file_sha256(file) for file in sorted({stored.file for stored in self.stored.values()})}


def fitting(name: str, tensor: Tensor) -> Tensor:
    """The tensor, if its type can hold what it was made of.

    Raises:
        ProbeError: A number became infinite.
    """
    if not _finite(tensor):
        raise ProbeError(f"{name} holds numbers that are too large for {str(tensor.dtype).removeprefix('torch.')}")
    return tensor


def _see_finite(name: str, stored: Stored, tensor: Tensor) -> None:
    """See that a tensor holds numbers.

    Raises:
        ModelError: NaN or infinity is among them.
    """
    if not _finite(tensor):
        raise ModelError(f"{stored.file} is damaged: {name} holds NaN or infinity; fetch the checkpoint again")


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch asks no eight-bit numbers
    return bool(torch.isfinite(wide).all())


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
        # Only the component is sure; wrappers come behind it.
        component, _, rest = key.replace(old, new).partition(".")
        yield f"{component}.{rest}"
        for wrapper in WRAPPERS:
            yield f"{component}.{rest.removeprefix(wrapper)}"
            yield f"{component}.{wrapper}{rest}"
        for wrapper in WRAPPERS:
            if rest.startswith(wrapper):  # of one version in the place of another's
                yield from (f"{component}.{other}{rest.removeprefix(wrapper)}" for other in WRAPPERS)


def _keys_by_name(names: Mapping[str, str | None]) -> dict[str, str]:
    """Which checkpoint key becomes each of the module's names: of several, the one that is the name, else the first."""
    keys: dict[str, str] = {}
    for key, name in names.items():
        if name is not None and (name == key or name not in keys):
            keys[name] = key
    return keys


def _matters(key: str, components: Collection[str]) -> bool:
    """Whether the module should have had a tensor for a key."""
    return key.split(".")[0] in components and not any(re.search(pattern, key) for pattern in IGNORED)


def _in_shape(stored: Stored, shape: tuple[int, ...]) -> Stored:
    """The tensor in the module's shape, where they differ by ones at the end only, or by an axis of time."""
    if len(stored.shape) == 5 and len(shape) == 4:
        return LastMoment.of(stored)
    # 1 x 1 convolutions of older VAEs have become linear layers; the numbers and their order are the same.
    return replace(stored, shape=shape) if _squeezed(stored.shape) == _squeezed(shape) else stored


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _refuse_misfits(misfits: Mapping[str, list[str]]) -> None:
    """Raise one error for all that does not fit, by what is wrong with it; a long list is cut off after eight.

    Raises:
        ModelError: There is something.
    """
    lines = [
        f"\n  {what} ({len(found)}): {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}"
        for what, found in misfits.items()
        if found
    ]
    if lines:
        raise ModelError("the checkpoint does not fit the model that its config describes; tensors" + "".join(lines))


def open_weights(components: Mapping[str, Path]) -> Weights:
    """Find the tensors of a checkpoint.

    Args:
        components: Folder or safetensors file of each component, by the component's name.

    Raises:
        ModelError: As `find_tensors`, or a component is quantised.
    """
    found: dict[str, Stored] = {}
    for component, path in components.items():
        tensors = find_tensors(path)
        see_plain(tensors)
        found |= {f"{component}.{key}": tensor for key, tensor in tensors.items()}
    return Weights(found)


def see_plain(tensors: Mapping[str, Stored]) -> None:
    """See that tensors are the numbers of a network as they are, by keys and types alone.

    Raises:
        ModelError: They are quantised, or complex.
    """
    for key, stored in tensors.items():
        reason = key if QUANTISED.search(key) else ""
        if stored.dtype not in PLAIN and (key.endswith(".weight") or stored.dtype.is_floating_point):
            reason = f"{key} is stored as {next(name for name, dtype in TYPES.items() if dtype is stored.dtype)}"
        if stored.dtype.is_complex:
            raise ModelError(f"{stored.file} holds complex numbers ({key}), which no network here computes with")
        if reason:
            raise ModelError(f"{stored.file} is quantised ({reason}); give the fp16, bf16 or plain fp8 version")
