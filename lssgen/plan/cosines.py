"""The orthonormal cosine transform of small lengths, as matrices."""

from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def cosines(size: int) -> NDArray[np.float64]:
    """(size, size) orthonormal DCT-II; row k is a wave of k / (2 size) cycles a cell."""
    row, column = np.arange(size)[:, None], np.arange(size)[None]
    waves = np.cos(np.pi * (2 * column + 1) * row / (2 * size)) * np.sqrt(2 / size)
    waves[0] /= np.sqrt(2)
    return waves


@cache
def lowering(size: int, whole: int) -> NDArray[np.float64]:
    """(size, whole) matrix with orthonormal rows: the transform of the whole length, cut off, and back at the smaller
    one. Its transpose puts the smaller one's transform within that of the whole."""
    return cosines(size).T @ cosines(whole)[:size]
