"""A quantised bundle as ONNX Runtime on a CPU can compute it: the same rounding, by other operators.

int8 and fp8 it has; what NVFP4 is made of it has not. There, codes of weights are decoded beforehand, and activations
are rounded to blocks of codes by ordinary arithmetic. Slow, and only for comparisons.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lssgen.bundle import MANIFEST, Bundle, files, manifest_json, sha256_of
from lssgen.calibration.insertion import place, scalar
from lssgen.calibration.numbers import BLOCK, FP4_MOST, FP8_MOST, Coded, decoded
from lssgen.calibration.products import given
from lssgen.calibration.storage import DataFile
from lssgen.calibration.taps import borrow
from lssgen.engines.base import Backend

FP4, FP8, WIDE = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT


@contextmanager
def rehearsed(bundle: Bundle, backend: Backend) -> Generator[Bundle]:
    """A bundle that the backend can run and that computes the same: itself, where it can."""
    step = bundle.manifest.graphs["step"]
    if step.quantisation is None or step.quantisation.format != "nvfp4" or not backend.name.startswith("onnxruntime"):
        yield bundle
        return
    # Within it: a kill leaves nothing beside a draft that the next writer of its place would not remove.
    with TemporaryDirectory(prefix=".rehearsal-", dir=bundle.folder) as name:
        folder = Path(name)
        model = ir.load(bundle.path(step.file))
        with DataFile(folder / "rehearsal.data") as data:
            rehearse(model, data)
        ir.save(model, folder / step.file)
        for file in files(bundle.manifest):  # last: onnx-ir does not read files that have two names
            if file != step.file:
                borrow(bundle.path(file), folder / file)
        hashes = {**step.sha256, step.file: sha256_of(folder / step.file), "rehearsal.data": data.sha256}
        changed = replace(step, data=(*step.data, "rehearsal.data"), sha256=hashes)
        manifest = replace(bundle.manifest, graphs={**bundle.manifest.graphs, "step": changed})
        (folder / MANIFEST).write_bytes(manifest_json(manifest))
        yield Bundle(folder, manifest)


def rehearse(model: ir.Model, data: DataFile) -> None:
    """Replace what ONNX Runtime lacks in a graph."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "TRT_FP4DynamicQuantize":
            _round_activation(graph, node)
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and given(node, 0).dtype == FP4 and given(node, 0).is_initializer():
            _decode_weight(graph, node, data)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _decode_weight(graph: ir.Graph, node: ir.Node, data: DataFile) -> None:
    """A weight's codes, decoded now; two of them are in a byte."""
    codes, wide = given(node, 0), given(node, 1)
    maker = wide.producer()
    chain = [node]
    while maker is not None and maker.op_type == "Cast":
        chain.append(maker)
        maker = given(maker, 0).producer()
    assert maker is not None
    chain.append(maker)
    tensors = [value.const_value for value in (codes, given(maker, 0), given(maker, 1))]
    numbers, scales, whole = (tensor.numpy() for tensor in tensors if tensor is not None)
    coded = Coded(numbers.astype(ml_dtypes.float4_e2m1fn), scales, float(whole))
    kind = _kind_of(node)
    value = data.put(f"{codes.name}.decoded", decoded(coded).astype(kind.numpy()), kind)
    graph.initializers.add(value)
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    for one in chain:
        if not any(output.uses() for output in one.outputs):
            graph.remove(one, safe=True)


def _kind_of(node: ir.Node) -> ir.DataType:
    """Type that a block of codes is decoded to: that of its scales, which is float32 or what these are cast to."""
    maker = given(node, 1).producer()
    return ir.DataType(maker.attributes["to"].as_int()) if maker is not None and maker.op_type == "Cast" else WIDE


def _round_activation(graph: ir.Graph, node: ir.Node) -> None:
    """x rounded to E2M1 in blocks of 16 along the last axis, with scales in E4M3 that follow what comes."""
    name, source, whole = str(node.name), given(node, 0), given(node, 1)
    (codes, scales) = node.outputs
    (last,) = (use.node for use in codes.uses())
    kind = _kind_of(last)

    def make(operator: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        made = ir.node(operator, inputs, attributes, name=f"{name}.{len(graph)}")
        place(graph, made)
        return made.outputs[0]

    def number(value: float) -> ir.Value:
        return (
            scalar(graph, f"{name}.{value}", value, WIDE)
            if f"{name}.{value}" not in graph.initializers
            else (graph.initializers[f"{name}.{value}"])
        )

    def sizes(word: str, values: list[int]) -> ir.Value:
        tensor = ir.Tensor(np.asarray(values, np.int64), name=f"{name}.{word}")
        found = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)
        graph.initializers.add(found)
        return found

    wide = make("Cast", [source], to=int(WIDE))
    blocks = make("Reshape", [wide, sizes("blocks", [-1, BLOCK])])
    peak = make("ReduceMax", [make("Abs", [blocks]), sizes("axis", [1])])
    scaled = make("Div", [make("Div", [peak, number(FP4_MOST)]), whole])
    clipped = make("Min", [scaled, number(FP8_MOST)])
    coarse = make("Cast", [make("Cast", [clipped], to=int(FP8))], to=int(WIDE))
    unit = make("Max", [make("Mul", [coarse, whole]), number(1e-12)])
    value = make("Div", [blocks, unit])
    size = make("Min", [make("Abs", [value]), number(FP4_MOST)])
    fine = make("Div", [make("Round", [make("Mul", [size, number(2.0)])]), number(2.0)])
    middle = make("Round", [size])
    large = make("Mul", [make("Round", [make("Div", [size, number(2.0)])]), number(2.0)])
    rounded = make(
        "Where",
        [make("Less", [size, number(2.0)]), fine, make("Where", [make("Less", [size, number(4.0)]), middle, large])],
    )
    signed = make("Mul", [make("Mul", [rounded, make("Sign", [value])]), unit])
    result = make("Cast", [make("Reshape", [signed, make("Shape", [source])])], to=int(kind))
    ir.convenience.replace_all_uses_with(last.outputs[0], result)
    decoding = [use.node for use in scales.uses()]
    graph.remove(last, safe=True)
    while decoding:
        one = decoding.pop()
        decoding += [use.node for output in one.outputs for use in output.uses()]
        if one.op_type in ("Cast", "DequantizeLinear") and not any(output.uses() for output in one.outputs):
            graph.remove(one, safe=True)
    for one in [use.node for use in scales.uses()]:
        graph.remove(one, safe=True)
    graph.remove(node, safe=True)
