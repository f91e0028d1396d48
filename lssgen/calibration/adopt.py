"""Graphs that another tool has quantised (ModelOpt, NNCF, Olive), taken as they are."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from lssgen.bundle import MANIFEST, Bundle, files, manifest_json, sha256_of
from lssgen.calibration.alone import bundle_in_place_of
from lssgen.calibration.foreign import FORMATS_BY_CODES, decoded_by, see_adoptable, see_sound
from lssgen.calibration.formats import format_for
from lssgen.calibration.gates import Gate, measured_step, passed_speed
from lssgen.calibration.insertion import Made
from lssgen.calibration.products import is_quantised
from lssgen.calibration.quality import Quality, compared
from lssgen.calibration.quantise import changed
from lssgen.calibration.ranges import see_unquantised
from lssgen.calibration.rehearsal import rehearsed
from lssgen.calibration.storage import DataFile
from lssgen.errors import CalibrationError
from lssgen.manifest import Graph, Manifest, Measured, NumberFormat, Quantisation

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
        CalibrationError: It cannot be read, is unsound or not quantised, has other ports or sizes, codes or scales that
            do not do, or weights elsewhere; the engine lacks its format; it does not pass; the bundle's own step is
            quantised already; or the output's place is taken.
        OSError: It cannot be written.
    """
    see_unquantised(bundle, _loaded(bundle.path(bundle.manifest.graphs["step"].file)))
    model = _loaded(graph)
    if not is_quantised(model):
        raise CalibrationError(
            f"{graph} has no quantising nodes (QuantizeLinear, DequantizeLinear); take what the tool wrote, or let "
            "lssgen do it: lssgen calibrate quantise"
        )
    see_adoptable(bundle, graph, model)
    form = _format_of(model)
    format_for(form, engine)
    old = bundle.manifest.graphs["step"]
    with bundle_in_place_of(output, bundle) as draft:
        for name in files(replace(bundle.manifest, graphs=_others(bundle.manifest))):
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), draft / name)
        made = _written(model, draft)
        see_sound(graph, draft / f"{_STEM}.onnx")
        about = Quantisation(
            format=form,
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


def _others(manifest: Manifest) -> Mapping[str, Graph]:
    """Every graph but the step. They may share a data file with it."""
    return {name: graph for name, graph in manifest.graphs.items() if name != "step"}


def _loaded(graph: Path) -> ir.Model:
    try:
        return ir.load(graph)
    except Exception as error:  # protobuf has its own exceptions
        raise CalibrationError(
            f"{graph} is not an ONNX graph that can be read: {' '.join(str(error).split())[:200]}"
        ) from error


def _format_of(model: ir.Model) -> NumberFormat:
    """The format of a graph's codes; weights alone, where nothing else has any."""
    types = {value.dtype for value in decoded_by(model)}
    known: list[NumberFormat] = [form for kind, form in FORMATS_BY_CODES if kind in types]
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
