"""Whole runs of toy networks against the published pipelines' final latents (LSSGen, arXiv 2507.16154).

The toys read what the real networks are told (timestep, sizes, positions), so an error in any of it shows. Noise is
torch's, one draw a stage; transitions are bicubic.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rows import run_steps

from lssgen.models.aliases import ALIASES
from lssgen.plan import Plan, PlanOptions, Stage, Step, make_plan

Toy = Callable[[np.ndarray, float, float, Stage], np.ndarray]

# alias, options, extra term, (mean, std, four picked numbers) of the final latent
GOLDEN: list[tuple[str, dict[str, Any], str, tuple[float, ...]]] = [
    ("flux-dev", {}, "places", (0.00158, 0.53662, -1.52430, -0.06043, -0.50176, -0.64112)),
    ("sd3", {"guidance_scale": 4.5}, "", (-0.07737, 0.54313, -1.64245, -0.11651, -0.61417, -0.74628)),
    ("cogview4", {"guidance_scale": 3.5}, "sizes", (-0.08991, 0.57642, -1.75127, -0.11270, -0.71009, -0.80573)),
    ("sdxl", {"guidance_scale": 5.0}, "sizes", (-0.87638, 2.94460, -1.96952, -6.37362, 1.28781, -1.53166)),
    ("sd15", {"solver": "ddim"}, "", (-1.09695, 2.98690, -2.17147, -6.77278, 1.08273, -1.70108)),
]


def toy(h: np.ndarray, label: float, shift: float) -> np.ndarray:
    return 0.9 * np.tanh(0.6 * h) + 0.05 * np.cos(0.01 * label) + shift


def size_term(stage: Stage) -> float:
    """Height of the first size the network is told, width of the second."""
    return 1e-4 * 8 * stage.height + 2e-4 * 8 * stage.width


def place_term(stage: Stage) -> np.ndarray:
    """(16, height, width): what a network sees that is told each packed channel's number, row and column."""
    channel, row, column = np.ogrid[:64, : stage.height // 2, : stage.width // 2]
    packed = np.sin(0.3 * channel + 0.1 * row + 0.2 * column)
    unpacked = packed.reshape(16, 2, 2, stage.height // 2, stage.width // 2)
    return 0.02 * unpacked.transpose(0, 3, 1, 4, 2).reshape(16, stage.height, stage.width)


def run(plan: Plan, channels: int, extra: Callable[[Stage], Any]) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    latent = np.zeros(())
    for index, stage in enumerate(plan.stages):
        noise = torch.randn(1, channels, stage.height, stage.width, generator=generator).numpy()
        if index:
            larger = torch.nn.functional.interpolate(
                torch.from_numpy(latent), scale_factor=2, mode="bicubic", align_corners=False
            )
            latent = larger.numpy()
        term = extra(stage)

        def network(h: np.ndarray, step: Step, term: Any = term) -> np.ndarray:
            shifts = {"positive": 0.01, "negative": -0.02}
            return sum(weight * (toy(h, step.label, shifts[name]) + term) for name, weight in step.guidance)

        latent = run_steps(stage.steps, stage.image * latent + stage.noise * noise, network)
    return latent


@pytest.mark.parametrize(("alias", "given", "kind", "golden"), GOLDEN, ids=[case[0] for case in GOLDEN])
def test_final_latents_are_the_published_ones(
    alias: str, given: dict[str, Any], kind: str, golden: tuple[float, ...]
) -> None:
    facts = ALIASES[alias].facts()
    asked = {
        "height": 128,
        "width": 192,
        "min_resolution": 64,
        "base_height": 128,
        "base_width": 128,
        "num_inference_steps": 12,
    }
    options = PlanOptions.from_defaults(facts.defaults, **asked, shorten=True, scaling_space="latent", **given)
    extra = {"": lambda _: 0.0, "sizes": size_term, "places": place_term}[kind]
    plan = make_plan(facts, replace(options, start_sigma=0.75))
    assert [(stage.height, stage.width, stage.schedule_steps) for stage in plan.stages] == [(8, 12, 8), (16, 24, 12)]
    z = run(plan, facts.channels, extra)
    found = (z.mean(), z.std(), z[0, 0, 0, 0], z[0, 1, 3, 5], z[0, -1, -1, -1], z[0, 2, 8, 20])
    # Five digits are published; the runs agree to 1e-5, float32 pipelines against float64 here.
    assert found == pytest.approx(golden, abs=2e-5)
