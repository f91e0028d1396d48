"""The orthonormal cosine transform as matrix products: every backend has those, few have a transform.

The matrices depend on the size alone, so a graph whose sizes are fixed holds them as constants.
"""

from math import pi

import torch
from torch import Tensor


def cosine_rows(count: int, size: int, like: Tensor) -> Tensor:
    """The first rows of the orthonormal DCT-II of a length, (count, size).

    Row k is cos(pi (2 i + 1) k / (2 size)), scaled to length 1.

    Source: Ahmed et al. 1974, "Discrete cosine transform".
    """
    row = torch.arange(count, dtype=like.dtype, device=like.device)[:, None]
    column = torch.arange(size, dtype=like.dtype, device=like.device)[None]
    # Whole numbers, exact in float32 for every latent. The cosine of thousands is not: it is of their rest, of a turn.
    place, turn = (2 * column + 1) * row, 4 * size
    place = place - turn * torch.floor(place / turn)
    waves = torch.cos(place * (pi / 2) / size) * (2 / size) ** 0.5
    return torch.where(row == 0, waves * 0.5**0.5, waves)


def enlarging(size: int, like: Tensor) -> Tensor:
    """(2 size, size) matrix that puts a length's cosine transform within that of twice the length; its columns are
    orthonormal."""
    return cosine_rows(size, 2 * size, like).T @ cosine_rows(size, size, like)


def enlarged(latent: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, C, 2 h, 2 w) whose cosine transform is that of the latent, and 0 beyond it."""
    height, width = latent.shape[2:]
    return enlarging(height, latent) @ latent @ enlarging(width, latent).T


def low_part(latent: Tensor, height: int, width: int) -> Tensor:
    """(batch, C, 2 height, 2 width) -> (batch, C, height, width) with its lowest frequencies: undoes `enlarged`.

    Of white noise it is white noise of the same deviation.
    """
    return enlarging(height, latent).T @ latent @ enlarging(width, latent)
