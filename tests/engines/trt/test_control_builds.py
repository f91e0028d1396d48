"""Steps with a ControlNet, and of checkpoints that inpaint, from tiny random weights: built by TensorRT-RTX."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import factory_control as control
import pytest
from factory import tiny_sd3
from factory_families import tiny_flux, tiny_sd, tiny_sdxl

from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.engines.trt.order import Order, build_engines
from lssgen.export.config import ExportConfig
from lssgen.export.export import export

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

pytestmark = pytest.mark.slow  # an export and a build of half a minute to a minute each

Make = Callable[[Path], Path]

WIDE = {"block_out_channels": (32, 64), "attention_head_dim": 2}
"""UNet levels with two heads of 16 and of 32, the smallest that have fused kernels."""

TASK = {"num_trans_channel": 32, "num_proj_channel": 32}

CASES: dict[str, tuple[Make, Make | None, int]] = {
    "sd": (partial(tiny_sd, **WIDE), partial(control.control_sd, **WIDE), 8 + 4),
    "sdxl union": (partial(tiny_sdxl, **WIDE), partial(control.union_sdxl, **WIDE | TASK), 8 + 4),
    "flux union": (tiny_flux, partial(control.control_flux, num_mode=3), 2 + 2),
    "sd3": (
        partial(tiny_sd3, attention_head_dim=16, caption_projection_dim=32),
        partial(control.control_sd3, attention_head_dim=16, caption_projection_dim=32),
        3 + 1,
    ),
    "sd that inpaints": (partial(control.inpaint_sd, **WIDE), None, 8),
    "flux fill": (control.fill_flux, None, 2),
}  # fmt: skip
"""How checkpoint and ControlNet are written, and how many attentions the step has."""


def bundle_of(case: str, folder: Path) -> Bundle:
    make, net, _ = CASES[case]
    return export(
        ExportConfig(
            model=str(make(folder / "checkpoint")),
            output=folder / "bundle",
            controlnet=None if net is None else str(net(folder / "controlnet")),
            resolutions=((64, 64), (128, 128)),
            precision="fp16",
            transitions=("latent",),
            probe="none",
            threads=1,
        )
    )


@pytest.mark.parametrize("case", CASES)
def test_the_step_builds_with_both_sizes_and_fused_attention(case: str, tmp_path: Path) -> None:
    bundle = bundle_of(case, tmp_path)
    order = Order(
        flavour="tensorrt-rtx", targets=("sm89",), folder=tmp_path / "engines", demand=Demand(graphs=("step", "encode"))
    )
    reports = {name: entry.report for name, entry in build_engines(bundle, order).items()}
    assert set(reports) == {"step", "encode"}
    step = reports["step"]
    assert (len(step.profiles), step.attentions, step.unfused) == (2, CASES[case][2], ())
