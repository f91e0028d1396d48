"""How much of a latent there is at every frequency, and how noisy a start must be to cover an error of a transition.

Frequencies are in cycles per latent cell, f = sqrt((k_y / 2 H)^2 + (k_x / 2 W)^2) of the cosine transform's coefficient
(k_y, k_x): in them a VAE's spectrum is the same at every size. The finest wave along an axis has 1/2, of which a latent
of half the sides knows 1/4.
"""

from collections.abc import Sequence
from functools import cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import CalibrationError
from lssgen.plan.cosines import cosines
from lssgen.ports import Array

Floats = NDArray[np.float64]

BANDS_AN_OCTAVE = 2
OCTAVES = 5
"""Octaves below 1/2: the lowest band begins at 1/64, two waves across a latent of 128 cells."""

EDGES: tuple[float, ...] = tuple(
    0.5 * 2 ** (step / BANDS_AN_OCTAVE - OCTAVES) for step in range(BANDS_AN_OCTAVE * OCTAVES + 1)
)
"""Ends of the bands in cycles per cell. The last one also holds what is finer, along diagonals."""

COARSE = 0.25
"""The finest frequency of a latent of half the sides, in cycles per cell of the whole one."""

LEAST_CELLS = 32
"""Shortest side of a latent whose lowest band has coefficients enough."""


def band_power(latent: Array) -> Floats:
    """(bands,) mean square of the coefficients of the orthonormal cosine transform, over channels.

    Args:
        latent: (C, h, w), sides of `LEAST_CELLS` or more.
    """
    height, width = latent.shape[-2:]
    coefficients = cosines(height) @ latent.astype(np.float64) @ cosines(width).T
    return _band_means((coefficients**2).mean(0))


def _band_means(power: Floats) -> Floats:
    numbers = _bands(*power.shape)
    sums, counts = (np.bincount(numbers.ravel(), weights, len(EDGES)) for weights in (power.ravel(), None))
    # Number 0 is what lies below the lowest band: the mean of the picture, and waves longer than half of it.
    return sums[1:] / counts[1:]


@cache
def _bands(height: int, width: int) -> NDArray[np.int64]:
    """(height, width) number of every coefficient's band, from 1; 0: below all."""
    return np.clip(np.searchsorted(EDGES, _frequencies(height, width), "right"), 0, len(EDGES) - 1)


def _frequencies(height: int, width: int) -> Floats:
    return np.hypot(np.arange(height)[:, None] / (2 * height), np.arange(width)[None] / (2 * width))


_USUAL_CELLS = 128
"""Side of a latent of 1024 px."""


@cache
def centres() -> Floats:
    """(bands,) mean frequency of each band's coefficients, on a logarithmic scale."""
    size = (_USUAL_CELLS, _USUAL_CELLS)
    # The coefficient (0, 0) is in no band, and its logarithm does not matter.
    return np.exp(_band_means(np.log(np.maximum(_frequencies(*size), EDGES[0] / 2))))


def law(power: Floats) -> tuple[float, float]:
    """(a, b) of the power law P(f) = a f^-b that is nearest to a spectrum, by squares of logarithms.

    Args:
        power: (bands,) of `band_power`, above 0.
    """
    slope, height = np.polyfit(np.log(centres()), np.log(power), 1)
    return float(np.exp(height)), float(-slope)


def covering_share(power: Floats, error: Floats, quality: float) -> float:
    """The lowest noise share at which the noise covers an error.

    Noised to a share s, a latent z + e is seen as z + e + r n, with r = s / (1 - s) and white noise n. Of that, whoever
    knows how strong pictures are at a frequency, P, keeps the part P / (P + r^2) (Wiener's filter), and of the error
    the same part. It is covered where no more of it is left than a share of the picture itself:

        (P / (P + r^2))^2 E <= quality P,   which is   r^2 >= sqrt(P E / quality) - P

    Args:
        power: (bands,) P, of the latents that a transition should give.
        error: (bands,) E, of its difference from these.
        quality: Share of a band's power that may be wrong, above 0.

    Returns:
        Noise over picture and noise, for pictures of unit deviation, in [0, 1).
    """
    ratio = sqrt(max(0.0, float(_needed(power, error, quality).max())))
    return ratio / (1 + ratio)


def deciding_band(power: Floats, error: Floats, quality: float) -> int:
    """Number of the band that needs the most noise."""
    return int(_needed(power, error, quality).argmax())


def _needed(power: Floats, error: Floats, quality: float) -> Floats:
    """(bands,) r^2 that covers each band's error; below 0 where it needs none."""
    return np.sqrt(power * error / quality) - power


def spectral_share(a: float, b: float, quality: float) -> float:
    """The noise share at which SPEED would start a stage, from the power law alone.

    t = 1 / (1 + sqrt(d / (P (1 + P - d)))) with P the power at the coarse latent's finest frequency is where the coarse
    stage is left; the next one starts at 2 t / (1 + t).

    Source: SPEED, in cycles per cell; its own code has them per picture, so that its constants fit one size.
    """
    power = a * COARSE**-b
    left = 1 / (1 + sqrt(quality / (power * (1 + power - quality)))) if power + 1 > quality else 0.0
    return 2 * left / (1 + left)


def mean_of(rows: Sequence[Floats]) -> Floats:
    """The mean of several pictures' bands.

    Raises:
        CalibrationError: A number is not finite, or nothing varies.
    """
    found = np.mean(rows, axis=0)
    if not np.isfinite(found).all():
        raise CalibrationError("a latent holds NaN or infinity: the VAE's weights are damaged, or overflow in fp16")
    return found
