"""Stable Diffusion 1 and 2: bundle against diffusers."""

from functools import partial
from typing import Any

import factory_families as factory
import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
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

RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "sides that the levels do not divide": {
        "height": 40, "width": 56, "base_height": 40, "base_width": 56, "min_resolution": 20, "num_inference_steps": 5,
    },
    "guided and rescaled": TWO | GUIDED | {"guidance_rescale": 0.7},
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}  # fmt: skip


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_sd, tmp_path_factory.mktemp("sd"))


@torch.no_grad()
def wanted(sd: Exported, scheduler: Any, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    positive, negative = sd.pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt=NEGATIVE)
    texts = [negative, positive] if "guidance_scale" in options else [positive]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        return [sd.pipe.unet(x, t, text.expand(len(x), -1, -1)).sample for text in texts]

    sd.pipe.scheduler = scheduler
    case = Case(pipe=sd.pipe, predict=predict, channels=4, upsampler=sd.upsampler)
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(sd: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(sd.run, RUNS[name], seeds, NEGATIVE)
    assert relative(latents(result), wanted(sd, factory.pndm(), RUNS[name], seeds)) < CLOSE


SCHEDULERS = {
    "ddim": factory.ddim,
    "ddim, velocity": partial(factory.ddim, prediction_type="v_prediction"),
    "pndm, velocity": partial(factory.pndm, prediction_type="v_prediction"),
    "euler": factory.euler,
    "euler ancestral": lambda: EulerAncestralDiscreteScheduler.from_config(factory.euler().config),
    "lcm": factory.lcm,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_paints_what_it_paints_in_diffusers(sd: Exported, name: str) -> None:
    make, seeds = SCHEDULERS[name], (1, 2, 3)
    result = painted(sd.scheduled(make()), TWO | GUIDED, seeds, NEGATIVE)
    assert relative(latents(result), wanted(sd, make(), TWO | GUIDED, seeds)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, "circle " * 100])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(sd: Exported, prompt: str) -> None:
    with torch.no_grad():
        expected, _ = sd.pipe.encode_prompt(prompt, "cpu", 1, False)
    assert relative(sd.text(prompt)["prompt_embeds"], expected) < ONE_PASS


def test_pictures_equal_diffusers_to_a_grey_level(sd: Exported) -> None:
    result = painted(sd.run, SINGLE, (5,))
    with torch.no_grad():
        picture = sd.pipe.vae.decode(latents(result) / sd.pipe.vae.config.scaling_factor).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1
