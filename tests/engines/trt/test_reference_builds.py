"""An editing model's step, with tokens of reference pictures, built by TensorRT-RTX without a GPU."""

from pathlib import Path

import pytest
from factory_flux2 import tiny_dev
from test_families_build import only_step

from lssgen.engines.trt.order import Order, build_engines
from lssgen.export.config import ExportConfig
from lssgen.export.export import export

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

pytestmark = pytest.mark.slow  # an export and a build take a minute of one core


def test_a_step_that_sees_pictures_builds_for_their_usual_sizes_with_fused_attention(tmp_path: Path) -> None:
    bundle = export(
        ExportConfig(
            model=str(tiny_dev(tmp_path / "checkpoint")),
            output=tmp_path / "bundle",
            resolutions=((64, 64), (128, 128)),
            references=((64, 64), (64, 128)),
            precision="fp16",
            probe="none",
            threads=1,
        )
    )
    # 8 x 8 and 8 x 16 tokens of eight pixels.
    assert bundle.manifest.token_axes["reference_tokens"] == 64 + 128
    order = Order(flavour="tensorrt-rtx", targets=("sm89",), folder=tmp_path / "engines")
    report = build_engines(only_step(bundle), order)["step"].report
    assert (len(report.profiles), report.attentions, report.unfused) == (2, 2, ())
