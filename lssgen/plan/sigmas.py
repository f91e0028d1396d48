"""How noise levels are spread: the table that a model was trained on, and the rules by which sampling picks from it.

Source: diffusers' schedulers, whose numbers these are; Karras et al. 2022, arXiv 2206.00364, eq. 5; Lin et al. 2024,
arXiv 2305.08891, algorithm 1 (zero terminal SNR); Lee et al. 2024, arXiv 2407.12173 (beta).
"""

from itertools import pairwise
from math import cos, gamma, log, pi, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SigmaRule = Literal["default", "karras", "exponential", "beta", "lu"]
"""Spacing of sigmas: as the timesteps fall; evenly in sigma^(1/7); evenly in log(sigma), also "lu", which rounds its
timesteps; at the quantiles of a beta distribution."""

# Karras et al., section 3; diffusers' _convert_to_karras has it fixed, too.
_RHO = 7.0
_FAINTEST = np.float32(2**-24)
"""Share of the picture that classes that work with sigma leave at the last timestep of zero terminal SNR."""


def spread(rule: SigmaRule, high: float, low: float, steps: int) -> NDArray[np.float64]:
    """(steps,) sigmas that fall from `high` to `low`."""
    if rule == "karras":
        ends = high ** (1 / _RHO), low ** (1 / _RHO)
        return (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** _RHO
    if rule == "beta":
        return low + beta_quantiles(1 - np.linspace(0, 1, steps)) * (high - low)
    return np.exp(np.linspace(log(high), log(low), steps))


def beta_quantiles(shares: NDArray[np.float64], shape: float = 0.6) -> NDArray[np.float64]:
    """Quantiles of the symmetric beta distribution on [0, 1] with both parameters `shape`."""
    # Written out, since the runtime does without SciPy, which diffusers asks for these.
    low = np.minimum(shares, 1 - shares)  # the other half is its mirror image
    scale = gamma(2 * shape) / gamma(shape) ** 2
    # In terms of y = x^shape the distribution function is nearly straight, and its series converges for x up to 1/2.
    below, above = np.zeros_like(low), np.full_like(low, 0.5**shape)
    # 60 halvings are beyond float64's 53 bits; 60 terms of x^n with x up to 1/2 as well.
    for _ in range(60):
        middle = (below + above) / 2
        x, coefficient, total = middle ** (1 / shape), 1.0, np.zeros_like(low)
        for power in range(60):
            total += coefficient / (shape + power) * x**power
            coefficient *= (power + 1 - shape) / (power + 1)
        higher = scale * middle * total >= low
        below, above = np.where(higher, below, middle), np.where(higher, middle, above)
    x = above ** (1 / shape)
    return np.where(shares == low, np.where(low > 0, x, 0.0), 1 - np.where(low > 0, x, 0.0))


def betas(kind: str, start: float, end: float, steps: int) -> NDArray[np.float32]:
    """(steps,) betas of the named schedule."""
    if kind == "linear":
        # float32 as torch's tables: levels, and with them labels at a threshold, are decided by its last bit.
        return np.linspace(start, end, steps, dtype=np.float32)
    if kind == "scaled_linear":
        return np.linspace(sqrt(start), sqrt(end), steps, dtype=np.float32) ** 2
    # Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17; 0.999 keeps the last beta from leaving nothing at all.
    left = [cos((at / steps + 0.008) / 1.008 * pi / 2) ** 2 for at in range(steps + 1)]
    return np.asarray([min(1 - below / above, 0.999) for above, below in pairwise(left)], np.float32)


def remaining(table: NDArray[np.float32], *, zero_snr: bool, faintest: bool) -> NDArray[np.float32]:
    """(steps,) share of the picture's variance that is left at each timestep (`alphas_cumprod`).

    Args:
        table: The betas.
        zero_snr: Stretch the table so that nothing is left at its end.
        faintest: Leave a trace there all the same, as the classes that work with sigma do.
    """
    # torch.cumprod multiplies float32 numbers in float64 on the CPU; in float32 the table differs in its last digits.
    left = np.cumprod((1 - table).astype(np.float64)).astype(np.float32)
    if zero_snr:
        root = np.sqrt(left)
        first, last = root[0], root[-1]
        left = ((root - last) * (first / (first - last))) ** 2
        if faintest:
            left[-1] = _FAINTEST
    return left


def timesteps_of(sigmas: NDArray[np.floating], log_table: NDArray[np.float32]) -> NDArray[np.float64]:
    """Timestep of every sigma, between those of the table, linearly in log(sigma)."""
    # 1e-10 as in diffusers' _sigma_to_t: a sigma of 0 has the timestep of the smallest.
    return np.interp(np.log(np.maximum(sigmas.astype(np.float64), 1e-10)), log_table, np.arange(len(log_table)))
