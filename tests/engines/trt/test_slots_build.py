"""Steps and text encoders with slots for LoRAs are compiled by TensorRT-RTX like any others, attention fused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factory import tiny_sd3
from factory_families import tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl

from lssgen.bundle import Bundle
from lssgen.engines.trt.order import Order, build_engines
from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.manifest import LoraFactors, Precision

pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")

pytestmark = pytest.mark.slow  # an export and a build take a minute of one core

WIDE: dict[str, Any] = {"block_out_channels": (32, 64), "attention_head_dim": 2}
CASES: dict[str, tuple[Callable[[Path], Path], Precision]] = {
    "sd": (lambda to: tiny_sd(to, **WIDE), "fp16"),
    "sdxl": (lambda to: tiny_sdxl(to, **WIDE), "fp16"),
    "sd3": (lambda to: tiny_sd3(to, attention_head_dim=16, caption_projection_dim=32), "fp16"),
    "flux": (tiny_flux, "bf16"),
    "cogview4": (tiny_cogview4, "bf16"),
}


@pytest.mark.parametrize("family", CASES)
def test_slots_are_compiled_with_fused_attention(family: str, tmp_path: Path) -> None:
    checkpoint, precision = CASES[family]
    bundle = export(
        ExportConfig(
            model=str(checkpoint(tmp_path / "checkpoint")),
            output=tmp_path / "bundle",
            resolutions=((64, 64), (128, 128)),
            precision=precision,
            transitions=("latent",),
            lora_slots=2,
            lora_rank=8,
            lora_layers="all",
            probe="none",
            threads=1,
        )
    )
    graphs = {name: bundle.manifest.graphs[name] for name in ("step", "text")}
    has = {name: any(isinstance(feed, LoraFactors) for feed in graph.feeds.values()) for name, graph in graphs.items()}
    assert has == {"step": True, "text": family != "cogview4"}
    order = Order(flavour="tensorrt-rtx", targets=("sm89",), folder=tmp_path / "engines")
    found = build_engines(Bundle(bundle.folder, replace(bundle.manifest, graphs=graphs)), order)
    assert found["step"].report.unfused == ()
    assert all(one.expected for one in found["text"].report.unfused)  # heads of tiny encoders are too narrow
    assert len(found["step"].report.profiles) == 2
