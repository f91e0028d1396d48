"""A LoRA as rows of the input that a step with slots takes: nothing of the weights changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.deltas import Delta, read_deltas
from lssgen.manifest import LoraFactors, Precision

LARGEST: Mapping[Precision, float] = {"fp16": 65504.0, "bf16": 3.38e38, "fp32": 3.4e38}
"""Largest number of each format. One beyond it would be an infinity in every picture of a batch."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A LoRA that fits the slots of a bundle.

    Attributes:
        rows: (rank, columns) float32, as `lssgen.manifest.LoraFactors` says; the strength alpha / rank is inside.
        notes: Sentences that the user should read.
    """

    rows: NDArray[np.float32]
    notes: tuple[str, ...]


def pack(path: Path, factors: LoraFactors, ranks: int, precision: Precision) -> Packed:
    """Read a LoRA for the slots of a bundle.

    Args:
        path: A file or folder on this machine.
        factors: The bundle's slots.
        ranks: Number of ranks that they have.
        precision: What the step computes in.

    Raises:
        ModelError: It is missing or damaged, changes what has no slots, has more ranks than there are, or is of a kind
            that only an export merges.
    """
    deltas = read_deltas(Lora(path), factors.layers)
    rank = max(len(delta.down) for delta in deltas.by_weight.values())
    if rank > ranks:
        raise ModelError(
            f"{path} has rank {rank}, and the slots of this bundle have room for {ranks}: export with more of them "
            "(--lora-slots N --lora-rank R, N times R ranks), or merge it: lssgen export --lora"
        )
    rows = np.zeros((rank, factors.columns), np.float32)
    places = factors.places
    for name, delta in deltas.by_weight.items():
        _put(rows, places[name], delta)
    if not np.abs(rows).max(initial=0) <= LARGEST[precision]:  # written so that NaN is refused
        raise ModelError(f"{path} holds factors that are too large for {precision}; save it with a smaller alpha")
    return Packed(rows, deltas.notes)


def _put(rows: NDArray[np.float32], place: tuple[int, int, int], delta: Delta) -> None:
    first, second, end = place
    rank = len(delta.down)
    rows[:rank, first:second] = delta.down.reshape(rank, -1)
    with np.errstate(over="ignore"):  # seen by the caller
        rows[:rank, second:end] = np.float32(delta.scale) * delta.up.reshape(-1, rank).T.astype(np.float32)
