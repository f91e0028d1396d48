"""Chroma: bundle against diffusers' own pipeline in a single stage, and against a torch loop in several."""

from typing import Any

import factory_chroma as factory
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
from onnx_flops import flops_of
from torch import Tensor
from torch.nn import functional as F

from lssgen.models.configs import read_json
from lssgen.models.costs import chroma_cost
from lssgen.parity.samples import axis_sizes, sample_inputs

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

LONG = "a big ring, and a small square, and a red circle left of them, " * 2

RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "a size that is floored": TWO | {"height": 72, "width": 104},
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.fixture(scope="session")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_chroma, tmp_path_factory.mktemp("chroma"))


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    return F.fold(tokens.transpose(1, 2), (height, width), 2, stride=2)


@torch.no_grad()
def wanted(chroma: Exported, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    guided = "guidance_scale" in options
    text, ids, mask, *other = chroma.pipe.encode_prompt(PROMPT, NEGATIVE, "cpu", do_classifier_free_guidance=guided)
    branches = [tuple(other), (text, ids, mask)] if guided else [(text, ids, mask)]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        batch, _, h, w = x.shape
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(h // 2.0), torch.arange(w // 2.0))
        tokens = F.unfold(x, 2, stride=2).transpose(1, 2)
        return [
            unpacked(
                chroma.pipe.transformer(
                    tokens,
                    words.expand(batch, -1, -1),
                    t / 1000,
                    places,
                    text_ids,
                    torch.cat((counted, torch.ones(1, h * w // 4)), 1).expand(batch, -1),
                ).sample,
                h,
                w,
            )
            for words, text_ids, counted in branches
        ]

    case = Case(pipe=chroma.pipe, predict=predict, channels=4, align=2, grid="even", upsampler=chroma.upsampler)
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(chroma: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(chroma.run, RUNS[name], seeds, NEGATIVE if "guided" in name else "")
    assert relative(latents(result), wanted(chroma, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("prompts", [[PROMPT, PROMPT], [PROMPT, LONG]])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_single_stage_equals_the_pipeline_of_diffusers(chroma: Exported, prompts: list[str], scale: float) -> None:
    options: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": scale}
    stage = {"min_resolution": 64, "base_height": 64, "base_width": 96, "batch": 2}
    negative = NEGATIVE if scale > 1 else None
    came = chroma.run(prompts, negative_prompt=negative, seed=5, **stage, **options)
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in came.pictures]
    packed = chroma.pipe(
        prompts, negative_prompt=[NEGATIVE] * 2, generator=generators, output_type="latent", **options
    ).images
    assert relative(latents(came), unpacked(packed, 16, 24)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, LONG, "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(chroma: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _, mask, *_ = chroma.pipe.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
    came = chroma.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert torch.equal(came["prompt_mask"], mask)


def test_pictures_equal_diffusers_to_a_grey_level(chroma: Exported) -> None:
    result, vae = painted(chroma.run, SINGLE, (5,)), chroma.pipe.vae
    with torch.no_grad():
        picture = vae.decode(latents(result) / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graph_has_no_index_arithmetic(chroma: Exported) -> None:
    assert not operators(chroma, "step") & INDEXING


@pytest.mark.parametrize(("size", "tokens"), [((8, 16), 32), ((6, 10), 17)])
def test_costs_are_those_of_the_graphs_nodes(chroma: Exported, size: tuple[int, int], tokens: int) -> None:
    graph = chroma.bundle.manifest.graphs["step"]
    axes = axis_sizes(*size, 4, batch=1, branches=1, tokens={"tokens": tokens})
    counted = flops_of(chroma.bundle.path(graph.file), sample_inputs(graph.inputs, axes))
    cost = chroma_cost(read_json(chroma.folder / "transformer/config.json"), tokens)
    assert cost.flops(size[0] * size[1]) == counted
