"""Whole runs end in the latents of the published LSSGen pipelines (arXiv 2507.16154), on a network without weights.

128 x 192 px in two stages of 8 and 12 steps, bicubic transition, seed 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lssgen.manifest import Feed, Sizes
from lssgen.models.aliases import ALIASES
from lssgen.ports import Array, Port
from lssgen.runtime import Options, Pipeline
from lssgen.testing import (
    Ask,
    FakeBackend,
    FakeModel,
    decode_network,
    fake_bundle,
    step_network,
    text_network,
    transition_network,
)

RUN = Options(
    height=128,
    width=192,
    min_resolution=64,
    base_height=128,
    base_width=128,
    shorten=True,
    num_inference_steps=12,
    start_sigma=0.75,
    scaling_space="latent",
    seed=3,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, how it sees the stage's size, and where its run ends: mean, std, four elements."""

    alias: str
    options: Options
    sizes: Mapping[str, tuple[float, ...]]
    packed: bool = False
    end: tuple[float, ...]


CASES = {
    "flux": Case(
        alias="flux-dev",
        options=Options(),
        sizes={},
        packed=True,
        end=(0.00158, 0.53662, -1.52430, -0.06043, -0.50176, -0.64112),
    ),
    "sd3": Case(
        alias="sd3",
        options=Options(guidance_scale=4.5),
        sizes={},
        end=(-0.07737, 0.54313, -1.64245, -0.11651, -0.61417, -0.74628),
    ),
    "cogview4": Case(
        alias="cogview4",
        options=Options(guidance_scale=3.5),
        sizes={"original_size": (1e-4, 0), "target_size": (0, 2e-4)},
        end=(-0.08991, 0.57642, -1.75127, -0.11270, -0.71009, -0.80573),
    ),
    "sdxl": Case(
        alias="sdxl",
        options=Options(guidance_scale=5.0),
        sizes={"time_ids": (1e-4, 0, 0, 0, 0, 2e-4)},
        end=(-0.87638, 2.94460, -1.96952, -6.37362, 1.28781, -1.53166),
    ),
    "sd-ddim": Case(
        alias="sd15",
        options=Options(guidance_scale=7.5, solver="ddim"),
        sizes={},
        end=(-1.09695, 2.98690, -2.17147, -6.77278, 1.08273, -1.70108),
    ),
}
VALUES: Mapping[int, Any] = {
    2: ("height_px", "width_px"),
    6: ("height_px", "width_px", "crop_top", "crop_left", "height_px", "width_px"),
}


def positions(channels: int, height: int, width: int) -> Array:
    """What the toy adds where a network sees packed channels and position ids, unpacked to (C, h, w)."""
    c, y, x = np.ogrid[:channels, :height, :width]
    return 0.02 * np.sin(0.3 * (4 * c + 2 * (y % 2) + x % 2) + 0.1 * (y // 2) + 0.2 * (x // 2))


def _told(port: str, count: int) -> tuple[Port, Feed]:
    return Port(port, "float32", ("branches", "batch", count)), Sizes(values=VALUES[count])


def pipeline_of(case: Case, folder: Path) -> Pipeline:
    facts = ALIASES[case.alias].facts()

    def denoise(ask: Ask) -> Array:
        out = 0.9 * np.tanh(0.6 * ask.u) + 0.05 * np.cos(0.01 * ask.label) + ask.extra["text"][:, :, None, None]
        for port, weights in case.sizes.items():
            out = out + (ask.extra[port] @ np.asarray(weights))[:, None, None, None]
        return out + positions(*ask.u.shape[1:]) if case.packed else out

    sizes = [_told(port, len(weights)) for port, weights in case.sizes.items()]
    kappa = {True: 0.01, False: -0.02}  # of a prompt with words, and of the empty one
    networks = {
        "text": text_network(lambda ids: np.asarray([[kappa[bool(row.any())]] for row in ids], np.float32)),
        "step": step_network(denoise, channels=facts.channels, history=4, extra=sizes),
        "transition_latent": transition_network(channels=facts.channels),
        "decode": decode_network(channels=facts.channels),
    }
    model = FakeModel(facts=facts, networks=networks, history=4)
    return Pipeline(fake_bundle(folder, model), FakeBackend(networks))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_run_ends_where_the_published_one_does(case: Case, tmp_path: Path) -> None:
    """2e-5: a NumPy version of the published loop is within 1e-5, and the published numbers have five digits."""
    latent = pipeline_of(case, tmp_path)("a red circle", **(RUN | case.options)).latents
    z = latent[0]
    came = (latent.mean(), latent.std(), z[0, 0, 0], z[1, 3, 5], z[-1, -1, -1], z[2, 8, 20])
    assert came == pytest.approx(case.end, abs=2e-5)
