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
from onnx_flops import flops_of
from qwen_pipelines import LONG, Frames, generators, kept_long, packed, unpacked
from torch import Tensor

from lssgen.models.configs import read_json
from lssgen.models.costs import qwen_cost
from lssgen.models.nets.qwen import AROUND, DROP
from lssgen.models.nets.recipe import PROMPT as PLACE
from lssgen.parity.samples import axis_sizes, sample_inputs

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tiny_qwen, tmp_path_factory.mktemp("qwen"))


@torch.no_grad()
def published(
    qwen: Exported, prompts: list[str], seeds: tuple[int, ...], *, height: int, width: int, **options: Any
) -> Tensor:
    """Latents of QwenImagePipeline itself; a size that does not divide is rounded down there."""
    tokens = qwen.pipe(
        prompts, height=height, width=width, generator=generators(seeds), output_type="latent", **options
    ).images
    return unpacked(tokens, height // 8, width // 8, 2)


@torch.no_grad()
def wanted(qwen: Exported, options: dict[str, Any], seeds: tuple[int, ...]) -> Tensor:
    """Latents of the staged loop, with the pipeline's transformer, levels and scheduler."""
    asked = (NEGATIVE, PROMPT) if "guidance_scale" in options else (PROMPT,)
    texts = [qwen.pipe.encode_prompt(text) for text in asked]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        n, _, h, w = x.shape
        return [
            unpacked(
                qwen.pipe.transformer(
                    packed(x, 2), text.expand(n, -1, -1), mask, t / 1000, [[(1, h // 2, w // 2)]] * n
                ).sample,
                h // 2,
                w // 2,
                2,
            )
            for text, mask in texts
        ]

    case = Case(
        pipe=Frames(qwen.pipe),
        predict=predict,
        channels=4,
        align=2,
        grid="even",
        upsampler=qwen.upsampler,
        clamped=False,
        settled=kept_long,
    )
    return staged(case, seeds=seeds, **options)


@pytest.mark.parametrize("negative", [None, "", NEGATIVE, LONG])
def test_a_single_stage_equals_the_pipeline_of_diffusers(qwen: Exported, negative: str | None) -> None:
    """Without a negative prompt there is no guidance there; here a scale of 1 says so."""
    scale = 1.0 if negative is None else 3.0
    options = {"height": 64, "width": 96, "num_inference_steps": 4}
    result = painted(qwen.run, SINGLE | {"guidance_scale": scale}, (3,), negative)
    expected = published(qwen, [PROMPT], (3,), negative_prompt=negative, true_cfg_scale=scale, **options)
    assert relative(latents(result), expected) < CLOSE


@pytest.mark.parametrize("size", [(32, 64), (72, 56), (128, 96), (67, 101), (264, 256)])
def test_every_size_is_that_of_the_pipeline_of_diffusers(qwen: Exported, size: tuple[int, int]) -> None:
    """Odd numbers of rows and columns, sizes that are rounded down, and a shift that goes on growing."""
    height, width = size
    options = {"height": height, "width": width, "num_inference_steps": 3}
    result = painted(qwen.run, SINGLE | options | {"min_resolution": min(size)}, (7,))
    assert relative(latents(result), published(qwen, [PROMPT], (7,), **options)) < CLOSE


@pytest.mark.parametrize("negative", [None, NEGATIVE, LONG + LONG])
def test_prompts_of_unlike_length_equal_the_pipeline_of_diffusers(qwen: Exported, negative: str | None) -> None:
    prompts, scale = [PROMPT, LONG], 1.0 if negative is None else 3.0
    options = {"height": 64, "width": 96, "num_inference_steps": 4}
    sizes = {"min_resolution": 64, "base_height": 64, "base_width": 96}
    came = qwen.run(prompts, negative_prompt=negative, seed=5, batch=2, guidance_scale=scale, **options, **sizes)
    expected = published(
        qwen,
        prompts,
        tuple(picture.seed for picture in came.pictures),
        negative_prompt=None if negative is None else [negative] * 2,
        true_cfg_scale=scale,
        **options,
    )
    assert relative(latents(came), expected) < CLOSE


RUNS: dict[str, dict[str, Any]] = {
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "a size that is floored": TWO | {"height": 72, "width": 104},
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(qwen: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    result = painted(qwen.run, RUNS[name], seeds, NEGATIVE if "guided" in name else None)
    assert relative(latents(result), wanted(qwen, RUNS[name], seeds)) < CLOSE


def test_guidance_keeps_the_length_of_every_token(qwen: Exported) -> None:
    """Without that, a scale of 3 paints something else."""
    kept = latents(painted(qwen.run, SINGLE | GUIDED, (3,), NEGATIVE))
    plain = wanted(qwen, SINGLE, (3,))
    assert relative(kept, plain) > 100 * CLOSE


def test_the_text_around_a_prompt_is_that_of_the_pipeline(qwen: Exported) -> None:
    assert AROUND.replace(PLACE, "{}") == qwen.pipe.prompt_template_encode
    assert qwen.pipe.prompt_template_encode_start_idx == DROP
    assert len(qwen.pipe.tokenizer(AROUND.partition(PLACE)[0]).input_ids) == DROP


@pytest.mark.parametrize("prompt", ["", " ", PROMPT, LONG, "你好 circle's <|im_end|>", "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(qwen: Exported, prompt: str) -> None:
    with torch.no_grad():
        text, _ = qwen.pipe.encode_prompt(prompt, max_sequence_length=512)
    came = qwen.text(prompt)
    assert relative(came["prompt_embeds"], text) < ONE_PASS
    assert bool(came["prompt_mask"].all())


def test_pictures_equal_diffusers_to_a_grey_level(qwen: Exported) -> None:
    result = painted(qwen.run, SINGLE, (5,))
    with torch.no_grad():
        picture = Frames(qwen.pipe).decode(latents(result)).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


def test_the_graphs_have_no_index_arithmetic_and_no_axis_of_time(qwen: Exported) -> None:
    assert not operators(qwen, "step") & INDEXING
    assert not (operators(qwen, "decode") | operators(qwen, "encode")) & (INDEXING | {"Slice", "Gather"})


def test_the_graph_costs_what_the_plan_says(qwen: Exported) -> None:
    graph = qwen.bundle.manifest.graphs["step"]
    axes = axis_sizes(16, 24, 4, batch=1, branches=1, tokens={"tokens": 11})
    inputs = sample_inputs(graph.inputs, axes)
    net = read_json(qwen.folder / "transformer" / "config.json")
    assert qwen_cost(net, 11).flops(16 * 24) == flops_of(qwen.bundle.path(graph.file), inputs)
