"""A copy of the step's graph that also says what goes through its products, in a few numbers.

Whole activations of a large network are gigabytes a step. So what is to be known of them is computed inside the graph,
by the engine that runs it: maximum, minimum and mean square of every channel, and some whole rows for the histogram.
What comes out has the same shape whatever the size of the picture, which is why token counts may differ from stage to
stage.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lssgen.bundle import Bundle, sha256_of
from lssgen.calibration.products import Product, shared
from lssgen.manifest import Graph
from lssgen.ports import Port

ROWS = 64
"""Rows (tokens) of every activation that are looked at for its histogram, spread evenly over it; the rest counts for
ranges and mean squares."""

KINDS = ("low", "high", "square", "rows")
"""Numbers that a tap says: minimum, maximum and mean square of every channel, and whole rows."""


@dataclass(frozen=True, slots=True)
class Tap:
    """A tensor that is listened to.

    Attributes:
        tensor: Name of the tensor in the graph: what comes into products.
        products: Names of the products that read it.
        channels: Number of its channels: size of its last axis, of what a convolution reads the second.
    """

    tensor: str
    products: tuple[str, ...]
    channels: int

    def port(self, kind: str) -> Port:
        """The output that says one kind of number."""
        shape = (ROWS, self.channels) if kind == "rows" else (self.channels,)
        return Port(f"tap.{kind}.{self.tensor}", "float32", shape)

    @property
    def label(self) -> str:
        """Name for messages."""
        return self.products[0] if self.products else self.tensor

    @property
    def power(self) -> tuple[Port, ...]:
        """The outputs that say the mean square of each product's result."""
        return tuple(Port(f"tap.power.{product}", "float32", (1,)) for product in self.products)

    @property
    def ports(self) -> tuple[Port, ...]:
        """All of its outputs."""
        return (*(self.port(kind) for kind in KINDS), *self.power)


def taps_of(products: Sequence[Product]) -> tuple[Tap, ...]:
    """What to listen to, each tensor once."""
    return tuple(
        Tap(tensor, tuple(dict.fromkeys(product.name for product in readers)), readers[0].channels)
        for tensor, readers in shared(products).items()
    )


def add_taps(model: ir.Model, products: Sequence[Product]) -> tuple[Tap, ...]:
    """Give a graph the outputs of its taps: at what goes into its products and its attentions."""
    taps = taps_of(products)
    known = {product.name: product for product in products}
    for tap in taps:
        first = known[tap.products[0]]
        _add(model.graph, tap, _channels_last(model.graph, first) if first.is_convolution else first.activation)
        for port, product in zip(tap.power, tap.products, strict=True):
            _say(model.graph, _reduced(model.graph, "square", known[product].node.outputs[0], whole=True), port)
    return (*taps, *_attention_taps(model.graph, {tap.tensor for tap in taps}))


def _attention_taps(graph: ir.Graph, known: set[str]) -> Iterator[Tap]:
    """Q, K and V, (batch, heads, tokens, size of a head), as if they had one channel: they have one range."""
    values = (value for node in list(graph) if node.op_type == "Attention" for value in node.inputs[:3])
    for value in dict.fromkeys(value for value in values if value is not None):
        if value.name not in known:
            tap = Tap(str(value.name), (), 1)
            _add(graph, tap, value)
            yield tap


def _add(graph: ir.Graph, tap: Tap, value: ir.Value) -> None:
    for kind in KINDS:
        made = _rows(graph, value, tap) if kind == "rows" else _reduced(graph, kind, _flat(graph, value, tap))
        _say(graph, made, tap.port(kind))


def _channels_last(graph: ir.Graph, product: Product) -> ir.Value:
    return _node(graph, "Transpose", [product.activation], perm=(0, 2, 3, 1))


def _flat(graph: ir.Graph, value: ir.Value, tap: Tap) -> ir.Value:
    """(..., channels) -> (rows, channels) float32."""
    wide = _node(graph, "Cast", [value], to=int(ir.DataType.FLOAT))
    return _node(graph, "Reshape", [wide, _constant(graph, [-1, tap.channels])])


def _reduced(graph: ir.Graph, kind: str, value: ir.Value, *, whole: bool = False) -> ir.Value:
    if whole:
        value = _node(
            graph, "Reshape", [_node(graph, "Cast", [value], to=int(ir.DataType.FLOAT)), _constant(graph, [-1, 1])]
        )
    if kind == "square":
        value = _node(graph, "Mul", [value, value])
    operator = {"low": "ReduceMin", "high": "ReduceMax", "square": "ReduceMean"}[kind]
    return _node(graph, operator, [value, _constant(graph, [0])], keepdims=0)


def _rows(graph: ir.Graph, value: ir.Value, tap: Tap) -> ir.Value:
    """Some rows, evenly spread: row floor(i * count / ROWS) for every i; some come twice where there are fewer."""
    flat = _flat(graph, value, tap)
    count = _node(graph, "Shape", [flat], start=0, end=1)
    steps = _node(graph, "Mul", [_constant(graph, list(range(ROWS))), count])
    return _node(graph, "Gather", [flat, _node(graph, "Div", [steps, _constant(graph, [ROWS])])], axis=0)


def _say(graph: ir.Graph, value: ir.Value, port: Port) -> None:
    value.name = port.name
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(port.shape)
    graph.outputs.append(value)


def _node(graph: ir.Graph, operator: str, inputs: Sequence[ir.Value], **attributes: int | tuple[int, ...]) -> ir.Value:
    node = ir.node(operator, inputs, attributes)
    graph.append(node)
    return node.outputs[0]


def _constant(graph: ir.Graph, numbers: Sequence[int]) -> ir.Value:
    name = "tap." + "_".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.Tensor(np.asarray(numbers, np.int64), name=name)
        graph.initializers.add(
            ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        )
    return graph.initializers[name]


def tapped_bundle(
    bundle: Bundle, products: Sequence[Product], model: ir.Model, folder: Path
) -> tuple[Bundle, tuple[Tap, ...]]:
    """A bundle whose step has taps, in a folder of its own; its weights are those of the real one.

    Raises:
        OSError: The folder cannot be written.
    """
    step = bundle.manifest.graphs["step"]
    taps = add_taps(model, products)
    folder.mkdir(parents=True, exist_ok=True)
    for graph in bundle.manifest.graphs.values():
        for name in (graph.file, *graph.data):
            if name != step.file:
                borrow(bundle.path(name), folder / name)
    for tokens in bundle.manifest.tokenizers:
        borrow(bundle.path(tokens.file), folder / tokens.file)
    ir.save(model, folder / step.file)
    ports = (*step.outputs, *(port for tap in taps for port in tap.ports))
    # Compiled engines are found by these hashes, and one without taps is another engine.
    sha256 = {**step.sha256, step.file: sha256_of(folder / step.file)}
    graphs: Mapping[str, Graph] = {**bundle.manifest.graphs, "step": replace(step, outputs=ports, sha256=sha256)}
    return Bundle(folder, replace(bundle.manifest, graphs=graphs)), taps


def borrow(source: Path, target: Path) -> None:
    """Have a file in another folder without copying it, where the disk allows that. ONNX Runtime follows no link."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source.resolve(), target)
        return
    shutil.copyfile(source, target)  # a piece at a time: weights may be larger than memory
