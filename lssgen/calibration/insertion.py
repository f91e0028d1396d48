"""Quantising nodes in a graph, and its weights in few bits: the graph pass, streamed from one folder into another.

    x -> QuantizeLinear -> DequantizeLinear -> MatMul or Conv <- DequantizeLinear <- codes

Engines fuse such a pattern into a product of codes. Products that read the same x share what quantises it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lssgen.bundle import sha256_of
from lssgen.calibration.formats import FORMATS
from lssgen.calibration.numbers import (
    BLOCK,
    FP4_MOST,
    FP4_NOISE,
    FP8_MOST,
    FP8_NOISE,
    Coded,
    Floats,
    Scale,
    decoded,
    fp8_scale,
    signed_scale,
    unsigned_scale,
)
from lssgen.calibration.observe import Seen
from lssgen.calibration.products import Product, shared
from lssgen.calibration.smoothing import Edit, edits_of, parts_of, smoothing
from lssgen.calibration.statistics import Ranges
from lssgen.calibration.storage import DataFile, in_float32
from lssgen.errors import CalibrationError
from lssgen.manifest import NumberFormat
from lssgen.ports import Array

NVIDIA = "trt"
"""Domain of the operators that ONNX lacks and NVIDIA's parser has."""

QKV = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
"""Products in front of an attention, which nvfp4 computes in fp8. Source: ModelOpt 0.47, preset nvfp4_fp8_conv."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a graph is quantised.

    Attributes:
        format: Number format.
        unsigned: True where activations are unsigned with a zero point, the fast path of x86; else symmetric.
        kept: Names of products that stay as they are.
        smoothing: Strength of SmoothQuant in [0, 1]; 0: none.
        convolutions: True where the engine computes convolutions of codes.
        share: Share of the activations that their range holds; 1: all that were seen.
    """

    format: NumberFormat
    unsigned: bool = False
    kept: frozenset[str] = frozenset()
    smoothing: float = 0.0
    convolutions: bool = False
    share: float = 1.0


@dataclass(slots=True)
class Made:
    """A quantised graph.

    Attributes:
        sha256: Hash of each of its files, by name.
        snr_db: Predicted signal to noise of every quantised product's result, in dB, by name; see `_noise`.
        kept: Names of products that stay as they are.
        smoothed: Number of products whose input was smoothed.
        attention: Number of attentions that are quantised.
    """

    sha256: dict[str, str] = field(default_factory=dict[str, str])
    snr_db: dict[str, float] = field(default_factory=dict[str, float])
    kept: tuple[str, ...] = ()
    smoothed: int = 0
    attention: int = 0


Rewrite = Callable[[ir.Model, Ranges], int]
"""Another change of the graph, before its products are quantised; how much it has changed."""


def _silent(*_: object) -> None:
    pass


def write_quantised(
    model: ir.Model,
    products: Sequence[Product],
    recipe: Recipe,
    ranges: Ranges | None,
    path: Path,
    *,
    rewrite: Rewrite | None = None,
    hear: Callable[[float, str], object] = _silent,
) -> Made:
    """Quantise a graph and write it, with a data file beside it. No more than one weight is in memory at a time.

    Args:
        model: The graph; it is changed.
        products: Products that may be quantised.
        recipe: Format, and what stays.
        ranges: What was seen; None where weights alone are quantised.
        path: The ONNX file to write.
        rewrite: Another change, such as of attentions.
        hear: Hears of the share that is done, and what is being done.

    Raises:
        CalibrationError: A weight is damaged: not finite, or not all there.
        OSError: The files cannot be written.
    """
    chosen = [product for product in products if product.name not in recipe.kept and _fits(product, recipe)]
    data = path.with_suffix(".data")
    made = Made(kept=tuple(dict.fromkeys(p.name for p in products if p not in chosen)))
    with DataFile(data) as file:
        work = _Work(model.graph, recipe, ranges, file, made)
        made.attention = rewrite(model, ranges) if rewrite and ranges else 0
        groups = list(shared(chosen).values())
        for index, group in enumerate(groups):
            hear(0.9 * index / len(groups), group[0].name)
            work.quantise(group)
        hear(0.9, "what stays as it is")
        work.keep_the_rest()
        made.sha256[data.name] = file.sha256
    if recipe.format == "nvfp4":
        model.graph.opset_imports[NVIDIA] = 1
    ir.save(model, path)
    made.sha256[path.name] = sha256_of(path)
    return made


def _fits(product: Product, recipe: Recipe) -> bool:
    """Whether a product can be quantised. Blocks of NVFP4 are whole.

    Where weights alone are quantised, one that two products read (CogView4's MLP, of text and of picture) would be
    decoded once for both, and these computed with what comes out: TensorRT-RTX 1.7.1 does so.
    """
    if product.is_convolution:
        return recipe.convolutions and FORMATS[recipe.format].convolutions is not None
    if recipe.format == "nvfp4":
        return product.rows % BLOCK == 0
    return FORMATS[recipe.format].activations or len(list(product.weight.uses())) == 1


class _Work:
    """One graph's pass."""

    def __init__(self, graph: ir.Graph, recipe: Recipe, ranges: Ranges | None, file: DataFile, made: Made) -> None:
        self._graph = graph
        self._recipe = recipe
        self._ranges = ranges
        self._file = file
        self._made = made
        self._edits: dict[str, list[Edit]] = {}
        self._weights: dict[str, tuple[ir.Value, Floats, Floats]] = {}

    def quantise(self, group: Sequence[Product]) -> None:
        """The products that read one tensor."""
        if not FORMATS[self._recipe.format].activations:
            for product in group:
                product.node.replace_input_with(1, self._weight(product, None, self._recipe.format)[0])
            return
        assert self._ranges is not None, "a format of activations has ranges"
        by = self._smoothing(group, self._ranges)
        seen = self._ranges.of(str(group[0].activation.name))
        forms: dict[NumberFormat, list[Product]] = {}
        for product in group:
            forms.setdefault(self._form(product), []).append(product)
        for form, members in forms.items():
            value, scale = self._activation(members[0], seen, by, form)
            for product in members:
                weight, noise, squares = self._weight(product, by, form)
                noise_power = _noise(seen, by, form, scale, noise, squares)
                self._made.snr_db[product.name] = _decibels(self._ranges.power(product.name), noise_power)
                product.node.replace_input_with(0, value)
                product.node.replace_input_with(1, weight)

    def keep_the_rest(self) -> None:
        """Take over every other initialiser, with the changes that smoothing made."""
        for name, value in list(self._graph.initializers.items()):
            if not value.uses():
                del self._graph.initializers[name]
            elif name in self._edits:
                assert value.dtype is not None
                changed = in_float32(value, self._edits).astype(value.dtype.numpy())
                value.const_value = self._file.put(name, changed, value.dtype).const_value
            else:
                self._file.keep(value)

    def _form(self, product: Product) -> NumberFormat:
        if product.is_convolution:
            return FORMATS[self._recipe.format].convolutions or self._recipe.format
        if self._recipe.format == "nvfp4" and product.name.rpartition(".")[2] in QKV:
            return "fp8"
        return self._recipe.format

    def _smoothing(self, group: Sequence[Product], ranges: Ranges) -> Floats | None:
        """s of a tensor, if what makes it can be divided by that."""
        strength = self._recipe.smoothing
        own = all(len(list(product.weight.uses())) == 1 and not product.is_convolution for product in group)
        parts = parts_of(group[0].activation, len(group)) if strength and own else None
        if parts is None:
            return None
        rows = np.max([np.abs(in_float32(product.weight, {})).max(axis=1) for product in group], axis=0)
        by = smoothing(ranges.of(str(group[0].activation.name)).peaks, rows, strength)
        for name, edits in edits_of(parts, by).items():
            self._edits.setdefault(name, []).extend(edits)
        self._made.smoothed += len(group)
        return by

    def _weight(self, product: Product, by: Floats | None, form: NumberFormat) -> tuple[ir.Value, Floats, Floats]:
        """A weight in few bits: what its codes stand for in the graph, its errors' and its own mean squares by channel.

        Of a convolution, those of all places under its kernel together.
        """
        name = str(product.weight.name)
        if name in self._weights:
            return self._weights[name]
        weight, kind = as_matrix(product, in_float32(product.weight, {})), product.weight.dtype
        assert kind is not None
        if not np.isfinite(weight).all():
            raise CalibrationError(
                f"weight {name} holds NaN or infinity, which has no code; check the checkpoint, and export it again"
            )
        if by is not None:
            weight *= by[:, None]
        coded = FORMATS[form].weights(weight, kind.numpy())
        value = self._decoding(product, coded, form, kind)
        errors = decoded(coded) - weight
        self._weights[name] = (value, _by_channel(product, errors), _by_channel(product, weight))
        return self._weights[name]

    def _decoding(self, product: Product, coded: Coded, form: NumberFormat, kind: ir.DataType) -> ir.Value:
        name = str(product.weight.name)
        codes = self._initialiser(f"{name}.codes", _as_weight(product, coded.codes), FORMATS[form].type)
        if form == "nvfp4":
            scales = self._initialiser(f"{name}.scales", coded.scales, ir.DataType.FLOAT8E4M3FN)
            wide = self._node("DequantizeLinear", [scales, self._whole(name, coded.whole)], f"{name}.scales/Decode")
            wide = self._cast(wide, kind)
            return self._node("DequantizeLinear", [codes, wide], f"{name}/Decode", axis=0, block_size=16)
        scales = self._initialiser(f"{name}.scales", coded.scales.astype(kind.numpy()), kind)
        if coded.scales.ndim:
            axis = 0 if product.is_convolution else 1
            return self._node("DequantizeLinear", [codes, scales], f"{name}/Decode", axis=axis)
        return self._node("DequantizeLinear", [codes, scales], f"{name}/Decode")

    def _activation(
        self, product: Product, seen: Seen, by: Floats | None, form: NumberFormat
    ) -> tuple[ir.Value, Scale]:
        """What is multiplied, by way of codes."""
        low, high = seen.within(self._recipe.share)
        if by is not None:
            low, high = float((seen.low / by).min()), float((seen.high / by).max())
        peak, kind = max(-low, high), product.weight.dtype
        assert kind is not None
        name = f"{product.name}.input.{form}"
        if form == "nvfp4":
            return self._dynamic_fp4(product.activation, peak, name, kind), Scale(peak)
        scale = fp8_scale(peak) if form == "fp8" else signed_scale(peak)
        if form == "int8" and self._recipe.unsigned:
            scale = unsigned_scale(low, high)
        codes = FORMATS[form].type if scale.zero == 0 and not self._recipe.unsigned else ir.DataType.UINT8
        return encode(self._graph, product.activation, scale, name, codes, kind), scale

    def _dynamic_fp4(self, value: ir.Value, peak: float, name: str, kind: ir.DataType) -> ir.Value:
        """Codes in blocks of 16 whose scales follow what comes; the scale of scales is fixed."""
        whole = self._whole(name, max(peak / (FP4_MOST * FP8_MOST), 1e-12))
        attributes = {"axis": -1, "block_size": 16, "scale_type": int(ir.DataType.FLOAT8E4M3FN)}
        node = ir.node(
            "TRT_FP4DynamicQuantize", [value, whole], attributes, domain=NVIDIA, num_outputs=2, name=f"{name}/Encode"
        )
        self._place(node)
        codes, scales = node.outputs
        codes.dtype, scales.dtype = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
        wide = self._cast(self._node("DequantizeLinear", [scales, whole], f"{name}.scales/Decode"), kind)
        return self._node("DequantizeLinear", [codes, wide], f"{name}/Decode", axis=-1, block_size=16)

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        if kind == ir.DataType.FLOAT:
            return value
        return self._node("Cast", [value], f"{value.name}/Cast", to=int(kind))

    def _whole(self, name: str, scale: float) -> ir.Value:
        return self._initialiser(f"{name}.whole", np.float32(scale), ir.DataType.FLOAT)

    def _initialiser(self, name: str, numbers: Any, dtype: ir.DataType) -> ir.Value:
        value = self._file.put(name, np.asarray(numbers), dtype)
        self._graph.initializers.add(value)
        return value

    def _node(self, operator: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=name)
        self._place(node)
        return node.outputs[0]

    def _place(self, node: ir.Node) -> None:
        place(self._graph, node)


def as_matrix(product: Product, weight: Floats) -> Floats:
    """A weight as (rows, columns); of a convolution, rows are channels by places."""
    return weight.reshape(product.columns, product.rows).T if product.is_convolution else weight


def _as_weight(product: Product, codes: Array) -> Array:
    """Codes in the shape that the graph's weight has."""
    assert product.weight.shape is not None
    return codes.T.reshape(product.weight.shape.numpy()) if product.is_convolution else codes


def _by_channel(product: Product, matrix: Floats) -> Floats:
    """Mean over the columns of a matrix' squares, summed over the places of each channel that comes in."""
    return np.square(matrix).mean(axis=1).reshape(product.channels, product.places).sum(axis=1)


def _noise(
    seen: Seen, by: Floats | None, form: NumberFormat, scale: Scale, weight_noise: Floats, weight_squares: Floats
) -> float:
    """Predicted mean square of what rounding adds to a product's result, as if rounding errors were independent.

    Rounding to steps makes a mean squared error of step^2 / 12 in what goes in; to a floating-point format, a share of
    its square. Errors of the weights are known, each for itself.
    """
    squares = seen.mean_squares if by is None else seen.mean_squares / np.square(by)
    if form == "int8":
        rounding = np.full(len(squares), scale.scale**2 / 12)
    else:
        rounding = squares * (FP8_NOISE if form == "fp8" else FP4_NOISE)
    return float((squares * weight_noise).sum() + (rounding * weight_squares).sum())


def _decibels(signal: float, noise: float) -> float:
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))


def encode(
    graph: ir.Graph, value: ir.Value, scale: Scale, name: str, codes: ir.DataType, kind: ir.DataType
) -> ir.Value:
    """A tensor by way of codes: QuantizeLinear and DequantizeLinear behind it.

    Args:
        graph: The graph.
        value: The tensor, of type `kind`.
        scale: How it is coded.
        name: Beginning of the new names.
        codes: Type of the codes.
        kind: Type of the tensor and of the scale.
    """
    size = scalar(graph, f"{name}.scale", scale.scale, kind)
    zero = scalar(graph, f"{name}.zero", scale.zero, codes)
    coded = ir.node("QuantizeLinear", [value, size, zero], name=f"{name}/Encode")
    place(graph, coded)
    coded.outputs[0].dtype = codes
    found = ir.node("DequantizeLinear", [coded.outputs[0], size, zero], name=f"{name}/Decode")
    place(graph, found)
    found.outputs[0].dtype = kind
    return found.outputs[0]


def scalar(graph: ir.Graph, name: str, number: float, dtype: ir.DataType) -> ir.Value:
    """A constant of one number."""
    tensor = ir.Tensor(np.asarray(number).astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=ir.Shape(()))
    graph.initializers.add(value)
    return value


def place(graph: ir.Graph, node: ir.Node) -> None:
    """Put a node behind what makes its inputs: behind the latest of the nodes it reads, or in front of all."""
    makers = [value.producer() for value in node.inputs if value is not None]
    real = [maker for maker in makers if maker is not None]
    if real:
        graph.insert_after(real[-1] if len(real) == 1 else max(real, key=_order(graph)), node)
    else:
        graph.insert_before(graph[0], node)
    node.outputs[0].name = node.name


def _order(graph: ir.Graph) -> Callable[[ir.Node], int]:
    places: Mapping[int, int] = {id(node): index for index, node in enumerate(graph)}
    return lambda node: places[id(node)]
