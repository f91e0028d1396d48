"""How much memory work takes, known before it starts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lssgen.engines.base import Backend
from lssgen.engines.demand import stage_quantities, token_axes
from lssgen.manifest import LoraFactors, Manifest, State

_LOG = logging.getLogger("lssgen")

_SHARE = 0.9
"""Part of what is free at the start that a server takes; the rest is for what libraries do not tell."""

_UNKNOWN = 2**40
"""Budget where a device does not say what it has, in bytes: whatever does not fit is found out by trying."""


def budget_of(backend: Backend, chosen_gib: float) -> int:
    """Bytes that weights and buffers may take.

    Args:
        backend: The device.
        chosen_gib: What the owner allows, in GiB; 0: nine tenths of what is free.
    """
    if chosen_gib:
        return int(chosen_gib * 2**30)
    free = backend.free_bytes()
    return _UNKNOWN if free is None else int(_SHARE * free)


def lane_bytes(manifest: Manifest, size: tuple[int, int], branches: int, batch: int) -> int:
    """Memory of a step's buffers.

    Args:
        manifest: Of the bundle.
        size: (height, width) of the stage in latent cells.
        branches, batch: Guidance branches, and pictures that share a call.
    """
    step = manifest.graphs["step"]
    counted: Mapping[str, int] = {
        **stage_quantities(manifest.facts.cell_px, size),
        "branches": branches,
        "batch": batch,
    }
    longest = {axis: extent.high for axis, extent in token_axes(manifest).items()}
    total = 0
    for port in step.inputs:
        if isinstance(step.feeds[port.name], LoraFactors):
            continue  # the model's, for all of its lanes
        shape = [_length(axis, step.axes, counted, longest) for axis in port.shape]
        copies = 2 if isinstance(step.feeds[port.name], State) else 1  # a state is read from one, written to the other
        total += copies * prod(shape) * np.dtype(port.dtype).itemsize
    return total


def _length(axis: int | str, axes: Mapping[str, str], counted: Mapping[str, int], longest: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    return longest.get(axis, 1) if axis in longest else counted.get(axes.get(axis, axis), 1)


@dataclass(slots=True)
class Scratch:
    """Memory that networks take while they run, beside weights and buffers, as far as it was seen.

    Attributes:
        per_cell: Bytes for a latent cell of a picture and branch; the most that was seen.
    """

    per_cell: float = 0.0

    def note(self, grown: int, size: tuple[int, int], branches: int, batch: int) -> None:
        """Learn how much a process has grown by a call that was larger than all before it."""
        self.per_cell = max(self.per_cell, grown / (prod(size) * branches * batch))

    def bytes(self, size: tuple[int, int], branches: int, batch: int) -> int:
        """What a call takes, if it grows with the number of cells."""
        return int(self.per_cell * prod(size) * branches * batch)


def resident_bytes() -> int | None:
    """Memory of this process; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return None


def fitting(count: int, batches: Sequence[int]) -> int:
    """The smallest of the batches that holds so many pictures, or the largest of all."""
    return next((batch for batch in batches if batch >= count), batches[-1])
