"""Z-Image: bundle against diffusers' own pipeline in a single stage, and against a torch loop in several."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import factory_zimage as factory
import onnx_ir as ir
import pytest
import torch
from diffusers import ZImageTransformer2DModel
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

from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.errors import LssgenError, ModelError, PlanError
from lssgen.export.config import ExportConfig
from lssgen.export.export import design, export
from lssgen.models.configs import read_json
from lssgen.models.costs import zimage_cost
from lssgen.models.nets.zimage import ZImageStep
from lssgen.parity.samples import axis_sizes, sample_inputs

pytestmark = pytest.mark.slow  # an export of half a minute, as SD and SD3 have every time

LONG = "a big ring, and a small square, and a red circle left of them, " * 2
"""Of more than 32 tokens more than the others, so that prompts are filled up to unlike lengths."""


@pytest.fixture(scope="session")
def zimage(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(factory.tiny_zimage, tmp_path_factory.mktemp("zimage"))


def published(zimage: Exported, prompts: list[str], seeds: tuple[int, ...], **options: Any) -> Tensor:
    """Latents of ZImagePipeline itself."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return zimage.pipe(prompts, generator=generators, output_type="latent", **options).images


@torch.no_grad()
def wanted(zimage: Exported, options: dict[str, Any], seeds: tuple[int, ...], negative: str = NEGATIVE) -> Tensor:
    """Latents of the staged loop, with the pipeline's transformer, levels and scheduler."""
    positive, negatives = zimage.pipe.encode_prompt([PROMPT], "cpu", True, [negative])
    texts = [negatives[0], positive[0]] if "guidance_scale" in options else [positive[0]]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        pictures = list(x.unsqueeze(2).unbind(0))
        return [
            -torch.stack(
                zimage.pipe.transformer(pictures, (1000 - t) / 1000, [text] * len(x), return_dict=False)[0]
            ).squeeze(2)
            for text in texts
        ]

    given = options
    if "guidance_scale" in options:  # the loop counts from the negative branch
        given = options | {"guidance_scale": options["guidance_scale"] + 1}
    case = Case(pipe=zimage.pipe, predict=predict, channels=4, align=2, grid="even", upsampler=zimage.upsampler)
    return staged(case, seeds=seeds, **given)


@pytest.mark.parametrize("size", [(64, 96), (32, 64), (72, 56), (128, 96)])
@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_a_single_stage_equals_the_pipeline_of_diffusers(zimage: Exported, size: tuple[int, int], scale: float) -> None:
    """Sizes with and without filling: 96, 32, 63 and 192 tokens, of multiples of 32."""
    height, width = size
    options: dict[str, Any] = {"height": height, "width": width, "num_inference_steps": 4, "guidance_scale": scale}
    came = painted(zimage.run, SINGLE | options | {"min_resolution": min(size)}, (7, 8), NEGATIVE)
    expected = published(zimage, [PROMPT, PROMPT], (7, 8), negative_prompt=[NEGATIVE] * 2, **options)
    assert relative(latents(came), expected) < CLOSE


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_prompts_of_unlike_length_equal_the_pipeline_of_diffusers(zimage: Exported, scale: float) -> None:
    """Pictures stand at a depth of their own behind their prompts, and nobody sees another's filling."""
    prompts, negative = [PROMPT, LONG], "a ring, " * 20
    options: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 4, "guidance_scale": scale}
    came = (
        zimage.run(
            prompts,
            negative_prompt=negative,
            seed=5,
            batch=2,
            min_resolution=64,
            base_height=64,
            base_width=96,
            **options,
        )
        if scale
        else zimage.run(prompts, seed=5, batch=2, min_resolution=64, base_height=64, base_width=96, **options)
    )
    seeds = tuple(picture.seed for picture in came.pictures)
    expected = published(zimage, prompts, seeds, negative_prompt=[negative] * 2, **options)
    assert relative(latents(came), expected) < CLOSE


def test_steps_beyond_a_truncation_go_without_guidance_as_in_diffusers(zimage: Exported) -> None:
    options: dict[str, Any] = {
        "height": 64, "width": 96, "num_inference_steps": 6, "guidance_scale": 2.5, "cfg_truncation": 0.1,
    }  # fmt: skip
    came = painted(zimage.run, SINGLE | options, (7, 8), NEGATIVE)
    branches = [len(step.guidance) for step in came.plan.stages[0].steps]
    assert branches == [2, 2, 2, 1, 1, 1]  # levels of shift 6: 1, 0.97, 0.92, 0.86, 0.75, 0.55
    expected = published(zimage, [PROMPT, PROMPT], (7, 8), negative_prompt=[NEGATIVE] * 2, **options)
    assert relative(latents(came), expected) < CLOSE


RUNS: dict[str, dict[str, Any]] = {
    "single stage": SINGLE,
    "two stages, guided": TWO | GUIDED,
    "three stages, shortened": THREE,
    "by pixels": TWO | {"scaling_space": "pixel"},
    "by the upsampler": TWO | {"scaling_space": "resnet"},
}


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_a_torch_loop(zimage: Exported, name: str) -> None:
    seeds = (7, 8) if "guided" in name else (3,)
    options = {"guidance_scale": 0.0} | RUNS[name]
    result = painted(zimage.run, options, seeds, NEGATIVE if "guided" in name else "")
    assert relative(latents(result), wanted(zimage, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("prompt", ["", PROMPT, LONG, "你好 circle's", "circle " * 300])
@pytest.mark.filterwarnings("ignore:prompt too long")  # one of them is
def test_text_equals_encode_prompt(zimage: Exported, prompt: str) -> None:
    with torch.no_grad():
        (text,), _ = zimage.pipe.encode_prompt([prompt], "cpu", do_classifier_free_guidance=False)
    came = zimage.text(prompt)
    own = came["prompt_mask"][0] == 1
    assert own.sum() == len(text)
    assert relative(came["prompt_embeds"][0][own], text) < ONE_PASS
    assert len(own) % 32 == 0


def test_pictures_equal_diffusers_to_a_grey_level(zimage: Exported) -> None:
    result = painted(zimage.run, SINGLE | {"guidance_scale": 0.0}, (5,))
    latent = latents(result) / zimage.pipe.vae.config.scaling_factor + zimage.pipe.vae.config.shift_factor
    with torch.no_grad():
        picture = zimage.pipe.vae.decode(latent).sample[0]
    assert grey_levels(result.pictures[0].image, picture) <= 1


@pytest.mark.parametrize(("width", "words"), [(100, "multiples of 8 px"), (2056, "knows positions up to 2048 px")])
def test_sizes_that_the_pipeline_refuses_are_refused(zimage: Exported, width: int, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        painted(zimage.run, SINGLE | {"width": width}, (1,))


def test_the_graph_has_no_index_arithmetic(zimage: Exported) -> None:
    assert not operators(zimage, "step") & INDEXING


@pytest.mark.parametrize(("size", "tokens"), [((8, 16), 32), ((16, 16), 96)])
def test_costs_are_those_of_the_graphs_nodes(zimage: Exported, size: tuple[int, int], tokens: int) -> None:
    graph = zimage.bundle.manifest.graphs["step"]
    axes = axis_sizes(*size, 4, batch=1, branches=1, tokens={"tokens": tokens})
    counted = flops_of(zimage.bundle.path(graph.file), sample_inputs(graph.inputs, axes))
    cost = zimage_cost(read_json(zimage.folder / "transformer/config.json"), tokens)
    assert cost.flops(size[0] * size[1]) == counted


def test_only_the_layers_that_are_read_are_in_the_text_graph(zimage: Exported) -> None:
    model = ir.load(zimage.bundle.path(zimage.bundle.manifest.graphs["text"].file))
    names = [name for name in model.graph.initializers if name.startswith("text_encoder.")]
    assert {name.split(".")[2] for name in names if ".layers." in name} == {"0", "1"}
    assert "text_encoder.norm.weight" not in names


def test_weights_of_the_language_model_may_be_in_eight_bits(zimage: Exported, tmp_path: Path) -> None:
    job = QuantiseJob(bundle=zimage.bundle, output=tmp_path / "made", format="int8-weights", engine="onnxruntime")
    made = replace(zimage, bundle=quantise(job))
    about = made.bundle.manifest.graphs["text"].quantisation
    assert about is not None
    assert (about.format, about.products) == ("int8-weights", 2 * 7)
    # A code is off by half of 1/127 of a column's largest number, three standard deviations or so: 1 %, twice.
    assert 1e-4 < relative(made.text(LONG)["prompt_embeds"], zimage.text(LONG)["prompt_embeds"]) < 0.03


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_encoder", {"hidden_size": 64}, "the text encoder is of another size: its hidden states have 64 numbers"),
        ("text_encoder", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("transformer", {"siglip_feat_dim": 16}, "reads pictures through SigLIP, as ZImageOmniPipeline uses it"),
        ("transformer", {"all_patch_size": [4]}, "has no layers for squares of 2 cells"),
        (
            "transformer",
            {"axes_lens": [256, 64, 64]},
            "prompts of 512 tokens were asked for, .* positions for 224; give",
        ),
    ],
)
def test_parts_of_another_model_are_refused_in_one_line(
    tmp_path: Path, part: str, change: dict[str, object], words: str
) -> None:
    folder = factory.tiny_zimage(tmp_path / "checkpoint")
    file = folder / part / "config.json"
    factory.write_json(file, dict(read_json(file)) | change)
    with pytest.raises(LssgenError, match=words) as told:
        design(ExportConfig(model=str(folder), output=tmp_path / "bundle", resolutions=((32, 32),)))
    assert "\n" not in str(told.value)


def test_a_tokenizer_without_its_chat_template_is_refused(tmp_path: Path) -> None:
    folder = factory.tiny_zimage(tmp_path / "checkpoint")
    file = folder / "tokenizer/tokenizer_config.json"
    factory.write_json(file, {key: value for key, value in read_json(file).items() if key != "chat_template"})
    with pytest.raises(ModelError, match=r"the chat template of .* cannot be filled"):
        export(ExportConfig(model=str(folder), output=tmp_path / "bundle", resolutions=((32, 32),), probe="none"))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_positions_are_those_of_diffusers(count: int) -> None:
    net = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
        axes_dims=(4, 6, 6), axes_lens=(1024, 64, 128),
    )  # fmt: skip
    step = ZImageStep(net)
    words = torch.zeros(count, 24)
    _, _, _, image_ids, text_ids, _, _ = net.patchify_and_embed([torch.zeros(4, 1, 6, 2 * count)], [words], 2, 1)
    own = torch.tensor([[(count + 31) // 32 * 32.0]])
    for ids, came in ((image_ids[0], step.image_rotation(own, 3, count)), (text_ids[0], step.text_rotation(int(own)))):
        turns = net.rope_embedder(ids)[: came.shape[2]]
        expected = torch.stack((turns.real, turns.imag)).repeat_interleave(2, -1)
        assert torch.allclose(came[:, 0], expected, atol=1e-6)
