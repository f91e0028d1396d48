"""Engines of every family's step in few bits, built by TensorRT-RTX without a GPU: from tiny random checkpoints.

What is asserted comes from the build's own report: names and types of the compiled layers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from test_families_build import CHECKPOINTS, bundle_of, only_step

from lssgen.bundle import Bundle
from lssgen.calibration.gates import Gate
from lssgen.calibration.products import given
from lssgen.calibration.quality import Bound, Runs
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.ranges import RangesJob, measure_ranges
from lssgen.calibration.statistics import Statistics
from lssgen.engines.registry import open_backend
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.report import Report
from lssgen.errors import BuildError
from lssgen.manifest import NumberFormat

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
pytestmark = pytest.mark.slow  # an export of a minute for every family, and a build of ten seconds for every format

RUNS: Any = {
    "height": 128, "width": 128, "min_resolution": 64, "base_height": 64, "base_width": 64, "num_inference_steps": 12,
    "scaling_space": "latent",
}  # fmt: skip
BUILDS: tuple[tuple[NumberFormat, str], ...] = (
    ("int8", "sm86"), ("int8", "sm89"), ("int8-weights", "sm86"), ("fp8", "sm89"), ("fp8", "sm120"), ("nvfp4", "sm120"),
)  # fmt: skip


@pytest.fixture(scope="module", params=CHECKPOINTS)
def calibrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Statistics]:
    """A family's bundle in fp16, and its ranges."""
    folder = tmp_path_factory.mktemp(request.param)
    bundle = bundle_of(request.param, "fp16", folder)
    backend = open_backend("onnxruntime", threads=1)
    output = folder / "ranges.safetensors"
    job = RangesJob(
        bundle=bundle, backend=backend, prompts=("a cat", "the dog", "red", "a ship"), output=output, options=RUNS
    )
    return bundle, measure_ranges(job)


CONVOLUTIONS = {"sd": 18, "sdxl": 18}
"""Number of convolutions in few bits: two in each of a tiny UNet's eight residual blocks, and those of its samplers."""


CODED_ATTENTIONS = {"qwen21": 0}
"""Number of attentions in FP8, where it is not that of all: of Qwen-Image 2.1 text sees only what stands before it, and
the picture reads a part of the places, so that nothing says how wide a head is."""


def coded_products(bundle: Bundle) -> list[ir.Node]:
    """Nodes of the step whose weight comes out of codes."""
    model = ir.load(bundle.path(bundle.manifest.graphs["step"].file))
    nodes = [node for node in model.graph if node.op_type in ("MatMul", "Conv")]
    makers = [node.inputs[1] and node.inputs[1].producer() for node in nodes]
    return [
        node
        for node, maker in zip(nodes, makers, strict=True)
        if maker is not None and maker.op_type == "DequantizeLinear" and given(maker, 0).is_initializer()
    ]


def made(calibrated: tuple[Bundle, Statistics], form: NumberFormat, folder: Path, gate: Gate | None = None) -> Bundle:
    bundle, statistics = calibrated
    return quantise(
        QuantiseJob(
            bundle=bundle,
            output=folder / form,
            format=form,
            engine="tensorrt-rtx",
            statistics=statistics,
            ends=0,
            text=False,
            gate=gate or Gate(),
        )
    )


def built(bundle: Bundle, target: str, folder: Path) -> Report:
    order = Order(flavour="tensorrt-rtx", targets=(target,), folder=folder / "engines")
    return build_engines(only_step(bundle), order)["step"].report


@pytest.mark.parametrize(("form", "target"), BUILDS)
def test_every_product_and_attention_that_is_promised_in_few_bits_is_compiled_so(
    calibrated: tuple[Bundle, Statistics], form: NumberFormat, target: str, tmp_path: Path
) -> None:
    bundle = made(calibrated, form, tmp_path)
    about = bundle.manifest.graphs["step"].quantisation
    assert about is not None
    report = built(bundle, target, tmp_path)
    profiles = len(report.profiles)
    assert profiles == 2
    kinds = {"int8": {"INT8"}, "int8-weights": {"INT8"}, "fp8": {"FP8"}, "nvfp4": {"FP8", "FP4E2M1"}}[form]
    products = sum(report.coded.get(kind, 0) for kind in kinds)
    assert (set(report.coded) - {"FP8 attention"}, products) == (kinds, about.products * profiles)
    attentions = CHECKPOINTS[bundle.manifest.family][1]
    wanted = CODED_ATTENTIONS.get(bundle.manifest.family, attentions) if form in ("fp8", "nvfp4") else 0
    assert (about.attention, report.coded.get("FP8 attention", 0)) == (wanted, wanted * profiles)
    convolutions = sum(node.op_type == "Conv" for node in coded_products(bundle))
    assert convolutions == (0 if form == "int8-weights" else CONVOLUTIONS.get(bundle.manifest.family, 0))
    assert report.attentions == attentions - wanted  # the others are products and a softmax, to the parser
    assert report.unfused == ()  # what stays is one kernel in half precision


@pytest.mark.parametrize("form", ["int8", "fp8", "nvfp4"])
def test_what_is_made_for_it_is_compared_where_it_is_not(
    calibrated: tuple[Bundle, Statistics], form: NumberFormat, tmp_path: Path
) -> None:
    """By ONNX Runtime on a CPU, in half precision: random weights in few bits are some 35 dB away."""
    backend = open_backend("onnxruntime", threads=1)
    runs = Runs(prompts=("a cat",), options={**RUNS, "num_inference_steps": 4})
    bundle = made(calibrated, form, tmp_path, Gate(runs=runs, backend=backend, bound=Bound(20, 0.9)))
    about = bundle.manifest.graphs["step"].quantisation
    assert about is not None
    assert about.measured is not None
    assert len(about.measured.psnr_db) == 2
    assert (min(about.measured.psnr_db) >= 20, about.kept) == (True, ())


def test_a_promise_that_the_compiler_does_not_keep_is_no_engine(
    calibrated: tuple[Bundle, Statistics], tmp_path: Path
) -> None:
    bundle = made(calibrated, "int8", tmp_path)
    step = bundle.manifest.graphs["step"]
    assert step.quantisation is not None
    more = replace(step.quantisation, products=step.quantisation.products + 1)
    graphs = {**bundle.manifest.graphs, "step": replace(step, quantisation=more)}
    boastful = Bundle(bundle.folder, replace(bundle.manifest, graphs=graphs))
    with pytest.raises(BuildError, match=r"computes \d+ of \d+ products in int8"):
        built(boastful, "sm89", tmp_path)


def test_a_target_without_the_format_is_refused_with_those_that_have_it(
    calibrated: tuple[Bundle, Statistics], tmp_path: Path
) -> None:
    with pytest.raises(BuildError, match=r"sm86.* has no products in fp8; fp8 fits sm89, sm120, sm121"):
        built(made(calibrated, "fp8", tmp_path), "sm86", tmp_path)
