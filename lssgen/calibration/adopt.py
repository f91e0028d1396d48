"""Graphs that another tool has quantised (ModelOpt, NNCF, Olive), taken as they are."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from lssgen.bundle import MANIFEST, Bundle, files, manifest_json, sha256_of
from lssgen.calibration.alone import written_alone
from lssgen.calibration.insertion import Made
from lssgen.calibration.products import is_quantised
from lssgen.calibration.quality import Quality, compared
from lssgen.calibration.quantise import Gate, changed, measured_step, passed_speed
from lssgen.calibration.ranges import see_unquantised
from lssgen.calibration.rehearsal import rehearsed
from lssgen.calibration.storage import DataFile
from lssgen.durable import whole_folder
from lssgen.errors import CalibrationError
from lssgen.manifest import Manifest, Measured, NumberFormat, Quantisation
from lssgen.ports import Port

_FORMATS: Sequence[tuple[ir.DataType, NumberFormat]] = (
    (ir.DataType.FLOAT4E2M1, "nvfp4"),
    (ir.DataType.FLOAT8E4M3FN, "fp8"),
    (ir.DataType.INT8, "int8"),
)
"""Formats by the type of a graph's codes; where several are there, the first of these."""

_STEM = "step-adopted"


def adopt(bundle: Bundle, graph: Path, output: Path, *, engine: str, by: str | None, gate: Gate) -> Bundle:
    """A bundle whose step is another tool's.

    Args:
        bundle: Bundle whose step the tool was given.
        graph: The ONNX file that it made, its weights beside it or inside.
        output: Folder of the new bundle.
        engine: Engine that the graph is for.
        by: Name of the tool; None: what the file says.
        gate: What it must pass.

    Raises:
        CalibrationError: It cannot be read, is not quantised, has other ports, or does not pass; or the bundle's own
            step is quantised already.
        OSError: It cannot be written.
    """
    see_unquantised(bundle, _loaded(bundle.path(bundle.manifest.graphs["step"].file)))
    model = _loaded(graph)
    if not is_quantised(model):
        raise CalibrationError(
            f"{graph} has no quantising nodes (QuantizeLinear, DequantizeLinear); take what the tool wrote, or let "
            "lssgen do it: lssgen calibrate quantise"
        )
    _see_ports(bundle, graph, model)
    old = bundle.manifest.graphs["step"]
    with written_alone(output), whole_folder(output) as draft:
        for name in files(bundle.manifest):
            if name not in (old.file, *old.data):
                shutil.copyfile(bundle.path(name), draft / name)
        made = _written(model, draft)
        about = Quantisation(
            format=_format_of(model),
            engine=engine,
            products=_coded_products(model),
            by=by or str(model.producer_name or "another tool"),
        )
        graphs = {**bundle.manifest.graphs, "step": changed(old, made, _STEM, about)}
        manifest = replace(bundle.manifest, graphs=graphs)
        manifest = _compared(bundle, Bundle(draft, manifest), gate)
        manifest = passed_speed(bundle, Bundle(draft, manifest), gate)
        (draft / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(output, manifest)


def _loaded(graph: Path) -> ir.Model:
    try:
        return ir.load(graph)
    except Exception as error:  # protobuf has its own exceptions
        raise CalibrationError(
            f"{graph} is not an ONNX graph that can be read: {' '.join(str(error).split())[:200]}"
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


def _said(port: Port) -> str:
    return f"{port.name}: {port.dtype}, {len(port.shape)} axes"


def _port(value: ir.Value) -> str:
    kind = value.dtype.numpy().name if value.dtype is not None else "unknown"
    return f"{value.name}: {kind}, {len(value.shape) if value.shape is not None else 0} axes"


def _format_of(model: ir.Model) -> NumberFormat:
    """The format of a graph's codes; weights alone, where nothing else has any."""
    types = [
        value.dtype for node in model.graph if node.op_type == "DequantizeLinear" for value in node.inputs[:1] if value
    ]
    known: list[NumberFormat] = [form for kind, form in _FORMATS if kind in types]
    coded = any(node.op_type != "DequantizeLinear" and "Quantize" in node.op_type for node in model.graph)
    if not coded:
        return "int8-weights"
    return known[0] if known else "int8"


def _coded_products(model: ir.Model) -> int:
    """Products whose weight comes out of codes."""
    products = (node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv"))
    makers = (node.inputs[1].producer() for node in products if node.inputs[1])
    return sum(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _written(model: ir.Model, draft: Path) -> Made:
    """The graph in the folder, its weights in one file beside it."""
    made = Made()
    data = draft / f"{_STEM}.data"
    with DataFile(data) as file:
        for value in model.graph.initializers.values():
            file.keep(value)
        if not file.is_empty:
            made.sha256[data.name] = file.sha256
    if file.is_empty:
        data.unlink()
    ir.save(model, draft / f"{_STEM}.onnx")
    made.sha256[f"{_STEM}.onnx"] = sha256_of(draft / f"{_STEM}.onnx")
    return made


def _compared(before: Bundle, after: Bundle, gate: Gate) -> Manifest:
    """With what the comparison of latents found.

    Raises:
        CalibrationError: The bound is not reached.
    """
    if gate.runs is None or gate.backend is None:
        return after.manifest
    (after.folder / MANIFEST).write_bytes(manifest_json(after.manifest))
    with rehearsed(after, gate.backend) as bundle:
        quality: Quality = compared(gate.runs.latents(before, gate.backend), gate.runs.latents(bundle, gate.backend))
    if not quality.reaches(gate.bound):
        raise CalibrationError(
            f"latents reach {quality}, and the bound is {gate.bound.psnr_db:g} dB and cosine {gate.bound.cosine:g}; "
            "let the tool keep more in high precision, or lower the bounds (--psnr, --cosine)"
        )
    measured = Measured(
        psnr_db=quality.psnr_db, cosine=quality.cosine, bound_db=gate.bound.psnr_db, bound_cosine=gate.bound.cosine
    )
    return measured_step(after.manifest, measured)
