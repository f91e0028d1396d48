"""Changes of a checkpoint's weights, made when a weight is read: what a LoRA or an adapter of PEFT does to it.

Adapters act in two steps, as they do in PEFT: every one of them is loaded, which may change the weight that it was
trained on top of (`loaded`), and then each is merged into it in turn (`merged`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lssgen.lora.adapters import Start


class Change(Protocol):
    """A change of one weight."""

    def misfit(self, shape: tuple[int, ...]) -> str:
        """Why a weight of that shape cannot be changed like this; empty: it can."""
        ...

    def loaded(self, weight: Tensor) -> Tensor:
        """The float32 weight that the change is made on top of; `weight` stays as it is."""
        ...

    def merged(self, weight: Tensor, base: Tensor) -> Tensor:
        """The changed weight, float32. `base` is the weight before the first change."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that decides what it does, under names that hold its numbers."""
        ...


@dataclass(frozen=True, slots=True)
class Delta:
    """A low-rank change of a weight: scale * up @ down, shaped like the weight.

    Attributes:
        down: (rank, ...) first factor; a convolution's kernel is flattened behind the rank.
        up: (out, rank) second factor.
        scale: Multiplies the product; the strength asked for times alpha / rank.
        magnitude: Length of every slice of the changed weight along `axis` (DoRA); None: it keeps the one it has.
        axis: Axis of the weight that magnitudes belong to; 1 for a table of embeddings.
        start: Basis that it is made on.
        start_scale: Multiplies what OLoRA takes away from the weight: alpha / rank, whatever the strength asked for.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    axis: int = 0
    start: Start = "weight"
    start_scale: float = 1.0

    def added(self) -> Tensor:
        """The change as a matrix, (out, everything else), float32."""
        # flatten: the kernels of a convolution's LoRA multiply like matrices.
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1))

    def misfit(self, shape: tuple[int, ...]) -> str:
        made = (self.up.shape[0], math.prod(self.down.shape[1:]))
        if made != (shape[0], math.prod(shape[1:])):
            return f"changes a weight of shape {list(made)}, the model's is {list(shape)}"
        if self.magnitude is not None and self.magnitude.numel() != shape[self.axis]:
            return f"has {self.magnitude.numel()} magnitudes, the model's weight is {list(shape)}"
        kept = 1 if self.start == "kasa" else 0
        if self.start != "weight" and (len(shape) != 2 or self.down.shape[0] + kept > min(shape)):
            return f"leaves nothing of a weight of shape {list(shape)} at rank {self.down.shape[0]} ({self.start})"
        return ""

    def loaded(self, weight: Tensor) -> Tensor:
        if self.start == "weight":
            return weight
        return _STARTS[self.start](weight, self.down.shape[0], self.start_scale)

    def merged(self, weight: Tensor, base: Tensor) -> Tensor:
        added = self.added().reshape(weight.shape)
        if self.magnitude is None:
            return weight + added
        # PEFT takes the length that the base would have with this change alone.
        across = tuple(axis for axis in range(weight.ndim) if axis != self.axis)
        length = torch.linalg.vector_norm(base + added, dim=across, keepdim=True)
        return self.magnitude.float().reshape(length.shape) / length * (weight + added)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        # repr, which tells any two floats apart: another strength is another graph.
        yield f"down {self.scale!r} {self.start} {self.start_scale!r}", self.down
        yield "up", self.up
        if self.magnitude is not None:
            yield f"magnitude {self.axis}", self.magnitude


@dataclass(frozen=True, slots=True)
class Whole:
    """A weight that was trained in full, in place of the model's; strength does not matter to it.

    Attributes:
        value: Tensor in place of the model's.
    """

    value: Tensor

    def misfit(self, shape: tuple[int, ...]) -> str:
        came = tuple(self.value.shape)
        return "" if came == shape else f"replaces a weight of shape {list(came)}, the model's is {list(shape)}"

    def loaded(self, weight: Tensor) -> Tensor:
        del weight
        return self.value.float()

    def merged(self, weight: Tensor, base: Tensor) -> Tensor:
        del base
        return weight

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "whole", self.value


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table of embeddings, in place of the model's.

    Attributes:
        at: Index of each row.
        values: (rows, width) numbers.
    """

    at: tuple[int, ...]
    values: Tensor

    def misfit(self, shape: tuple[int, ...]) -> str:
        if tuple(self.values.shape) != (len(self.at), *shape[1:]):
            return f"replaces {len(self.at)} rows by {list(self.values.shape)}, the model's table is {list(shape)}"
        if not all(0 <= row < shape[0] for row in self.at):
            return f"replaces rows up to {max(self.at)}, the model's table is {list(shape)}"
        return ""

    def loaded(self, weight: Tensor) -> Tensor:
        return weight

    def merged(self, weight: Tensor, base: Tensor) -> Tensor:
        del base
        # Not in place: the base may be the tensor that other changes start from.
        return weight.index_copy(0, torch.tensor(self.at), self.values.float())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield f"rows {self.at}", self.values


def changed(weight: Tensor, changes: tuple[Change, ...]) -> Tensor:
    """The weight with its changes, in order; float32, because half precision would round small ones away."""
    base = weight.float()
    for change in changes:
        base = change.loaded(base)
    found = base
    for change in changes:
        found = change.merged(found, base)
    return found


def _without_principal(weight: Tensor, rank: int, scale: float) -> Tensor:
    """Without the part that PiSSA moves into its factors: the largest singular values."""
    del scale  # the factors were divided by it
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return weight - (left[:, :rank] * values[:rank]) @ right[:rank]


def _without_leading(weight: Tensor, rank: int, scale: float) -> Tensor:
    """Without the part that OLoRA moves into its factors."""
    left, right = torch.linalg.qr(weight)
    return weight - scale * left[:, :rank] @ right[:rank]


def _without_least(weight: Tensor, rank: int, scale: float) -> Tensor:
    """Without the part that KaSA throws away: the smallest singular values."""
    del scale
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    kept = len(values) - rank
    return (left[:, :kept] * values[:kept]) @ right[:kept]


_STARTS: Mapping[Start, Callable[[Tensor, int, float], Tensor]] = {
    "pissa": _without_principal,
    "olora": _without_leading,
    "kasa": _without_least,
}
