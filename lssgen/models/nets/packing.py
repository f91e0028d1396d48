"""Squares of latent cells as tokens, for transformers that look at p x p cells at a time; and the angles of places."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pack(x: Tensor, patch: int) -> Tensor:
    """(n, C, height, width) -> (n, height / patch * width / patch, C * patch * patch), row by row."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Undoes `pack`; height and width are those of the latent."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch)), patch)


def on_grid(rows: Tensor, columns: Tensor) -> Tensor:
    """What belongs to every row and to every column, side by side for every place, row by row.

    Args:
        rows: (..., height, a).
        columns: (..., width, b).

    Returns:
        (..., height * width, a + b).
    """
    lead = [-1] * (rows.ndim - 2)
    down = rows.unsqueeze(-2).expand(*lead, -1, columns.shape[-2], -1)
    across = columns.unsqueeze(-3).expand(*lead, rows.shape[-2], -1, -1)
    return torch.cat((down, across), -1).flatten(-3, -2)
