"""Engines of every family's real graphs, from tiny random checkpoints: built by TensorRT-RTX without a GPU.

A tiny network has the layers of a full-size one, and heads of 16, the smallest that have fused kernels.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from factory import tiny_sd3
from factory_chroma import tiny_chroma
from factory_families import tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl
from factory_flux2 import tiny_dev
from factory_qwen import tiny_qwen, tiny_qwen21
from factory_zimage import tiny_zimage

from lssgen.bundle import Bundle
from lssgen.engines.trt.order import Order, build_engines
from lssgen.engines.trt.report import Report
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.manifest import Precision
from lssgen.plan.facts import ScalingSpace

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

TARGETS = ("sm86", "sm89", "sm120")
WIDE = {"block_out_channels": (32, 64), "attention_head_dim": 2}
"""UNet levels with two heads of 16 and of 32."""

CHECKPOINTS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "sd3": (lambda to: tiny_sd3(to, attention_head_dim=16, caption_projection_dim=32), 3),
    "sd": (lambda to: tiny_sd(to, **WIDE), 8),
    "sdxl": (lambda to: tiny_sdxl(to, **WIDE), 8),
    "flux": (tiny_flux, 2),
    "flux2": (tiny_dev, 2),
    "cogview4": (tiny_cogview4, 2),
    "zimage": (tiny_zimage, 4),
    "qwen": (tiny_qwen, 2),
    "qwen21": (tiny_qwen21, 4),
    "chroma": (tiny_chroma, 4),
}
"""How a checkpoint is written, and how many attentions its step has."""


SPACES: tuple[ScalingSpace, ...] = ("resnet", "latent", "pixel", "dct")


def bundle_of(family: str, precision: Precision, folder: Path) -> Bundle:
    checkpoint = CHECKPOINTS[family][0](folder / "checkpoint")
    sizes = ((64, 64), (128, 128))
    return export(
        ExportConfig(
            model=str(checkpoint),
            output=folder / "bundle",
            resolutions=sizes,
            precision=precision,
            # What goes through pixels is the same in every family, but for the autoencoder's weights.
            transitions=(*SPACES, "selflift") if family == "sd3" else SPACES,
            probe="none",
            threads=1,
        )
    )


pytestmark = pytest.mark.slow  # an export and a build take 40 to 70 s of one core

CASES = [(family, precision) for family in CHECKPOINTS for precision in ("fp16", "bf16")]


MASKED = {"cogview4", "zimage", "chroma", "qwen", "qwen21"}
"""Families whose step attends under a mask: prompts of unequal length share a batch."""


@pytest.mark.parametrize(("family", "precision"), CASES)
def test_every_graph_builds_with_both_sizes_and_fused_attention(
    family: str, precision: Precision, tmp_path: Path
) -> None:
    bundle = bundle_of(family, precision, tmp_path)
    order = Order(flavour="tensorrt-rtx", targets=TARGETS, folder=tmp_path / "engines")
    reports = {name: entry.report for name, entry in build_engines(bundle, order).items()}
    assert set(reports) == set(bundle.manifest.graphs)
    step = reports["step"]
    assert (len(step.profiles), step.attentions, step.unfused) == (2, CHECKPOINTS[family][1], ())
    assert has_mask(bundle) == (family in MASKED)
    assert {name for name, report in reports.items() if report.targets != TARGETS} == set()
    assert all(one.expected for report in reports.values() for one in report.unfused)
    assert all(fits_in_memory(report) for report in reports.values())
    for target in TARGETS[1:]:  # what was compiled for the first is what the report above is about
        alone = replace(order, targets=(target,), folder=tmp_path / target)
        assert build_engines(only_step(bundle), alone)["step"].report.unfused == ()


def only_step(bundle: Bundle) -> Bundle:
    return Bundle(bundle.folder, replace(bundle.manifest, graphs={"step": bundle.manifest.graphs["step"]}))


def has_mask(bundle: Bundle) -> bool:
    """Whether the step's attentions have a mask, a fourth input: those that text takes part in."""
    model = onnx.load(bundle.path(bundle.manifest.graphs["step"].file), load_external_data=False)
    return any(len(node.input) > 3 for node in model.graph.node if node.op_type == "Attention")


def fits_in_memory(report: Report) -> bool:
    """Tiny networks at tiny sizes: weights of less than 10 MB, scratch of less than 100."""
    small = 0 < report.weight_bytes < 10_000_000 and all(0 < size < 100_000_000 for size in report.activation_bytes)
    return small and len(report.activation_bytes) == len(report.profiles)
