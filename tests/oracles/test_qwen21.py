"""Qwen-Image 2.1: bundle against diffusers."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import diffusers
import pytest
import torch
import transformers
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
from factory_qwen import tiny_qwen21
from loop import Case, relative, staged
from onnx_flops import flops_of
from qwen_pipelines import LONG, Frames, TextProcessor, generators, packed, unpacked
from torch import Tensor

from lssgen.models.configs import read_json
from lssgen.models.costs import qwen21_cost
from lssgen.models.nets.qwen21 import AROUND
from lssgen.models.nets.recipe import PROMPT as PLACE
from lssgen.parity.samples import axis_sizes, sample_inputs

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time


@dataclass(frozen=True, kw_only=True)
class Exported21(Exported):
    """Its processor is put together here: the real one prepares pictures with torchvision, which nothing else needs."""

    @cached_property
    def pipe(self) -> Any:
        pipe = diffusers.QwenImage21Pipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(self.folder / "scheduler"),
            vae=diffusers.AutoencoderKLQwenImage21.from_pretrained(self.folder / "vae"),
            text_encoder=transformers.Qwen3VLForConditionalGeneration.from_pretrained(self.folder / "text_encoder"),
            processor=TextProcessor(transformers.AutoTokenizer.from_pretrained(self.folder / "processor")),
            transformer=diffusers.QwenImage21Transformer2DModel.from_pretrained(self.folder / "transformer"),
        )
        # It takes sixteen pixels a cell for granted.
        pipe.vae_scale_factor = 4
        pipe.set_progress_bar_config(disable=True)
        return pipe


@pytest.fixture(scope="session")
def qwen21(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = exported(tiny_qwen21, tmp_path_factory.mktemp("qwen21"))
    return Exported21(folder=made.folder, upsampler=made.upsampler, bundle=made.bundle)


@torch.no_grad()
def published(
    qwen21: Exported, prompts: list[str], seeds: tuple[int, ...], *, height: int, width: int, **options: Any
) -> Tensor:
    """Latents of QwenImage21Pipeline itself; a size that does not divide is rounded down there."""
    tokens = qwen21.pipe(
        prompts, height=height, width=width, generator=generators(seeds), output_type="latent", **options
    ).images
    return unpacked(tokens, height // 8 * 2, width // 8 * 2, 1)


@torch.no_grad()
def wanted(qwen21: Exported, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    """Latents of the staged loop, with the pipeline's transformer, levels and scheduler."""
    asked = (NEGATIVE, PROMPT) if "guidance_scale" in options else (PROMPT,)
    texts = [qwen21.pipe.encode_prompt(text)[0] for text in asked]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        n, _, h, w = x.shape
        outputs: list[Tensor] = []
        for text in texts:
            slots = torch.cat((torch.zeros(n, text.shape[1]), torch.ones(n, h * w // 4)), 1).bool()
            output = qwen21.pipe.transformer(
                packed(x, 1), text.expand(n, -1, -1), t / 1000, [[(1, h, w)]] * n, slots
            ).sample
            outputs.append(unpacked(output[:, -h * w :], h, w, 1))
        return outputs

    case = Case(
        pipe=Frames(qwen21.pipe),
        predict=predict,
        channels=4,
        align=2,
        patch=1,
        grid="even",
        upsampler=qwen21.upsampler,
        clamped=False,
    )
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("negative", [None, "", NEGATIVE, LONG])
def test_a_single_stage_equals_the_pipeline_of_diffusers(qwen21: Exported, negative: str | None) -> None:
    """Without a negative prompt there is no guidance there; here a scale of 1 says so."""
    scale = 1.0 if negative is None else 3.0
    options = {"height": 64, "width": 96, "num_inference_steps": 4}
    result = painted(qwen21.run, SINGLE | {"guidance_scale": scale}, (3,), negative)
    expected = published(qwen21, [PROMPT], (3,), negative_prompt=negative, true_cfg_scale=scale, **options)
    assert relative(latents(result), expected) < CLOSE


@pytest.mark.parametrize("size", [(32, 64), (72, 56), (67, 101), (128, 96)])
def test_every_size_is_that_of_the_pipeline_of_diffusers(qwen21: Exported, size: tuple[int, int]) -> None:
    height, width = size
    options = {"height": height, "width": width, "num_inference_steps": 3}
    result = painted(qwen21.run, SINGLE | options | {"min_resolution": min(size)}, (7,))
    assert relative(latents(result), published(qwen21, [PROMPT], (7,), **options)) < CLOSE


@pytest.mark.parametrize("negative", [None, LONG + LONG])
def test_prompts_of_unlike_length_equal_the_pipeline_of_diffusers_one_by_one(
    qwen21: Exported, negative: str | None
) -> None:
    """There a picture's place depends on the longest prompt of its batch; here, company changes nothing."""
    prompts, scale = [PROMPT, LONG], 1.0 if negative is None else 3.0
    options = {"height": 64, "width": 96, "num_inference_steps": 4}
    sizes = {"min_resolution": 64, "base_height": 64, "base_width": 96}
    came = qwen21.run(prompts, negative_prompt=negative, seed=5, batch=2, guidance_scale=scale, **options, **sizes)
    for prompt, picture, latent in zip(prompts, came.pictures, latents(came), strict=True):
        expected = published(
            qwen21, [prompt], (picture.seed,), negative_prompt=negative, true_cfg_scale=scale, **options
        )
        assert relative(latent[None], expected) < CLOSE


RUNS: dict[str, dict[str, Any]] = {
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(qwen21: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(qwen21.run, RUNS[name], seeds, NEGATIVE if "guided" in name else None)
    assert relative(latents(result), wanted(qwen21, RUNS[name], seeds)) < CLOSE


def test_the_text_around_a_prompt_is_that_of_the_pipeline(qwen21: Exported) -> None:
    assert AROUND.replace(PLACE, "{}") == qwen21.pipe.prompt_template_t2i
    (tokens,) = qwen21.bundle.manifest.tokenizers
    assert tokens.drop == qwen21.pipe._drop_idx


@pytest.mark.parametrize("prompt", ["", " ", PROMPT, LONG, "你好 circle's <|im_end|>"])
def test_text_equals_encode_prompt(qwen21: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _, _ = qwen21.pipe.encode_prompt(prompt)
    came = qwen21.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert bool(came["prompt_mask"].all())


def test_pictures_equal_the_colours_of_diffusers_to_a_grey_level(qwen21: Exported) -> None:
    result = painted(qwen21.run, SINGLE, (5,))
    with torch.no_grad():
        picture = Frames(qwen21.pipe).decode(latents(result)).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graphs_have_no_index_arithmetic(qwen21: Exported) -> None:
    assert not (operators(qwen21, "step") | operators(qwen21, "decode") | operators(qwen21, "encode")) & INDEXING


def test_the_graph_costs_what_the_plan_says(qwen21: Exported) -> None:
    graph = qwen21.bundle.manifest.graphs["step"]
    axes = axis_sizes(16, 24, 4, batch=1, branches=1, tokens={"tokens": 11})
    inputs = sample_inputs(graph.inputs, axes)
    net = read_json(qwen21.folder / "transformer" / "config.json")
    assert qwen21_cost(net, 11).flops(16 * 24) == flops_of(qwen21.bundle.path(graph.file), inputs)
