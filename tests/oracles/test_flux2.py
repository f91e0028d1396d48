"""FLUX.2 dev and klein: bundle against diffusers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import factory_flux2 as factory
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from exported import (
    CLOSE,
    INDEXING,
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
    operators,
    painted,
)
from loop import Case, relative, staged
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.slow  # three exports of half a minute

MAKERS: dict[str, Callable[[Path], Path]] = {
    "klein": factory.tiny_klein,
    "klein base": factory.tiny_klein_base,
    "dev": factory.tiny_dev,
}
RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, a batch": TWO | {"guidance_scale": 3.5},
    "three stages, shortened": THREE | {"guidance_scale": 2.0},
    "a size that is floored": TWO | {"height": 74, "width": 110},
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.fixture(scope="module", params=list(MAKERS))
def flux2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return made(request.param, tmp_path_factory)


def made(name: str, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(MAKERS[name], tmp_path_factory.mktemp(name.replace(" ", "-")))


def normalised(flux2: Exported, vae: Tensor) -> Tensor:
    """(B, C, h, w) as the VAE has it -> as the network paints it."""
    mean, spread = (each.reshape(1, -1, 1, 1) for each in factory.statistics(flux2.folder))
    return F.pixel_shuffle((F.pixel_unshuffle(vae, 2) - mean) / spread, 2)


def as_the_vae_has_it(flux2: Exported, latent: Tensor) -> Tensor:
    """Undoes `normalised`."""
    mean, spread = (each.reshape(1, -1, 1, 1) for each in factory.statistics(flux2.folder))
    return F.pixel_shuffle(F.pixel_unshuffle(latent, 2) * spread + mean, 2)


@torch.no_grad()
def wanted(flux2: Exported, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    """The staged run, with diffusers' network and scheduler."""
    options = {"guidance_scale": 1.0} | options
    net, scale = flux2.pipe.transformer, options.pop("guidance_scale")
    told, branched = net.config.guidance_embeds, flux2.pipe.config.get("is_distilled") is False
    texts = ("", PROMPT) if branched and scale > 1 else (PROMPT,)
    heard = [flux2.pipe.encode_prompt(text) for text in texts]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        batch, _, h, w = x.shape
        ids = torch.cartesian_prod(torch.zeros(1), torch.arange(h // 2.0), torch.arange(w // 2.0), torch.zeros(1))
        outputs = [
            net(
                F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
                text.expand(batch, -1, -1),
                t / 1000,
                ids,
                text_ids,
                torch.full((batch,), scale) if told else None,
            ).sample
            for text, text_ids in heard
        ]
        return [F.pixel_shuffle(output.transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2) for output in outputs]

    case = Case(
        pipe=flux2.pipe,
        predict=predict,
        channels=4,
        align=2,
        grid="even",
        mu=compute_empirical_mu,
        noise_patch=2,
        to_vae=partial(as_the_vae_has_it, flux2),
        from_vae=partial(normalised, flux2),
        upsampler=flux2.upsampler,
    )
    return staged(case, seeds=seeds, guidance_scale=scale if branched else 1.0, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(flux2: Exported, name: str) -> None:
    seeds = (7, 8) if "batch" in name else (3,)
    result = painted(flux2.run, RUNS[name], seeds)
    assert relative(latents(result), wanted(flux2, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("size", [(64, 96), (70, 100), (128, 48)])
@torch.no_grad()
def test_a_run_in_one_stage_equals_the_pipeline(flux2: Exported, size: tuple[int, int]) -> None:
    height, width = size
    came = flux2.run(PROMPT, height=height, width=width, min_resolution=48, start_sigma=1.0, shorten=False,
                     num_inference_steps=4, guidance_scale=3.0, seed=11)  # fmt: skip
    generator = torch.Generator("cpu").manual_seed(11)
    pipe = flux2.pipe(PROMPT, height=height, width=width, num_inference_steps=4, guidance_scale=3.0,
                      generator=generator, output_type="latent").images  # fmt: skip
    if pipe.ndim == 3:  # dev leaves them packed
        h, w = (latents(came).shape[2] // 2, latents(came).shape[3] // 2)
        pipe = F.pixel_shuffle(pipe.transpose(1, 2).unflatten(2, (h, w)), 2)
    else:
        pipe = normalised(flux2, pipe)
    assert relative(latents(came), pipe) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, NEGATIVE + " [IMG] <|im_end|> [INST] don't  ", "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(flux2: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _ = flux2.pipe.encode_prompt(prompt)
    # Thirty layers, where the others have two.
    assert relative(flux2.text(prompt)["prompt_embeds"], text) < 10 * ONE_PASS


def test_pictures_equal_diffusers_to_a_grey_level(flux2: Exported) -> None:
    result, vae = painted(flux2.run, SINGLE, (5,)), flux2.pipe.vae
    with torch.no_grad():
        picture = vae.decode(as_the_vae_has_it(flux2, latents(result))).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(flux2: Exported) -> None:
    assert not operators(flux2, "step") & INDEXING
