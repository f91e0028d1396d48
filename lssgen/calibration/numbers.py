"""Number formats of few bits, in NumPy: how weights become codes and scales, and how much noise that makes.

    int8    x = scale * (q - zero),  q in -128 to 127, or 0 to 255 for activations of CPU engines
    fp8     x = scale * q,           q in E4M3 without infinities, up to 448
    nvfp4   x = global * scale * q,  q in E2M1, up to 6; a scale in E4M3 for 16 numbers; one float32 for all

Source: ONNX operators QuantizeLinear and DequantizeLinear, opset 23; OCP 8-bit floating point, 2023; NVIDIA, NVFP4.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lssgen.ports import Array

Floats = NDArray[np.float32]

FP8_MOST, FP4_MOST = 448.0, 6.0
BLOCK = 16
"""Number of values that share a scale in NVFP4."""

SMALLEST = float(np.finfo(np.float16).tiny)
"""Smallest scale: whatever it is stored in, 1 / scale is finite."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor in few bits.

    Attributes:
        codes: Its numbers, in the shape of the tensor.
        scales: Scales: one a column for int8, one for all for fp8, (rows / 16, columns) E4M3 for nvfp4.
        whole: Scale of all scales; 1 but for nvfp4.
    """

    codes: Array
    scales: Array
    whole: float = 1.0


def int8_columns(weight: Floats, storage: Any = np.float32) -> Coded:
    """A (rows, columns) weight in int8, symmetric, a scale a column; `storage` is the type that scales are kept in."""
    scales = _scales(np.abs(weight).max(axis=0) / 127, storage)
    return Coded(np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales)


def fp8_tensor(weight: Floats, storage: Any = np.float32) -> Coded:
    """A weight in E4M3, one scale for all: its numbers have exponents of their own."""
    scales = _scales(np.abs(weight).max() / FP8_MOST, storage)
    return Coded(_fp8(weight / scales), scales)


def fp4_blocks(weight: Floats, storage: Any = np.float32) -> Coded:
    """A (rows, columns) weight in NVFP4: blocks of 16 rows; the number of rows is a multiple of that."""
    del storage  # its scales are E4M3, and theirs float32
    rows, columns = weight.shape
    blocks = weight.reshape(rows // BLOCK, BLOCK, columns)
    peaks = np.abs(blocks).max(axis=1)
    whole = max(float(peaks.max(initial=0.0)) / (FP4_MOST * FP8_MOST), SMALLEST)
    scales = _fp8(peaks / FP4_MOST / whole)
    wide = scales.astype(np.float32)[:, None, :] * np.float32(whole)
    wide = np.where(wide > 0, wide, np.float32(1))  # whose codes stand for zeros, whatever they are
    codes = np.clip(blocks / wide, -FP4_MOST, FP4_MOST).astype(ml_dtypes.float4_e2m1fn)
    return Coded(codes.reshape(rows, columns), scales, whole)


def decoded(coded: Coded) -> Floats:
    """The numbers that codes stand for."""
    codes, scales = coded.codes.astype(np.float32), coded.scales.astype(np.float32) * np.float32(coded.whole)
    wide = np.repeat(scales, BLOCK, axis=0) if scales.ndim == 2 else scales
    return (codes * wide).astype(np.float32)


def _fp8(value: Floats) -> Array:
    """Rounded to E4M3; beyond its range, its largest number and not NaN."""
    return np.clip(value, -FP8_MOST, FP8_MOST).astype(ml_dtypes.float8_e4m3fn)


def _scales(values: Any, storage: Any) -> Floats:
    """Scales as they are kept, which can be divided by; a column of zeros has any."""
    found = np.where(values > SMALLEST, values, np.where(values > 0, SMALLEST, 1.0))
    return found.astype(storage).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scale:
    """How a tensor of activations is coded.

    Attributes:
        scale: Size of one step; for fp8, of one unit.
        zero: Code of zero; 0 but for unsigned int8.
    """

    scale: float
    zero: int = 0


def signed_scale(peak: float) -> Scale:
    """int8, -127 to 127, for numbers up to `peak` in magnitude."""
    return Scale(max(peak / 127, SMALLEST))


def unsigned_scale(low: float, high: float) -> Scale:
    """uint8 for numbers from `low` to `high`; zero is a code, so that what is zero stays zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, SMALLEST)
    return Scale(scale, int(np.clip(round(-low / scale), 0, 255)))


def fp8_scale(peak: float) -> Scale:
    """E4M3 for numbers up to `peak` in magnitude."""
    return Scale(max(peak / FP8_MOST, SMALLEST))


FP8_NOISE, FP4_NOISE = 6.8e-4, 9.0e-3
"""Mean squared rounding error, relative to the mean square, of normal numbers in E4M3 and in NVFP4."""
