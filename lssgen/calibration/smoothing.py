"""SmoothQuant: what is hard to quantise in activations moves into the weights, by the norm in front of a product.

The network stays the same function: with X = norm(x) * (1 + scale) + shift, and Y = X W,

    Y = (X / s) (s W),    s_j = max|X_j|^a / max|W_j|^(1 - a)

1 / s goes into what makes scale and shift (rows of a modulation's product), or into a norm's own weight and bias. What
does not come from a norm is left as it is. Source: Xiao et al. 2023, arXiv:2211.10438.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lssgen.calibration.numbers import Floats
from lssgen.calibration.products import given

WIDEST = 100.0
"""Largest factor by which a channel is moved, and 1 / it the smallest: half precision must hold what comes out."""


@dataclass(frozen=True, slots=True)
class Part:
    """Numbers of an initialiser that make a channel of a product's input.

    Attributes:
        name: Name of the initialiser.
        first: First of its rows; there is one for each channel.
        is_gain: True where 1 is added to what they make.
    """

    name: str
    first: int = 0
    is_gain: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of an initialiser: some rows divided by s.

    Attributes:
        first: First of the rows.
        by: s, a number for each row.
        plus_one: True where the rows stand for 1 more than they are.
    """

    first: int
    by: Floats
    plus_one: bool

    def apply(self, value: Floats) -> None:
        """Change an array in place."""
        rows = value[self.first : self.first + len(self.by)]
        by = self.by.reshape(-1, *(1,) * (value.ndim - 1))
        rows[...] = (rows + 1) / by - 1 if self.plus_one else rows / by


def parts_of(value: ir.Value, readers: int) -> tuple[Part, ...] | None:
    """What makes the channels of a tensor, if s can go there; None: it cannot.

    Args:
        value: A product's input.
        readers: Number of nodes that may read it: products, all of which multiply by s.
    """
    node = value.producer()
    if node is None or len(list(value.uses())) != readers or value.is_graph_output():
        return None
    if node.op_type == "LayerNormalization":
        return _norm_parts(node)
    if node.op_type == "Concat" and node.attributes["axis"].as_int() not in (-1, 2):
        each = [parts_of(given(node, index), 1) for index in range(len(node.inputs))]
        return None if any(parts is None for parts in each) else tuple(p for parts in each if parts for p in parts)
    return _modulated_parts(node) if node.op_type == "Add" else None


def _norm_parts(node: ir.Node) -> tuple[Part, ...] | None:
    """A norm's own weight and bias, where nothing else reads them."""
    values = [value for value in node.inputs[1:] if value is not None]
    own = all(value.is_initializer() and len(list(value.uses())) == 1 for value in values)
    return tuple(Part(str(value.name)) for value in values) if own else None


def _modulated_parts(node: ir.Node) -> tuple[Part, ...] | None:
    """norm * (1 + scale) + shift, as every adaptive norm is exported."""
    for product, shift in ((0, 1), (1, 0)):
        scaled, moved = given(node, product).producer(), _modulation(given(node, shift))
        if scaled is None or scaled.op_type != "Mul" or moved is None or not _alone(scaled.outputs[0]):
            continue
        for index in (0, 1):
            gain = _gain(given(scaled, index))
            if gain is not None:
                return (*gain, *moved)
    return None


def _gain(value: ir.Value) -> tuple[Part, ...] | None:
    """1 + scale."""
    node = value.producer()
    if node is None or node.op_type != "Add" or not _alone(value):
        return None
    for index in (0, 1):
        one, scale = given(node, 1 - index), _modulation(given(node, index))
        if scale is not None and _is_one(one):
            return tuple(Part(part.name, part.first, is_gain=part.is_gain) for part in _marked(scale))
    return None


def _marked(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The weight's rows stand for themselves; the bias, to which 1 is added, for 1 more."""
    weight, bias = parts
    return weight, Part(bias.name, bias.first, is_gain=True)


def _modulation(value: ir.Value) -> tuple[Part, Part] | None:
    """A chunk of what a modulation's product gives, (n, 1, channels): rows of its weight and of its bias."""
    lifted = value.producer()
    if lifted is None or lifted.op_type != "Unsqueeze" or not _alone(value):
        return None
    chunk = given(lifted, 0)
    split = chunk.producer()
    if split is None or split.op_type != "Split" or not _alone(chunk):
        return None
    gemm = given(split, 0).producer()
    if gemm is None or gemm.op_type != "Gemm" or len(gemm.inputs) != 3 or gemm.attributes["transB"].as_int() != 1:
        return None
    weight, bias = given(gemm, 1), given(gemm, 2)
    if not all(one.is_initializer() and len(list(one.uses())) == 1 and one.shape for one in (weight, bias)):
        return None
    assert weight.shape is not None
    channels = int(weight.shape.numpy()[0]) // len(split.outputs)
    first = channels * list(split.outputs).index(chunk)
    return Part(str(weight.name), first), Part(str(bias.name), first)


def _alone(value: ir.Value) -> bool:
    """Whether one node reads it, once."""
    return len(list(value.uses())) == 1


def _is_one(value: ir.Value) -> bool:
    constant = value.const_value
    return constant is not None and constant.size == 1 and float(constant.numpy().reshape(())) == 1.0


def smoothing(peaks: Floats, weights: Floats, strength: float) -> Floats:
    """s, a number a channel.

    Args:
        peaks: Largest magnitude of every channel of the input.
        weights: Largest magnitude in every row of the products' weights.
        strength: a, in [0, 1]: 0 moves nothing that the weights do not ask for, 1 all of it.
    """
    made = np.maximum(peaks, 1e-5) ** strength / np.maximum(weights, 1e-5) ** (1 - strength)
    return np.clip(made / np.exp(np.mean(np.log(made))), 1 / WIDEST, WIDEST).astype(np.float32)


def edits_of(parts: Sequence[Part], by: Floats) -> Mapping[str, list[Edit]]:
    """The changes that divide a tensor's channels by s, by name of the initialiser."""
    found: dict[str, list[Edit]] = {}
    for part in parts:
        found.setdefault(part.name, []).append(Edit(part.first, by, part.is_gain))
    return found
