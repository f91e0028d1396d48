"""How far one computation of a graph is from another, and how far it may be: what every proof of a graph measures."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lssgen.manifest import Precision, Probe
from lssgen.ports import Array

BOUNDS: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}
"""Largest relative L2 error of an output. float32 graphs differ by a few 1e-6 from torch, so 1e-3 is a mistake and not
rounding; half precision rounds after every node, and these are several times what healthy networks show."""

PICTURE_BOUNDS: Mapping[Precision, float] = {"fp32": 1e-2, "fp16": 5e-2, "bf16": 1e-1}
"""The same for grey levels, where one level of difference is already 0.4 %."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one evaluation gave, by port."""

    values: Mapping[str, Array]

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(value).all()) for value in self.values.values())

    @property
    def peak(self) -> float:
        return max(float(np.abs(value.astype(np.float64)).max(initial=0.0)) for value in self.values.values())


def compare(got: Outputs, wanted: Outputs, axes: Mapping[str, int], precision: Precision) -> Probe:
    """How far `got` is from `wanted`, and how far it may be."""
    errors = [relative_error(got.values[name], value) for name, value in wanted.values.items()]
    pictures = any(value.dtype == np.uint8 for value in wanted.values.values())
    bound = (PICTURE_BOUNDS if pictures else BOUNDS)[precision]
    return Probe(axes=axes, error=max(errors), bound=bound, finite=got.finite, peak=got.peak)


def relative_error(got: Array, wanted: Array) -> float:
    """|got - wanted| / |wanted|, L2. Infinite where the shapes differ or a number is not finite."""
    if got.shape != wanted.shape:
        return float("inf")
    wanted = wanted.astype(np.float64)
    # 1e-12: an output that should be all zeros, and is, has no error.
    error = float(np.linalg.norm(got.astype(np.float64) - wanted) / (np.linalg.norm(wanted) + 1e-12))
    return error if np.isfinite(error) else float("inf")
