"""The products of a graph that may be computed in few bits: found by the family's record, in the order they run.

A convolution is one too: of the numbers under its kernel, (channels * places), with a weight (channels * places, out).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from lssgen.errors import CalibrationError
from lssgen.models.quantisation import Sensitivity

QUANTISERS = frozenset(("QuantizeLinear", "DequantizeLinear", "TRT_FP4DynamicQuantize", "DynamicQuantizeLinear"))
"""Operators whose presence says that a graph is quantised."""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product with a weight, or a convolution.

    Attributes:
        name: Name of the weight without ".weight", which is that of the layer in the checkpoint; with a number where
            several products have one weight.
        node: Node that computes it, a MatMul or a Conv.
        block: Name of the block that it belongs to.
        rows, columns: Shape of the weight as a matrix: numbers that come in, for one that goes out, and channels out.
        places: Number of places under a convolution's kernel; 1 for a matrix product.
    """

    name: str
    node: ir.Node
    block: str
    rows: int
    columns: int
    places: int = 1

    @property
    def is_convolution(self) -> bool:
        return self.node.op_type == "Conv"

    @property
    def channels(self) -> int:
        """Number of channels that come in."""
        return self.rows // self.places

    @property
    def activation(self) -> ir.Value:
        """(..., channels) tensor that is multiplied; of a convolution (n, channels, height, width)."""
        return given(self.node, 0)

    @property
    def weight(self) -> ir.Value:
        """(rows, columns) initialiser; of a convolution (columns, channels, height, width)."""
        return given(self.node, 1)


def given(node: ir.Node, index: int) -> ir.Value:
    """An input of a node that must be there."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
    return value


def products_of(model: ir.Model, sensitivity: Sensitivity) -> list[Product]:
    """Every product that the family's record does not keep in high precision, blocks at the ends included.

    Raises:
        CalibrationError: There is none: the graph is not one of this family, or was changed.
    """
    found: list[Product] = []
    for node in model.graph:
        if (product := _product(node, sensitivity)) is not None:
            again = sum(product.weight is other.weight for other in found)
            found.append(replace(product, name=f"{product.name}#{again + 1}") if again else product)
    if not found:
        raise CalibrationError(
            "no product in the step's graph is one that the family's record names; export the model again with this "
            "lssgen, or adopt a graph that another tool has quantised: lssgen calibrate adopt"
        )
    return found


def _product(node: ir.Node, sensitivity: Sensitivity) -> Product | None:
    if not _is_product(node) or (weight := node.inputs[1]) is None or not weight.is_initializer():
        return None
    name = weight.name or ""
    block = sensitivity.block.match(name)
    if block is None or not sensitivity.products.match(name[block.end() :]) or weight.shape is None:
        return None
    first, second, *kernel = (int(size) for size in weight.shape.numpy())
    places = prod(kernel)
    rows, columns = (second * places, first) if node.op_type == "Conv" else (first, second)
    return Product(name.removesuffix(".weight"), node, block[0], rows, columns, places)


def _is_product(node: ir.Node) -> bool:
    """Whether a node is a matrix product, or a convolution of all channels together."""
    if node.op_type != "Conv":
        return node.op_type == "MatMul"
    group = node.attributes.get("group")
    return group is None or group.as_int() == 1


def ends_of(products: Sequence[Product], sensitivity: Sensitivity, ends: int | None) -> frozenset[str]:
    """Blocks at either end of the network, which stay as they are.

    Args:
        products: All, in the order in which they run.
        sensitivity: The family's record.
        ends: How many at either end; None: as many as the record says.
    """
    blocks = list(dict.fromkeys(product.block for product in products))
    kept = sensitivity.ends_of(len(blocks)) if ends is None else ends
    return frozenset(blocks[:kept] + blocks[len(blocks) - kept :])


def is_quantised(model: ir.Model) -> bool:
    """Whether a graph has nodes that quantise."""
    return any(node.op_type in QUANTISERS for node in model.graph.all_nodes())


def shared(products: Sequence[Product]) -> Mapping[str, tuple[Product, ...]]:
    """The products that read the same tensor, by its name: Q, K and V of an attention do."""
    found: dict[str, tuple[Product, ...]] = {}
    for product in products:
        name = str(product.activation.name)
        found[name] = (*found.get(name, ()), product)
    return found
