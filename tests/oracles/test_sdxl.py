"""Stable Diffusion XL, Playground v2.5 and LCM-SDXL: bundle against diffusers."""

from functools import partial
from pathlib import Path
from typing import Any

import factory_families as factory
import onnx
import pytest
import torch
from exported import (
    CLOSE,
    GUIDED,
    NEGATIVE,
    ONE_PASS,
    PROMPT,
    SINGLE,
    THREE,
    TWO,
    Exported,
    exported,
    grey_levels,
    latents,
    painted,
)
from loop import Case, relative, staged
from torch import Tensor

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "guided and rescaled": TWO | GUIDED | {"guidance_rescale": 0.7},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
    "told other sizes": TWO | {"original_size": (50, 70), "target_size": (32, 40), "crops_coords_top_left": (3, 5)},
    "by pixels": TWO | {"scaling_space": "pixel"},
}

TOLD = ("original_size", "crops_coords_top_left", "target_size")
"""Keywords about sizes, in the order in which diffusers joins them."""


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_sdxl, tmp_path_factory.mktemp("sdxl"))


@torch.no_grad()
def wanted(
    sdxl: Exported,
    scheduler: Any,
    options: dict[str, Any],
    seeds: tuple[int, ...],
    negative: str | None = NEGATIVE,
    scale: Tensor | None = None,
) -> Tensor:
    texts = sdxl.pipe.encode_prompt(PROMPT, negative_prompt=negative)
    branches = [(texts[1], texts[3]), (texts[0], texts[2])] if options.get("guidance_scale", 1.0) > 1 else []
    branches = branches if scale is None and branches else [(texts[0], texts[2])]
    told = {name: options[name] for name in TOLD if name in options}

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        original, crop, target = (told.get(name) or own for name, own in zip(TOLD, (size, (0, 0), size), strict=True))
        ids = sdxl.pipe._get_add_time_ids(original, crop, target, torch.float32, 12).expand(len(x), -1)
        return [
            sdxl.pipe.unet(
                x,
                t,
                text.expand(len(x), -1, -1),
                timestep_cond=scale,
                added_cond_kwargs={"text_embeds": pooled.expand(len(x), -1), "time_ids": ids},
            ).sample
            for text, pooled in branches
        ]

    sdxl.pipe.scheduler = scheduler
    case = Case(pipe=sdxl.pipe, predict=predict, channels=4, upsampler=sdxl.upsampler)
    return staged(case, seeds=seeds, **{name: value for name, value in options.items() if name not in TOLD})


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(sdxl: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(sdxl.run, RUNS[name], seeds, NEGATIVE)
    assert relative(latents(result), wanted(sdxl, factory.euler(), RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("negative", [None, ""])
def test_no_negative_prompt_means_zeros_and_an_empty_one_is_encoded(sdxl: Exported, negative: str | None) -> None:
    result = painted(sdxl.run, TWO | GUIDED, (1,), negative)
    assert relative(latents(result), wanted(sdxl, factory.euler(), TWO | GUIDED, (1,), negative)) < CLOSE


@pytest.mark.parametrize("name", ["edm", "lcm", "ddim"])
def test_every_scheduler_paints_what_it_paints_in_diffusers(sdxl: Exported, name: str) -> None:
    make, seeds = getattr(factory, name), (1, 2, 3)
    result = painted(sdxl.scheduled(make()), TWO | GUIDED, seeds, NEGATIVE)
    assert relative(latents(result), wanted(sdxl, make(), TWO | GUIDED, seeds)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, "circle " * 100])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(sdxl: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _, pooled, _ = sdxl.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    came = sdxl.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert relative(came["pooled_prompt_embeds"], pooled) < ONE_PASS


def test_pictures_equal_diffusers_to_a_grey_level(sdxl: Exported) -> None:
    result = painted(sdxl.run, SINGLE, (5,))
    with torch.no_grad():
        picture = sdxl.pipe.vae.decode(latents(result) / sdxl.pipe.vae.config.scaling_factor).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


@pytest.mark.slow
def test_playground_decodes_by_mean_and_deviation(tmp_path: Path) -> None:
    """Its scheduler is tested above; only its autoencoder is different."""
    make = partial(factory.tiny_sdxl, vae=factory.PLAYGROUND)
    playground = exported(make, tmp_path, with_upsampler=False)
    result = painted(playground.run, SINGLE, (5,))
    mean, spread = (
        torch.tensor(factory.PLAYGROUND[name]).reshape(1, 4, 1, 1) for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        picture = playground.pipe.vae.decode(latents(result) * spread / 0.5 + mean).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


@pytest.mark.slow
def test_a_distilled_unet_takes_the_guidance_scale_as_an_input(tmp_path: Path) -> None:
    lcm = exported(lambda folder: factory.tiny_sdxl(folder, factory.lcm(), time_cond_proj_dim=8), tmp_path)
    scale = lcm.pipe.get_guidance_scale_embedding(torch.tensor([7.0]), 8)  # of the scale less one
    result = painted(lcm.run, TWO | {"guidance_scale": 8.0}, (1, 2))
    assert "guidance" in {port.name for port in lcm.bundle.manifest.graphs["step"].inputs}
    # Angles reach 7000, where float32 knows the sine to 3e-4 only.
    expected = wanted(lcm, factory.lcm(), TWO | {"guidance_scale": 8.0}, (1, 2), None, scale.expand(2, -1))
    assert relative(latents(result), expected) < 1e-3


@pytest.mark.slow
def test_fp16_keeps_the_autoencoder_in_fp32_and_never_joins_two_types(tmp_path: Path) -> None:
    half = exported(factory.tiny_sdxl, tmp_path, precision="fp16").bundle
    graphs = half.manifest.graphs
    assert graphs["step"].precision == graphs["text"].precision == "fp16"
    assert {graphs[name].precision for name in ("decode", "encode", "transition_pixel")} == {"fp32"}
    assert any("decode is kept in fp32" in note for note in half.manifest.notes)
    assert all(probe.finite for graph in graphs.values() for probe in graph.probes)
    onnx.checker.check_model(half.path(graphs["step"].file), full_check=True)
