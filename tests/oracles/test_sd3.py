"""Stable Diffusion 3: bundle against diffusers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exported import CLOSE, INDEXING, NEGATIVE, ONE_PASS, PROMPT, Exported, grey_levels, latents, operators, painted
from loop import Case, Predict, relative, staged
from torch import Tensor

from lssgen.bundle import Bundle
from lssgen.plan import SkipLayerGuidance

SIZE: dict[str, Any] = {"height": 64, "width": 96, "base_height": 64, "base_width": 96}
ONE = SIZE | {"min_resolution": 64, "num_inference_steps": 4}
TWO = SIZE | {"min_resolution": 32, "num_inference_steps": 5}
THREE = SIZE | {"min_resolution": 16, "num_inference_steps": 12, "shorten": True}
GUIDED = {"guidance_scale": 3.0}
SKIPPING = {"scale": 2.8, "start": 0.1, "stop": 0.7}
"""A window that opens in every stage of five steps: i = 1, 2, 3."""

RUNS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "one stage": (ONE, (3,)),
    "one stage, guided": (ONE | GUIDED, (3, 4)),
    "two stages": (TWO, (7, 8, 9)),
    "two stages, guided": (TWO | GUIDED, (7, 8)),
    "two stages, later start": (TWO | {"start_sigma": 0.5}, (0,)),
    "two stages, by the upsampler": (TWO | GUIDED | {"scaling_space": "resnet"}, (5, 6, 7)),
    "two stages, by pixels": (TWO | GUIDED | {"scaling_space": "pixel"}, (11, 12)),
    "three stages, shortened": (THREE | GUIDED, (1, 2)),
    "three stages, by pixels": (THREE | {"scaling_space": "pixel"}, (1,)),
    "three stages, by the upsampler": (THREE | {"scaling_space": "resnet"}, (2, 3)),
    "square": (TWO | GUIDED | {"width": 64, "base_width": 64}, (2**32 + 5,)),
}


@pytest.fixture(scope="module")
def model(sd3: Path, sd3_bundle: Bundle) -> Exported:
    return Exported(folder=sd3, upsampler=sd3 / "upsampler", bundle=sd3_bundle)


def encoded(model: Exported, prompt: str) -> tuple[Tensor, Tensor]:
    """Tokens and pooled embedding, as diffusers has them."""
    with torch.no_grad():
        tokens, _, pooled, _ = model.pipe.encode_prompt(
            prompt, prompt, prompt, do_classifier_free_guidance=False, max_sequence_length=24
        )
    return tokens, pooled


def network(model: Exported, x: Tensor, t: Tensor, text: tuple[Tensor, Tensor], **skip: Any) -> Tensor:
    tokens, pooled = text
    return model.pipe.transformer(x, tokens.expand(len(x), -1, -1), pooled.expand(len(x), -1), t, **skip).sample


def plain(model: Exported, guided: bool) -> Predict:
    texts = [encoded(model, prompt) for prompt in ([NEGATIVE, PROMPT] if guided else [PROMPT])]
    return lambda x, t, _: [network(model, x, t, text) for text in texts]


def skipping(model: Exported, steps: int, guidance_scale: float) -> Predict:
    """Guidance that also leaves out layer 0: out += scale * (positive - skip), inside the window of every stage."""
    negative, positive = encoded(model, NEGATIVE), encoded(model, PROMPT)
    seen: list[tuple[int, int]] = []

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        seen.append(size)
        index = seen.count(size) - 1
        outputs = [network(model, x, t, text) for text in (negative, positive)]
        if steps * SKIPPING["start"] < index < steps * SKIPPING["stop"]:
            gain = SKIPPING["scale"] * (outputs[1] - network(model, x, t, positive, skip_layers=[0]))
            # The loop makes n + g (p - n) of it; a change of n by d is one of (1 - g) d.
            outputs[0] = outputs[0] + gain / (1 - guidance_scale)
        return outputs

    return predict


@torch.no_grad()
def wanted(model: Exported, predict: Predict, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    case = Case(pipe=model.pipe, predict=predict, channels=4, align=2, grid="range", upsampler=model.upsampler)
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(model: Exported, name: str) -> None:
    options, seeds = RUNS[name]
    guided = "guidance_scale" in options
    result = painted(model.run, options, seeds, NEGATIVE if guided else "")
    predict = plain(model, guided)
    assert relative(latents(result), wanted(model, predict, options, seeds)) < CLOSE


def test_latents_with_skip_layer_guidance_equal_a_torch_loop(model: Exported) -> None:
    options = TWO | GUIDED
    result = painted(model.run, options | {"skip_layers": SkipLayerGuidance(**SKIPPING)}, (7, 8), NEGATIVE)
    predict = skipping(model, steps=5, guidance_scale=3.0)
    assert relative(latents(result), wanted(model, predict, options, (7, 8))) < CLOSE


def test_skip_layer_guidance_changes_the_picture(model: Exported) -> None:
    without = latents(painted(model.run, TWO | GUIDED, (7,), NEGATIVE))
    skipped = painted(model.run, TWO | GUIDED | {"skip_layers": SkipLayerGuidance(**SKIPPING)}, (7,), NEGATIVE)
    assert relative(latents(skipped), without) > 100 * CLOSE


@pytest.mark.filterwarnings("ignore::lssgen.runtime.text.PromptWarning")
@pytest.mark.parametrize("prompt", ["", PROMPT, "circle " * 100])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(model: Exported, prompt: str) -> None:
    tokens, pooled = encoded(model, prompt)
    came = model.text(prompt)
    assert relative(came["prompt_embeds"], tokens) < ONE_PASS
    assert relative(came["pooled_prompt_embeds"], pooled) < ONE_PASS


def test_pictures_equal_diffusers_to_a_grey_level(model: Exported) -> None:
    result = painted(model.run, ONE, (5,))
    with torch.no_grad():
        picture = model.pipe.vae.decode(latents(result) / 1.5305 + 0.0609).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(model: Exported) -> None:
    assert not operators(model, "step") & INDEXING
