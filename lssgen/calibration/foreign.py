"""What another tool's graph must be to take the place of a bundle's step."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir

from lssgen.bundle import Bundle
from lssgen.errors import CalibrationError
from lssgen.manifest import NumberFormat
from lssgen.ports import Port
from lssgen.soundness import leaves

FORMATS_BY_CODES: Sequence[tuple[ir.DataType, NumberFormat]] = (
    (ir.DataType.FLOAT4E2M1, "nvfp4"),
    (ir.DataType.FLOAT8E4M3FN, "fp8"),
    (ir.DataType.INT8, "int8"),
)
"""Formats by the type of a graph's codes; where several are there, the first of these."""

_CODES = frozenset(kind for kind, _ in FORMATS_BY_CODES) | {ir.DataType.UINT8, ir.DataType.INT32}
"""Types of codes that a format here has; biases of int8 products are int32."""


def see_adoptable(bundle: Bundle, graph: Path, model: ir.Model) -> None:
    """See that a graph has the ports of a bundle's step, and weights, codes and scales that do.

    Args:
        bundle: Bundle whose step it is to be.
        graph: Its file, for messages.
        model: What is in it.

    Raises:
        CalibrationError: Says what does not do, and what to do.
    """
    _see_ports(bundle, graph, model)
    _see_sizes(bundle, graph, model)
    _see_data(graph, model)
    _see_codes(graph, model)
    _see_scales(graph, model)
    _see_channels(graph, model)


def see_sound(graph: Path, copy: Path) -> None:
    """See that a graph is one by ONNX's own rules: where nothing is compared and no engine runs, nobody else does.

    Args:
        graph: Its file, for messages.
        copy: The file to look at, whose weights are there.

    Raises:
        CalibrationError: What ONNX's checker says.
    """
    try:
        onnx.checker.check_model(copy, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CalibrationError(
            f"{graph} is not a sound ONNX graph ({reason}); let the tool write it again, or update the tool"
        ) from error


def _see_ports(bundle: Bundle, graph: Path, model: ir.Model) -> None:
    step = bundle.manifest.graphs["step"]
    for what, ports, values in (
        ("inputs", step.inputs, model.graph.inputs),
        ("outputs", step.outputs, model.graph.outputs),
    ):
        wanted, found = {_said(port) for port in ports}, {_port(value) for value in values}
        if wanted != found:
            odd = sorted(wanted ^ found)
            raise CalibrationError(
                f"{graph} has other {what} than the step of {bundle.folder} ({', '.join(odd)[:200]}); give the tool "
                f"{step.file} of this bundle, and keep the types of its inputs and outputs"
            )


def _see_sizes(bundle: Bundle, graph: Path, model: ir.Model) -> None:
    """See that inputs take what the bundle's step takes: some tools fix the sizes that they were shown."""
    ports = {port.name: port for port in bundle.manifest.graphs["step"].inputs}
    for value in model.graph.inputs:
        wanted, found = ports[str(value.name)], tuple(value.shape or ())
        if any(isinstance(size, int) and size != axis for size, axis in zip(found, wanted.shape, strict=True)):
            said = ", ".join(map(str, found))
            raise CalibrationError(
                f"{graph} takes {value.name} as ({said}), and the step of {bundle.folder} takes {wanted}; let the tool "
                "leave sizes open, and give it the step of this bundle"
            )


def _see_data(graph: Path, model: ir.Model) -> None:
    """See that weights lie in the graph's own folder: others would be copied into the bundle."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and leaves(str(tensor.location)):
            raise CalibrationError(
                f"{graph} says that weights are in {tensor.location}, which is not in its own folder; put them there"
            )


def _see_codes(graph: Path, model: ir.Model) -> None:
    """See that codes are of types that a format has, so that the manifest can say what is in the graph."""
    kinds = {value.dtype for value in decoded_by(model) if value.dtype is not None}
    if odd := sorted(kind.name for kind in kinds - _CODES):
        raise CalibrationError(
            f"{graph} has codes of {', '.join(odd)}, of which no format is made; let the tool take one of "
            f"{', '.join(get_args(NumberFormat))}"
        )


def _see_scales(graph: Path, model: ir.Model) -> None:
    """See that scales are numbers that can be divided by, one for all or one for each channel."""
    for node in model.graph.all_nodes():
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or (scale := node.inputs[1]) is None:
            continue
        if scale.const_value is None:
            continue
        numbers = scale.const_value.numpy().astype(np.float32)
        if not np.isfinite(numbers).all() or (node.op_type == "QuantizeLinear" and not (numbers > 0).all()):
            raise CalibrationError(
                f"{graph} has scales of zero, NaN or infinity in {node.name}; let the tool write it again"
            )
        if numbers.ndim == 1 and not _fits(node, len(numbers)):
            raise CalibrationError(
                f"{graph} has {len(numbers)} scales along an axis of another length in {node.name}; let the tool write "
                "it again"
            )


def _see_channels(graph: Path, model: ir.Model) -> None:
    """See that a weight's scales are those of the channels that go out of its product.

    No engine multiplies codes whose scales change along what is summed over, and ONNX Runtime 1.31.1, which does not
    look at the axis when it fuses, takes those of a square weight for those of the other axis.
    """
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        maker = weight.producer() if weight is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or "block_size" in maker.attributes:
            continue
        scale, out = maker.inputs[1], _axis_out(node, maker.inputs[0])
        if out is None or scale is None or scale.shape is None or len(scale.shape) != 1 or scale.shape[0] == 1:
            continue
        if _axis(maker) not in out:
            raise CalibrationError(
                f"{graph} has scales along axis {_axis(maker)} of the weight of {node.name}, which is summed over; let "
                "the tool write one for each channel that goes out"
            )


def _axis_out(node: ir.Node, codes: ir.Value | None) -> tuple[int, int] | None:
    """Axis of a product's weight that its result keeps, counted from either end; None: it is not the product
    of a matrix."""
    if codes is None or codes.shape is None or (node.op_type != "Conv" and len(codes.shape) != 2):
        return None
    turned = node.attributes.get("transB")
    match node.op_type:
        case "MatMul":
            return (1, -1)
        case "Gemm":
            return (0, -2) if turned is not None and turned.as_int() else (1, -1)
        case "Conv":
            return (0, 0)
        case _:
            return None


def _axis(node: ir.Node) -> int:
    """Axis of the scales of a node that codes or decodes."""
    attribute = node.attributes.get("axis")
    return 1 if attribute is None else attribute.as_int()


def _fits(node: ir.Node, count: int) -> bool:
    """Whether what a node codes can have so many scales, as far as its shape is known."""
    value, axis = node.inputs[0], _axis(node)
    if value is None or value.shape is None:
        return True
    if not -len(value.shape) <= axis < len(value.shape):
        return False
    return not isinstance(value.shape[axis], int) or value.shape[axis] == count


def decoded_by(model: ir.Model) -> Iterator[ir.Value]:
    """What its DequantizeLinear nodes decode."""
    for node in model.graph.all_nodes():
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            yield node.inputs[0]


def _said(port: Port) -> str:
    return f"{port.name}: {port.dtype}, {len(port.shape)} axes"


def _port(value: ir.Value) -> str:
    kind = value.dtype.numpy().name if value.dtype is not None else "unknown"
    return f"{value.name}: {kind}, {len(value.shape) if value.shape is not None else 0} axes"
