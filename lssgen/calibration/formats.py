"""The number formats, as a table: what each does to a product, and which engines and targets take it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import onnx_ir as ir

from lssgen.calibration.numbers import Coded, Floats, fp4_blocks, fp8_tensor, int8_columns
from lssgen.engines.trt.targets import see_format
from lssgen.errors import CalibrationError
from lssgen.manifest import NumberFormat

CPU_ENGINES, TRT_ENGINES = ("onnxruntime", "openvino"), ("tensorrt", "tensorrt-rtx")
ENGINES = (*CPU_ENGINES, *TRT_ENGINES)

CONVOLVING = TRT_ENGINES
"""Engines that compute convolutions of codes as this lssgen writes them. ONNX Runtime's are of codes only where the
result becomes codes too; else they are decoded first, and slower than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One number format.

    Attributes:
        weights: Function that codes a weight.
        type: Type of its codes.
        activations: True where what goes in is coded too.
        engines: Engines that compute with it.
        attention: True where attentions may be computed with it.
        convolutions: Format that convolutions are computed in, on the engines of `CONVOLVING`; None: as they were.
        smoothing: Strength of SmoothQuant that is usual; 0: none, since its numbers have exponents of their own.
        costs: Sentence about what it costs and gives.
    """

    weights: Callable[[Floats, Any], Coded]
    type: ir.DataType
    activations: bool = True
    engines: tuple[str, ...]
    attention: bool = False
    convolutions: NumberFormat | None = None
    smoothing: float = 0.0
    costs: str


FORMATS: Mapping[NumberFormat, Format] = {
    "int8": Format(
        weights=int8_columns,
        type=ir.DataType.INT8,
        engines=ENGINES,
        convolutions="int8",
        smoothing=0.8,
        costs="products in 8-bit integers: the fast path of CPUs with VNNI",
    ),
    "fp8": Format(
        weights=fp8_tensor,
        type=ir.DataType.FLOAT8E4M3FN,
        engines=TRT_ENGINES,
        attention=True,
        convolutions="fp8",
        costs="products and attention in E4M3, from Ada on: nearly the quality of half precision",
    ),
    "nvfp4": Format(
        weights=fp4_blocks,
        type=ir.DataType.FLOAT4E2M1,
        engines=TRT_ENGINES,
        attention=True,
        convolutions="fp8",
        costs="products in 4 bits with a scale for 16 numbers, on Blackwell; Q, K, V and convolutions in fp8",
    ),
    "int8-weights": Format(
        weights=int8_columns,
        type=ir.DataType.INT8,
        activations=False,
        engines=ENGINES,
        costs="weights in 8 bits, computed in the graph's precision: half the file and no calibration",
    ),
}
"""Formats by name."""


def format_for(name: NumberFormat, engine: str) -> Format:
    """A format that an engine has.

    Raises:
        CalibrationError: There is no such format, or the engine lacks it; says which it has.
    """
    if name not in FORMATS:
        raise CalibrationError(f"there is no format {name!r}; choose one of {', '.join(get_args(NumberFormat))}")
    if engine not in ENGINES:
        raise CalibrationError(f"no format is made for the engine {engine!r}; choose one of {', '.join(ENGINES)}")
    found = FORMATS[name]
    if engine not in found.engines:
        legal = [other for other, one in FORMATS.items() if engine in one.engines]
        raise CalibrationError(f"engine {engine} does not compute in {name}; it takes {', '.join(legal)}")
    return found


def see_targets(name: NumberFormat, engine: str, targets: Sequence[str]) -> None:
    """See that GPUs that a bundle is made for have its format.

    Raises:
        CalibrationError: The engine is one of CPUs.
        BuildError: There is no such target, or it does not have the format; says which have.
    """
    if engine in TRT_ENGINES:
        see_format(targets, name, rtx=engine == "tensorrt-rtx")
    elif targets:
        raise CalibrationError(
            f"targets ({', '.join(targets)}) are GPUs, and {engine} runs on the CPU; leave --target out, or name "
            f"another engine with --for: {', '.join(TRT_ENGINES)}"
        )
