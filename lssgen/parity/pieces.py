"""A graph on disk, computed piece by piece in ONNX Runtime: any size of model in the memory of a few of its layers.

The CPU does not compute in half precision: ONNX Runtime puts float32 in its place, keeps it from one node to the next,
and so never sees an overflow that a GPU would. Here every node of a float16 or bfloat16 graph is computed in float32,
and if asked its result is rounded to the type it has in the graph, which is what a GPU does whose kernels accumulate in
float32.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from lssgen.errors import ProbeError
from lssgen.ort import ort
from lssgen.ports import Array

PIECE_BYTES = 1 << 27
"""Weights of one piece, in float32, unless a single node has more."""

HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

# fmt: off
MOVES = frozenset((
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
))
# fmt: on
"""Operators whose results are numbers that they were given: nothing to round."""

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Piece:
    """Some consecutive nodes.

    Attributes:
        model: The nodes, with weights as inputs.
        weights: Names of those inputs.
        live: Names of the other inputs.
        outputs: Names of the values that later pieces, or the caller, will read.
        last: Values that nobody reads afterwards.
    """

    model: bytes
    weights: tuple[str, ...]
    live: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True)
class PiecewiseGraph:
    """A graph whose weights stay on disk.

    Attributes:
        pieces: Pieces in the order in which they run.
        outputs: Names of the graph's outputs.
        weights: Place of each weight, by name.
        threads: CPU threads for each piece; 0: as many as there are.
    """

    pieces: tuple[Piece, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, ir.ExternalTensor]
    threads: int

    def run(self, feeds: Arrays) -> dict[str, Array]:
        """Evaluate the graph: every output, by name.

        Raises:
            ProbeError: ONNX Runtime refuses a piece.
        """
        live = dict(feeds)
        for piece in self.pieces:
            given = {name: live[name] for name in piece.live}
            given |= {name: in_float32(self.weights[name]) for name in piece.weights}
            # Sessions hold no weights, but threads and kernels: hundreds of them would be gigabytes.
            made = session(piece.model, self.threads).run(list(piece.outputs), given)
            live |= {name: np.asarray(value) for name, value in zip(piece.outputs, made, strict=True)}
            for name in piece.last:
                del live[name]
        return {name: live[name] for name in self.outputs}


def open_pieces(
    path: Path, *, threads: int = 0, rounded: bool = True, piece_bytes: int = PIECE_BYTES
) -> PiecewiseGraph:
    """Cut a graph into pieces.

    Args:
        path: The ONNX file, its weights beside it. Nodes are sorted and have no subgraphs, as exported ones are.
        threads: CPU threads; 0: as many as there are.
        rounded: Round results to their types in the graph. Not: they stay float32, which is what it should compute.
        piece_bytes: Weights of one piece, in float32.

    Raises:
        ProbeError: The graph's types do not fit together.
    """
    model = ir.load(path)
    weights: dict[str, ir.ExternalTensor] = {}
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            weights[name] = value.const_value
            model.graph.inputs.append(model.graph.initializers.pop(name))
            # An input, now: a piece is given its weights when it runs, and its model holds none.
            value.const_value = None
    model = _with_types(model, path.name)
    compute_in_float32(model, rounded=rounded)
    proto = ir.serde.serialize_model(model)
    outputs = tuple(value.name for value in proto.graph.output)
    sizes = {name: 4 * tensor.size for name, tensor in weights.items()}
    slices = list(_slices(proto.graph.node, sizes, piece_bytes))
    readers = _last_readers(slices, outputs)
    known = {
        value.name: value for value in itertools.chain(proto.graph.input, proto.graph.value_info, proto.graph.output)
    }
    inline = {tensor.name: tensor for tensor in proto.graph.initializer}

    def piece(at: int, nodes: Sequence[onnx.NodeProto]) -> Piece:
        # Empty names are optional inputs and outputs that a node does without.
        made = dict.fromkeys(name for node in nodes for name in node.output if name)
        read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
        own = tuple(name for name in read if name in weights)
        live = tuple(name for name in read if name not in weights and name not in inline)
        leaving = tuple(name for name in made if readers.get(name, at) > at)
        graph = helper.make_graph(
            nodes,
            f"piece {at}",
            [known[name] for name in (*live, *own)],
            [known[name] for name in leaving],
            [inline[name] for name in read if name in inline],
        )
        return Piece(
            model=helper.make_model(
                graph, opset_imports=proto.opset_import, ir_version=proto.ir_version
            ).SerializeToString(),
            weights=own,
            live=live,
            outputs=leaving,
            last=tuple(name for name in live if readers[name] == at),
        )

    pieces = tuple(piece(at, nodes) for at, nodes in enumerate(slices))
    return PiecewiseGraph(pieces, outputs, weights, threads)


def session(model: bytes | Path, threads: int) -> ort.InferenceSession:
    """A graph in ONNX Runtime on the CPU.

    Raises:
        ProbeError: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # pieces would each keep the memory of their largest tensors
    try:
        source = str(model) if isinstance(model, Path) else model
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
        name = model.name if isinstance(model, Path) else "a piece of the graph"
        raise ProbeError(f"ONNX Runtime refuses {name}: {error}") from error


def in_float32(stored: ir.ExternalTensor) -> Array:
    """A weight from the file, half precision widened. Read and not mapped, so that its memory is given back."""
    data = np.fromfile(stored.path, np.uint8, stored.nbytes, offset=stored.offset or 0)
    if stored.dtype == ir.DataType.BFLOAT16:  # the upper half of a float32
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(stored.shape.numpy())
    value = data.view(stored.dtype.numpy()).reshape(stored.shape.numpy())
    return value.astype(np.float32) if stored.dtype in HALF else value


def compute_in_float32(model: ir.Model, *, rounded: bool) -> None:
    """Give a half-precision graph float32 types, and perhaps the roundings that its own types meant."""
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype in HALF:
            value.dtype = ir.DataType.FLOAT
            if value.const_value is not None:
                value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in list(model.graph):
        for value in node.outputs:
            kind = value.dtype
            if kind is not None and kind in HALF:
                value.dtype = ir.DataType.FLOAT
                if rounded and node.op_type not in MOVES:
                    _round(model.graph, node, value, kind)
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.INT and name in ("to", "dtype", "stash_type"):
                if attribute.as_int() in HALF:
                    node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in HALF:
                node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.as_tensor().numpy().astype(np.float32)))


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, kind: ir.DataType) -> None:
    """Through `kind` and back; ONNX Runtime keeps a pair of casts that loses something."""
    low = ir.node("Cast", [value], {"to": kind})
    wide = ir.node("Cast", [low.outputs[0]], {"to": ir.DataType.FLOAT})
    low.outputs[0].dtype, wide.outputs[0].dtype = kind, ir.DataType.FLOAT
    ir.convenience.replace_all_uses_with(value, wide.outputs[0], replace_graph_outputs=True)
    # The replacement has also put the rounded value in the place of what is to be rounded.
    low.replace_input_with(0, value)
    graph.insert_after(node, [low, wide])


def _with_types(model: ir.Model, name: str) -> ir.Model:
    """The graph with the type of every value; those of the real graph must fit, which float32 would not show."""
    proto = ir.serde.serialize_model(model)
    try:
        onnx.checker.check_model(proto)
        return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ProbeError(f"{name} is not a valid graph: {error}") from error


def _slices(nodes: Sequence[onnx.NodeProto], sizes: Mapping[str, int], limit: int) -> Iterator[list[onnx.NodeProto]]:
    held: list[onnx.NodeProto] = []
    total = 0
    for node in nodes:
        more = sum(sizes.get(name, 0) for name in node.input)
        # Nodes without weights stay with the piece before them, whatever it holds: they cost nothing there.
        if held and more and total + more > limit:
            yield held
            held, total = [], 0
        held.append(node)
        total += more
    yield held


def _last_readers(slices: Sequence[Sequence[onnx.NodeProto]], needed: Sequence[str]) -> dict[str, int]:
    """The last piece that reads a value; one behind the last for what the caller reads."""
    readers = {name: at for at, nodes in enumerate(slices) for node in nodes for name in node.input}
    return readers | dict.fromkeys(needed, len(slices))
