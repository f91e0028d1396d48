"""CogView4: bundle against diffusers."""

from typing import Any

import factory_families as factory
import pytest
import torch
from exported import (
    CLOSE,
    GUIDED,
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

from lssgen.errors import ModelError
from lssgen.models.nets.cogview4 import CogViewStep

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

LONG = "a big ring, and a small square, and a red circle left of them"

RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.fixture(scope="session")
def cogview4(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_cogview4, tmp_path_factory.mktemp("cogview4"))


@torch.no_grad()
def wanted(cogview4: Exported, options: dict[str, Any], seeds: tuple[int, ...], negative: str = NEGATIVE) -> Tensor:
    positive, negative_text = cogview4.pipe.encode_prompt(PROMPT, negative)
    texts = [negative_text, positive] if "guidance_scale" in options else [positive]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        sizes = torch.tensor([size], dtype=torch.float32).expand(len(x), -1)
        return [
            cogview4.pipe.transformer(x, text.expand(len(x), -1, -1), t, sizes, sizes, torch.zeros(len(x), 2)).sample
            for text in texts
        ]

    case = Case(pipe=cogview4.pipe, predict=predict, channels=4, align=2, grid="labels", upsampler=cogview4.upsampler)
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(cogview4: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(cogview4.run, RUNS[name], seeds, NEGATIVE if "guided" in name else "")
    assert relative(latents(result), wanted(cogview4, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("negative", ["", LONG])
def test_prompts_of_unlike_length_do_not_see_each_others_filling(cogview4: Exported, negative: str) -> None:
    """diffusers evaluates the branches one by one, each with its own number of tokens."""
    result = painted(cogview4.run, TWO | GUIDED, (4,), negative)
    assert relative(latents(result), wanted(cogview4, TWO | GUIDED, (4,), negative)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, LONG, "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(cogview4: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _ = cogview4.pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    came = cogview4.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert bool(came["prompt_mask"].all())


def test_pictures_equal_diffusers_to_a_grey_level(cogview4: Exported) -> None:
    result = painted(cogview4.run, SINGLE, (5,))
    with torch.no_grad():
        picture = cogview4.pipe.vae.decode(latents(result)).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(cogview4: Exported) -> None:
    assert not operators(cogview4, "step") & INDEXING


def test_older_norm_of_diffusers_is_refused() -> None:
    """In 0.33 it applied SiLU once more; the numbers would be others, without a word."""

    class AdaLayerNormContinuous(torch.nn.Module):
        pass

    network = torch.nn.Module()
    network.transformer_blocks = torch.nn.ModuleList()
    network.norm_out = AdaLayerNormContinuous()
    with pytest.raises(ModelError, match=r"last norm of CogView4 as 0\.33 did.*pip install -U diffusers"):
        CogViewStep(network)
