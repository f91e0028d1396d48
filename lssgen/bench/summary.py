"""Many measurements of one thing as a few numbers, without claiming more than the count allows."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

LEAST_FOR: dict[str, int] = {"p50": 1, "p90": 10, "p99": 100}
"""Measurements that a percentile needs: below, the largest one would be sold as a percentile."""


Count = Annotated[int, msgspec.Meta(ge=1)]
Measure = Annotated[float, msgspec.Meta(ge=0)]
"""A time or rate in a file that somebody may have damaged: below zero, it is refused."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, unless its name says otherwise. The fields are called as in AIPerf's exports.

    Attributes:
        count: Number of measurements.
        avg, std, min, max: Mean, standard deviation, smallest and largest.
        p50, p90, p99: Percentiles; None where there are too few measurements for one, see `LEAST_FOR`.
    """

    count: Count
    avg: Measure
    std: Measure
    min: Measure
    max: Measure
    p50: Measure
    p90: Measure | None = None
    p99: Measure | None = None


def summarised(values: Sequence[float], scale: float = 1.0) -> Summary:
    """A summary of at least one value, each multiplied by `scale`."""
    numbers = scale * np.asarray(values, np.float64)
    return Summary(
        count=len(numbers),
        avg=float(numbers.mean()),
        std=float(numbers.std()),
        min=float(numbers.min()),
        max=float(numbers.max()),
        p50=float(np.median(numbers)),
        p90=_quantile(numbers, "p90"),
        p99=_quantile(numbers, "p99"),
    )


def _quantile(numbers: "np.ndarray[tuple[int], np.dtype[np.float64]]", name: str) -> float | None:
    if len(numbers) < LEAST_FOR[name]:
        return None
    return float(np.quantile(numbers, int(name[1:]) / 100))
