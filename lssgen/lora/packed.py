"""A LoRA as rows of the input that a step with slots takes: nothing of the weights changes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.deltas import Delta, Deltas, read_deltas
from lssgen.manifest import LoraFactors, Precision

LARGEST: Mapping[Precision, float] = {"fp16": 65504.0, "bf16": 3.38e38, "fp32": 3.4e38}
"""Largest number of each format. One beyond it would be an infinity in every picture of a batch."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Room for LoRAs in a graph.

    Attributes:
        factors: Its layers, and where they lie.
        precision: Number format that the graph computes in.
    """

    factors: LoraFactors
    precision: Precision

    @property
    def layers(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each layer's weight, by name."""
        return self.factors.layers


@dataclass(frozen=True, slots=True)
class Packed:
    """A LoRA that fits the slots of a bundle.

    Attributes:
        rows: (rank, columns) float32 by graph, as its `lssgen.manifest.LoraFactors` says; the strength alpha / rank is
            inside.
        rank: Number of ranks.
        notes: Sentences that the user should read.
    """

    rows: Mapping[str, NDArray[np.float32]]
    rank: int
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows.values())


def pack(path: Path, slots: Mapping[str, Slots], ranks: int) -> Packed:
    """Read a LoRA for the slots of a bundle.

    Args:
        path: A file or folder on this machine.
        slots: The bundle's slots, by graph.
        ranks: Number of ranks that they have.

    Raises:
        ModelError: It is missing or damaged, changes what has no slots, has more ranks than there are, or is of a kind
            that only an export merges.
    """
    deltas = read_deltas(Lora(path), {name: shape for one in slots.values() for name, shape in one.layers.items()})
    rank = max(len(delta.down) for delta in deltas.by_weight.values())
    if rank > ranks:
        raise ModelError(
            f"{path} has rank {rank}, and the slots of this bundle have room for {ranks}: export with more of them "
            "(--lora-slots N --lora-rank R, N times R ranks), or merge it: lssgen export --lora"
        )
    rows = {graph: _rows(one, rank, deltas) for graph, one in slots.items()}
    for graph, one in slots.items():
        if not np.abs(rows[graph]).max(initial=0) <= LARGEST[one.precision]:  # written so that NaN is refused
            raise ModelError(
                f"{path} holds factors that are too large for {one.precision}; save it with a smaller alpha"
            )
    return Packed(rows, rank, deltas.notes)


def _rows(slots: Slots, rank: int, deltas: Deltas) -> NDArray[np.float32]:
    rows = np.zeros((rank, slots.factors.columns), np.float32)
    for name, place in slots.factors.places.items():
        if name in deltas.by_weight:
            _put(rows, place, deltas.by_weight[name])
    return rows


def _put(rows: NDArray[np.float32], place: tuple[int, int, int], delta: Delta) -> None:
    first, second, end = place
    rank = len(delta.down)
    rows[:rank, first:second] = delta.down.reshape(rank, -1)
    with np.errstate(over="ignore"):  # seen by the caller
        rows[:rank, second:end] = np.float32(delta.scale) * delta.up.reshape(-1, rank).T.astype(np.float32)
