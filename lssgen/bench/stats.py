"""Is B slower than A? Statistics on paired log ratios: an estimate, two intervals, and a verdict out of three.

The estimate is that of Hodges and Lehmann with the interval that belongs to Wilcoxon's signed-rank test: it assumes
that log ratios are symmetric about their middle and nothing else, and is exact from six pairs on. A bootstrap of the
median is the second opinion. PASS is an equivalence test (two one-sided tests): the interval must lie below the
margin, so that few or noisy measurements can never pass for good ones.
"""

from collections.abc import Sequence
from functools import cache
from math import exp, log1p
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

Verdict = Literal["PASS", "FAIL", "UNDECIDED"]

LEAST_PAIRS = 6
"""Pairs from which the signed-rank interval can have 95 %: 2 / 2^6 = 3.1 %."""

EXACT_PAIRS = 60
"""Pairs up to which the signed-rank distribution is counted out; beyond, it is taken for normal."""

RESAMPLES = 4000

UNBOUNDED = 1e9
"""Upper end of an interval that has none; JSON has no infinity."""


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio with its confidence interval.

    Attributes:
        ratio: Estimate of B's time over A's.
        lower, upper: Ends of the interval.
        level: Confidence of the interval, two-sided.
    """

    ratio: float
    lower: float
    upper: float
    level: float

    def __str__(self) -> str:
        if self.upper >= UNBOUNDED:
            return f"{100 * (self.ratio - 1):+.2f} % (too few for an interval)"
        return f"{100 * (self.ratio - 1):+.2f} % ({100 * (self.lower - 1):+.2f} to {100 * (self.upper - 1):+.2f} %)"


def hodges_lehmann(log_ratios: Sequence[float], level: float = 0.95) -> Interval:
    """The median of all pairwise means, and Wilcoxon's interval.

    Args:
        log_ratios: At least one number; with too few for the level, the interval is as wide as the numbers allow, and
            `UNBOUNDED` where they allow none.
        level: Two-sided confidence.

    Source: Hodges and Lehmann 1963; Hollander and Wolfe, Nonparametric Statistical Methods, section 3.3.
    """
    numbers = np.asarray(log_ratios, np.float64)
    rows, columns = np.triu_indices(len(numbers))
    means = np.sort((numbers[rows] + numbers[columns]) / 2)
    cut = _rank_cut(len(numbers), (1 - level) / 2)
    if cut < 0:
        return Interval(ratio=exp(float(np.median(means))), lower=0.0, upper=UNBOUNDED, level=level)
    return Interval(
        ratio=exp(float(np.median(means))),
        lower=exp(float(means[cut])),
        upper=exp(float(means[len(means) - 1 - cut])),
        level=level,
    )


def bootstrap(log_ratios: Sequence[float], level: float = 0.95, seed: int = 0) -> Interval:
    """The median, and the percentiles of the medians of resampled numbers. Trust it from a dozen pairs on."""
    numbers = np.asarray(log_ratios, np.float64)
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(numbers, (RESAMPLES, len(numbers))), axis=1)
    lower, upper = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Interval(ratio=exp(float(np.median(numbers))), lower=exp(float(lower)), upper=exp(float(upper)), level=level)


def verdict(interval: Interval, margin: float) -> Verdict:
    """PASS: B is surely slower by less than the margin; FAIL: surely by more; else UNDECIDED.

    Args:
        interval: Of B's time over A's.
        margin: Slowing that is allowed, 0.03 for 3 %.
    """
    bound = exp(log1p(margin))
    if interval.upper < bound:
        return "PASS"
    return "FAIL" if interval.lower > bound else "UNDECIDED"


def looks_of(most: int, least: int = 8) -> tuple[int, ...]:
    """Numbers of pairs after which the gate looks at its numbers, each half as many more, up to the most.

    Whoever looks several times is wrong more often, so the looks share the error that is allowed; see `level_of`.
    """
    found = [min(least, most)]
    while found[-1] < most:
        found.append(min(-(-3 * found[-1] // 2), most))
    return tuple(found)


def level_of(looks: int, false_alarms: float = 0.05) -> float:
    """Two-sided confidence of the interval at each look, so that all looks together err that often at most (on each
    side): the error is shared out evenly (Bonferroni)."""
    return 1 - 2 * false_alarms / looks


def log_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The log ratio of one round: the median over its blocks A B B A, so that one disturbed block does not count.

    Args:
        a, b: Times in order, two of each a block. Within a block, what drifts evenly cancels.
    """
    logs = np.log(np.asarray(b, np.float64)) - np.log(np.asarray(a, np.float64))
    return float(np.median(logs.reshape(-1, 2).mean(1)))


def _rank_cut(count: int, tail: float) -> int:
    """Largest index from each end of the sorted means that leaves at most `tail` outside; -1 where there is none."""
    if count > EXACT_PAIRS:
        mean, spread = count * (count + 1) / 4, (count * (count + 1) * (2 * count + 1) / 24) ** 0.5
        return int(np.floor(mean - _normal_quantile(1 - tail) * spread)) - 1
    below = np.cumsum(_rank_chances(count))
    return int(np.searchsorted(below, tail, side="right")) - 1


@cache
def _rank_chances(count: int) -> NDArray[np.float64]:
    """Chance of every value 0, 1, ... of the signed-rank sum of `count` symmetric numbers."""
    chances = np.ones(1)
    for rank in range(1, count + 1):
        without, with_ = np.pad(chances, (0, rank)), np.pad(chances, (rank, 0))
        chances = (without + with_) / 2
    return chances


def _normal_quantile(share: float) -> float:
    """Quantile of the standard normal distribution, by bisection of its distribution function."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(share)
