"""Qwen-Image: bundle against diffusers."""

from typing import Any

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
from factory_qwen import tiny_qwen
from loop import Case, relative, staged
from torch import Tensor
from torch.nn import functional as F

from lssgen.models.nets.qwen import AROUND, DROP
from lssgen.models.nets.recipe import PROMPT as PLACE

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

LONG = "a big ring, and a small square, and a red circle left of them"


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tiny_qwen, tmp_path_factory.mktemp("qwen"))


@torch.no_grad()
def piped(qwen: Exported, options: dict[str, Any], seed: int, negative: str | None) -> Tensor:
    """(1, C, h, w): what diffusers' own pipeline paints."""
    height, width = options["height"], options["width"]
    given = {} if negative is None else {"negative_prompt": negative}
    tokens = qwen.pipe(
        prompt=PROMPT,
        true_cfg_scale=options.get("guidance_scale", 1.0),
        height=height,
        width=width,
        num_inference_steps=options["num_inference_steps"],
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="latent",
        **given,
    ).images
    return F.fold(tokens.transpose(1, 2), (height // 8 * 2, width // 8 * 2), 2, stride=2)


@pytest.mark.parametrize("negative", [None, "", NEGATIVE, LONG])
def test_a_single_stage_equals_the_pipeline(qwen: Exported, negative: str | None) -> None:
    options = SINGLE if negative is None else SINGLE | GUIDED
    result = painted(qwen.run, options, (3,), negative)
    assert relative(latents(result), piped(qwen, options, 3, negative)) < CLOSE


def test_the_text_around_a_prompt_is_the_pipelines(qwen: Exported) -> None:
    assert AROUND.replace(PLACE, "{}") == qwen.pipe.prompt_template_encode
    assert qwen.pipe.prompt_template_encode_start_idx == DROP
    assert len(qwen.pipe.tokenizer(AROUND.partition(PLACE)[0]).input_ids) == DROP


@pytest.mark.parametrize("prompt", ["", PROMPT, LONG, "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(qwen: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _ = qwen.pipe.encode_prompt(prompt, max_sequence_length=512)
    came = qwen.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert bool(came["prompt_mask"].all())


def test_pictures_equal_diffusers_to_a_grey_level(qwen: Exported) -> None:
    result = painted(qwen.run, SINGLE, (5,))
    config = qwen.pipe.vae.config
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        picture = qwen.pipe.vae.decode((latents(result) * std + mean).unsqueeze(2)).sample[0, :, 0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(qwen: Exported) -> None:
    assert not operators(qwen, "step") & INDEXING
