"""What is remembered of an activation: ranges, mean squares and a histogram, in memory that does not grow."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lssgen.calibration.numbers import Floats
from lssgen.ports import Array

OCTAVES, PER_OCTAVE = (-24, 24), 8
BINS = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE
"""Bins of a histogram for each sign, an eighth of an octave wide: its edges are the same for all, so that histograms
add up whatever came first. Magnitudes below 2^-24 count as the smallest, above 2^24 as the largest."""


@dataclass(slots=True)
class Seen:
    """One activation in one stage and noise bucket.

    Attributes:
        low, high: Smallest and largest number of every channel.
        squares: Sum over the calls of every channel's mean square.
        calls: Number of calls.
        counts: (2, BINS) numbers of negative and positive values by magnitude, of the rows that were looked at.
        power: Sum over the calls of the mean square of each product's result.
        bad: True where a number was NaN or infinite.
    """

    low: Floats
    high: Floats
    squares: NDArray[np.float64]
    power: NDArray[np.float64]
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, BINS), np.int64))
    calls: int = 0
    bad: bool = False

    @classmethod
    def nothing(cls, channels: int, products: int) -> "Seen":
        """Before anything was seen."""
        return cls(
            np.full(channels, np.inf, np.float32),
            np.full(channels, -np.inf, np.float32),
            np.zeros(channels),
            np.zeros(products),
        )

    def add(self, low: Array, high: Array, square: Array, rows: Array, power: Array) -> None:
        """Take one call's numbers in."""
        self.calls += 1
        # The mean square too: where one number of many is NaN, an engine's minimum may be another one.
        if not all(np.isfinite(numbers).all() for numbers in (low, high, square, power)):
            self.bad = True
            return
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.squares += square
        self.power += power
        self.counts += histogram(rows)

    def merged(self, other: "Seen") -> "Seen":
        """Both together."""
        return Seen(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.squares + other.squares,
            self.power + other.power,
            self.counts + other.counts,
            self.calls + other.calls,
            self.bad or other.bad,
        )

    @property
    def is_possible(self) -> bool:
        """Whether calls can have said this: a file of such numbers may be damaged."""
        if self.bad or self.calls <= 0:
            return self.calls >= 0
        known = (self.low, self.high, self.squares, self.power)
        sums = (self.squares, self.power, self.counts)
        return (
            all(np.isfinite(numbers).all() for numbers in known)
            and all((numbers >= 0).all() for numbers in sums)
            and bool((self.low <= self.high).all())
        )

    @property
    def peaks(self) -> Floats:
        """Largest magnitude of every channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def peak(self) -> float:
        """Largest magnitude of all."""
        return float(self.peaks.max(initial=0.0))

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """Mean square of every channel."""
        return self.squares / max(self.calls, 1)

    def within(self, share: float) -> tuple[float, float]:
        """Numbers between which a share of the values lies, in [0, 1]; of 1, the very ends.

        The ends that leave out (1 - share) of all values, counted by magnitude on both sides together.
        """
        low, high = float(self.low.min(initial=0.0)), float(self.high.max(initial=0.0))
        total = self.counts.sum(axis=0)
        if share >= 1 or not total.sum():
            return low, high
        within = int(np.searchsorted(np.cumsum(total), share * total.sum()))
        edge = 2.0 ** (OCTAVES[0] + (min(within, BINS - 1) + 1) / PER_OCTAVE)
        return max(low, -edge), min(high, edge)


def histogram(values: Array) -> NDArray[np.int64]:
    """(2, BINS) numbers of negative and positive values by magnitude."""
    flat = values.ravel()
    flat = flat[flat != 0]
    with np.errstate(divide="ignore"):
        places = np.floor((np.log2(np.abs(flat)) - OCTAVES[0]) * PER_OCTAVE)
    places = np.clip(places, 0, BINS - 1).astype(np.int64) + BINS * (flat > 0)
    return np.bincount(places, minlength=2 * BINS).reshape(2, BINS)
