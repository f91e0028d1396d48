"""Stable Diffusion 1 with a ControlNet, and its inpainting checkpoints: bundle against diffusers' pipelines."""

from pathlib import Path
from typing import Any

import factory_control as control
import factory_families as factory
import pytest
import torch
from controlled import HEIGHT, STEPS, WIDTH, bundled, means, ours, shrunk, theirs
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from exported import CLOSE, INDEXING, NEGATIVE, PROMPT, TWO, Exported, operators
from loop import Case, relative, staged
from torch import Tensor

another_export = pytest.mark.slow  # 15 to 20 s each; that of the ControlNet is made every time
"""Mark of tests that export a second checkpoint."""

PICTURE = control.drawing(WIDTH, HEIGHT)
MASK = control.hole(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return bundled(tmp_path_factory.mktemp("control-sd"), factory.tiny_sd, control.control_sd)


@pytest.fixture(scope="module")
def pipe(steered: Exported) -> Any:
    net = ControlNetModel.from_pretrained(steered.folder.parent / "controlnet")
    return StableDiffusionControlNetPipeline.from_pretrained(steered.folder, controlnet=net, safety_checker=None)


ASKED: dict[str, dict[str, Any]] = {
    "as it is": {"guidance_scale": 1.0},
    "guided, a batch": {"guidance_scale": 3.0},
    "weaker": {"guidance_scale": 3.0, "controlnet_conditioning_scale": 0.4},
    "for a part of the steps": {
        "guidance_scale": 3.0, "control_guidance_start": 0.2, "control_guidance_end": 0.7,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_latents_equal_diffusers(steered: Exported, pipe: Any, name: str) -> None:
    seeds = (7, 8) if "batch" in name else (3,)
    came = ours(steered, seeds, control_image=PICTURE, **ASKED[name])
    wanted = theirs(pipe, seeds, image=PICTURE, negative_prompt=NEGATIVE, **ASKED[name])
    assert relative(came, wanted) < CLOSE


def test_every_stage_sees_the_picture_at_its_own_size(steered: Exported, pipe: Any) -> None:
    large = control.drawing(2 * WIDTH, 2 * HEIGHT)
    embeds, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)

    def predict(x: Tensor, t: Tensor, size: tuple[int, int]) -> list[Tensor]:
        down, middle = pipe.controlnet(x, t, embeds, shrunk(large, size), 0.8, return_dict=False)
        more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return [pipe.unet(x, t, embeds, **more).sample]

    pipe.scheduler = factory.pndm()
    with torch.no_grad():
        wanted = staged(Case(pipe=pipe, predict=predict, channels=4), seeds=(3,), **TWO)
    came = ours(
        steered, control_image=large, controlnet_conditioning_scale=0.8, guidance_scale=1.0,
        **TWO | {"start_sigma": 0.75},
    )  # fmt: skip
    assert relative(came, wanted) < CLOSE


def test_a_control_picture_that_is_off_changes_no_bit(steered: Exported) -> None:
    without = ours(steered, controlnet_conditioning_scale=0.0, guidance_scale=3.0)
    off = ours(steered, controlnet_conditioning_scale=0.0, guidance_scale=3.0, control_image=PICTURE)
    assert torch.equal(off, without)
    on = ours(steered, guidance_scale=3.0, control_image=PICTURE)
    assert relative(on, without) > 100 * CLOSE


@another_export
def test_off_equals_the_checkpoint_without_a_controlnet(steered: Exported, tmp_path: Path) -> None:
    plain = bundled(tmp_path, factory.tiny_sd)
    off = ours(steered, controlnet_conditioning_scale=0.0, guidance_scale=3.0)
    # Two graphs of one network: float32 in another order of summation.
    assert relative(off, ours(plain, guidance_scale=3.0)) < CLOSE


def test_the_graph_has_no_index_arithmetic(steered: Exported) -> None:
    assert not operators(steered, "step") & INDEXING


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return bundled(tmp_path_factory.mktemp("inpaint-sd"), control.inpaint_sd)


INPAINTED: dict[str, dict[str, Any]] = {
    "from noise": {"guidance_scale": 3.0},
    "from the picture, a batch": {"guidance_scale": 3.0, "strength": 0.6},
}


@another_export
@pytest.mark.parametrize("name", INPAINTED)
def test_an_inpainting_checkpoint_equals_diffusers(
    inpaint: Exported, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    means(monkeypatch)
    seeds = (7, 8) if "batch" in name else (3,)
    came = ours(inpaint, seeds, init_image=PICTURE, mask_image=MASK, **INPAINTED[name])
    inpaint.pipe.scheduler = factory.pndm()
    wanted = theirs(
        inpaint.pipe, seeds, image=PICTURE, mask_image=MASK, height=HEIGHT, width=WIDTH, negative_prompt=NEGATIVE,
        **INPAINTED[name],
    )  # fmt: skip
    assert relative(came, wanted) < CLOSE


@another_export
def test_an_inpainting_checkpoint_paints_in_stages_and_keeps_the_black_pixels(inpaint: Exported) -> None:
    import numpy as np

    result = inpaint.run(
        PROMPT, seed=1, init_image=PICTURE, mask_image=MASK, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS,
        min_resolution=32, scaling_space="latent",
    )  # fmt: skip
    assert len(result.request.plan.stages) == 2
    black = np.asarray(MASK) == 0
    assert np.array_equal(np.asarray(result.images[0])[black], np.asarray(PICTURE)[black])


def test_the_picture_and_not_only_its_presence_steers(steered: Exported) -> None:
    first, second = (ours(steered, guidance_scale=1.0, control_image=control.drawing(WIDTH, HEIGHT, n)) for n in (0, 1))
    assert relative(first, second) > 100 * CLOSE
