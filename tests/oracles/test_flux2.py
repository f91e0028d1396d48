"""FLUX.2 dev and klein: bundle against diffusers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import factory_flux2 as factory
import numpy as np
import onnx_ir as ir
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
from onnx_flops import flops_of
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import lssgen
from lssgen.parity.samples import axis_sizes, sample_inputs

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


def painted_by(flux2: Exported, pipe: Tensor, like: Tensor) -> Tensor:
    """Latents of a pipeline as the network paints them: dev leaves them so, and packed, klein as its VAE has them."""
    if pipe.ndim == 4:
        return normalised(flux2, pipe)
    return F.pixel_shuffle(pipe.transpose(1, 2).unflatten(2, (like.shape[2] // 2, like.shape[3] // 2)), 2)


def as_the_vae_has_it(flux2: Exported, latent: Tensor) -> Tensor:
    """Undoes `normalised`."""
    mean, spread = (each.reshape(1, -1, 1, 1) for each in factory.statistics(flux2.folder))
    return F.pixel_shuffle(F.pixel_unshuffle(latent, 2) * spread + mean, 2)


def packed(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def places(time: int, rows: int, columns: int) -> Tensor:
    """(rows * columns, 4): time, row, column and number in the text."""
    return torch.cartesian_prod(*(torch.arange(n) + at for n, at in ((1, time), (rows, 0), (columns, 0), (1, 0))))


@torch.no_grad()
def wanted(flux2: Exported, options: dict[str, Any], seeds: tuple[int, ...], shown: Tensor | None = None) -> Tensor:
    """The staged run, with diffusers' network and scheduler; `shown` is a reference picture as the network sees it."""
    options = {"guidance_scale": 1.0} | options
    net, scale = flux2.pipe.transformer, options.pop("guidance_scale")
    told, branched = net.config.guidance_embeds, flux2.pipe.config.get("is_distilled") is False
    texts = ("", PROMPT) if branched and scale > 1 else (PROMPT,)
    heard = [flux2.pipe.encode_prompt(text) for text in texts]

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        del size
        batch, _, h, w = x.shape
        ids, tokens = places(0, h // 2, w // 2), packed(x)
        if shown is not None:
            ids = torch.cat((ids, places(10, shown.shape[2] // 2, shown.shape[3] // 2)))
            tokens = torch.cat((tokens, packed(shown).expand(batch, -1, -1)), 1)
        outputs = [
            net(
                tokens,
                text.expand(batch, -1, -1),
                t / 1000,
                ids,
                text_ids,
                torch.full((batch,), scale) if told else None,
            ).sample[:, : h // 2 * (w // 2)]
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
    # Distilled klein starts later stages elsewhere.
    result = painted(flux2.run, {"start_sigma": 0.75} | RUNS[name], seeds)
    assert relative(latents(result), wanted(flux2, RUNS[name], seeds)) < CLOSE


@pytest.mark.parametrize("size", [(64, 96), (70, 100), (128, 48)])
@torch.no_grad()
def test_a_run_in_one_stage_equals_the_pipeline(flux2: Exported, size: tuple[int, int]) -> None:
    height, width = size
    came = flux2.run(PROMPT, height=height, width=width, min_resolution=48, start_sigma=1.0, shorten=False,
                     num_inference_steps=4, guidance_scale=3.0, seed=11)  # fmt: skip
    generator = torch.Generator("cpu").manual_seed(11)
    pipe = flux2.pipe(prompt=PROMPT, height=height, width=width, num_inference_steps=4, guidance_scale=3.0,
                      generator=generator, output_type="latent").images  # fmt: skip
    assert relative(latents(came), painted_by(flux2, pipe, latents(came))) < CLOSE


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


@torch.no_grad()
def test_prompts_of_unlike_lengths_share_a_batch(flux2: Exported) -> None:
    prompts = [PROMPT, "circle " * 30]
    came = flux2.run(prompts, **SINGLE, batch=2, start_sigma=1.0, shorten=False, guidance_scale=3.0, seed=11)
    pipe = flux2.pipe(
        prompt=prompts, height=64, width=96, num_inference_steps=4, guidance_scale=3.0, output_type="latent",
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (11, 12)],
    ).images  # fmt: skip
    assert relative(latents(came), painted_by(flux2, pipe, latents(came))) < CLOSE


@pytest.mark.parametrize("size", [(16, 24), (6, 10)])
def test_costs_are_those_of_the_graphs_nodes(flux2: Exported, size: tuple[int, int]) -> None:
    graph = flux2.bundle.manifest.graphs["step"]
    axes = axis_sizes(*size, 4, batch=1, branches=1, tokens=flux2.bundle.manifest.token_axes)
    counted = flops_of(flux2.bundle.path(graph.file), sample_inputs(graph.inputs, axes))
    # Products and attention are counted one by one on both sides: these are whole numbers, and equal.
    assert flux2.bundle.manifest.facts.cost.flops(size[0] * size[1]) == counted


def test_only_the_layers_that_are_read_are_in_the_text_graph(flux2: Exported) -> None:
    """The language model reads further in its last layers, writes with its head, and dev's sees pictures."""
    model = ir.load(flux2.bundle.path(flux2.bundle.manifest.graphs["text"].file))
    names = [name for name in model.graph.initializers if name.startswith("text_encoder.")]
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in names if ".layers." in name}
    assert layers == set(range(30 if flux2.bundle.manifest.facts.guidance == "embedded" else 27))
    assert not any("lm_head" in name or "vision" in name for name in names)


@pytest.fixture(scope="module", params=["klein base", "dev"])
def editing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp(f"editing-{request.param.replace(' ', '-')}")
    return exported(MAKERS[request.param], root, references=((64, 64),))


def references(*sizes: tuple[int, int]) -> list[Image.Image]:
    """Pictures of noise, of (width, height)."""
    rng = np.random.default_rng(4)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


@pytest.mark.parametrize("sizes", [(), ((64, 64),), ((72, 100), (90, 64))], ids=["none", "one", "two, cut to tokens"])
@torch.no_grad()
def test_reference_pictures_are_seen_as_the_pipeline_shows_them(
    editing: Exported, sizes: tuple[tuple[int, int], ...]
) -> None:
    given = references(*sizes)
    came = editing.run(PROMPT, references=given, **SINGLE, start_sigma=1.0, shorten=False, guidance_scale=3.0, seed=11)
    pipe = editing.pipe(
        prompt=PROMPT, image=given or None, height=64, width=96, num_inference_steps=4, guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(11), output_type="latent",
    ).images  # fmt: skip
    assert relative(latents(came), painted_by(editing, pipe, latents(came))) < CLOSE


@torch.no_grad()
def test_reference_pictures_are_seen_in_every_stage(editing: Exported) -> None:
    """At their own size: a run in two stages, against the loop in torch whose network sees them."""
    (given,) = references((64, 64))
    pixels = torch.from_numpy(np.array(given)).permute(2, 0, 1)[None] / 127.5 - 1
    shown = normalised(editing, editing.pipe.vae.encode(pixels).latent_dist.mode())
    result = editing.run(
        PROMPT,
        references=[given],
        **TWO,
        start_sigma=0.75,
        scaling_space="latent",
        guidance_scale=1.0,
        shorten=False,
        seed=3,
    )
    assert relative(latents(result), wanted(editing, TWO, (3,), shown)) < CLOSE


@pytest.mark.parametrize("sizes", [(), ((64, 64), (96, 64))], ids=["none", "two"])
def test_openvino_sees_reference_pictures_of_any_size(editing: Exported, sizes: tuple[tuple[int, int], ...]) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    asked: dict[str, Any] = SINGLE | {"start_sigma": 1.0, "shorten": False, "guidance_scale": 3.0, "seed": 11}
    with lssgen.load(editing.bundle.folder, engine="openvino", threads=1) as other:
        came = other(PROMPT, references=references(*sizes), **asked)
    # Its own kernels, and their own order of summation.
    assert relative(latents(came), latents(editing.run(PROMPT, references=references(*sizes), **asked))) < CLOSE
