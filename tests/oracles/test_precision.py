"""Every family in half precision: each graph holds up, or is kept in float32 with a reason, and so do the pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exported import GUIDED, SINGLE, Exported, exported, latents, painted
from factory import tiny_sd3
from factory_chroma import tiny_chroma
from factory_families import tiny_cogview4, tiny_flux, tiny_sd, tiny_sdxl
from factory_flux2 import tiny_dev
from factory_qwen import tiny_qwen, tiny_qwen21
from factory_zimage import tiny_zimage
from loop import relative

from lssgen.manifest import Precision

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "sd3": tiny_sd3,
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "flux": tiny_flux,
    "flux2": tiny_dev,
    "cogview4": tiny_cogview4,
    "zimage": tiny_zimage,
    "qwen": tiny_qwen,
    "qwen21": tiny_qwen21,
    "chroma": tiny_chroma,
}

FAR = 0.1
"""Relative L2 of latents after four steps. A graph rounds a few hundred times by 5e-4 and may be off by 3e-2."""


@pytest.fixture(scope="module", params=list(CHECKPOINTS))
def single(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Exported]:
    return request.param, exported(CHECKPOINTS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_graph_holds_up_or_says_why_not(
    single: tuple[str, Exported], precision: Precision, tmp_path: Path
) -> None:
    family, _ = single
    half = exported(CHECKPOINTS[family], tmp_path, precision=precision)
    graphs = half.bundle.manifest.graphs
    assert graphs["step"].precision == precision
    for name, graph in graphs.items():
        precise = name in ("transition_resnet", "transition_latent", "transition_dct")
        said = any(note.startswith(f"{name} is kept in fp32") for note in half.bundle.manifest.notes)
        assert graph.precision == ("fp32" if precise or said else precision)
        assert all(probe.finite and probe.error <= probe.bound for probe in graph.probes)
        assert all(port.dtype in ("float32", "int64", "uint8") for port in (*graph.inputs, *graph.outputs))


@pytest.mark.slow
def test_fp16_pictures_are_those_of_fp32(single: tuple[str, Exported], tmp_path: Path) -> None:
    family, exact = single
    half = exported(CHECKPOINTS[family], tmp_path, precision="fp16")
    runs = [latents(painted(each.run, SINGLE | GUIDED, (5,))) for each in (half, exact)]
    assert np.isfinite(runs[0].numpy()).all()
    assert 0 < relative(*runs) < FAR
