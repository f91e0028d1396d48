"""ControlNets of SDXL, SD3 and FLUX.1, union ones too, and SDXL and FLUX that inpaint: bundle against diffusers."""

from functools import partial
from pathlib import Path
from typing import Any

import factory_control as control
import factory_families as factory
import pytest
from controlled import HEIGHT, WIDTH, Make, bundled, means, ours, theirs, unpacked
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from exported import CLOSE, INDEXING, NEGATIVE, Exported, operators
from factory import tiny_sd3
from loop import relative

pytestmark = pytest.mark.slow  # an export of half a minute for each; SD has every time

PICTURE = control.drawing(WIDTH, HEIGHT)
MASK = control.hole(WIDTH, HEIGHT)
PART = {"control_guidance_start": 0.2, "control_guidance_end": 0.7}


def steered(root: Path, make: Make, net: Make, cls: Any, pipeline: Any) -> tuple[Exported, Any]:
    """The bundle, and diffusers' pipeline of the same weights."""
    made = bundled(root, make, net)
    parts = {"controlnet": cls.from_pretrained(root / "controlnet")}
    return made, pipeline.from_pretrained(made.folder, **parts)


SDXL = ("sdxl", factory.tiny_sdxl, control.control_sdxl, ControlNetModel, StableDiffusionXLControlNetPipeline)
UNION = (
    "sdxl-union",
    factory.tiny_sdxl,
    control.union_sdxl,
    ControlNetUnionModel,
    StableDiffusionXLControlNetUnionPipeline,
)


@pytest.mark.parametrize(
    "asked", [{"guidance_scale": 1.0}, {"guidance_scale": 3.0, "controlnet_conditioning_scale": 0.6}, PART]
)
def test_sdxl_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, asked: dict[str, Any]) -> None:
    made, pipe = _once(tmp_path_factory, *SDXL)
    asked = {"guidance_scale": 3.0} | asked
    wanted = theirs(pipe, image=PICTURE, negative_prompt=NEGATIVE, **asked)
    assert relative(ours(made, control_image=PICTURE, **asked), wanted) < CLOSE


@pytest.mark.parametrize("mode", [0, 5])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_sdxl_union_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, mode: int, scale: float) -> None:
    made, pipe = _once(tmp_path_factory, *UNION)
    asked: dict[str, Any] = {"guidance_scale": scale, "controlnet_conditioning_scale": 0.8, **PART}
    wanted = theirs(pipe, control_image=PICTURE, control_mode=mode, negative_prompt=NEGATIVE, **asked)
    assert relative(ours(made, control_image=PICTURE, control_mode=mode, **asked), wanted) < CLOSE


def test_a_picture_of_an_sdxl_union_does_not_depend_on_its_company(tmp_path_factory: pytest.TempPathFactory) -> None:
    made, _ = _once(tmp_path_factory, *UNION)
    asked: dict[str, Any] = {"guidance_scale": 3.0, "control_image": PICTURE, "control_mode": 2}
    both = ours(made, (3, 4), **asked)
    # Another batch is another order of summation.
    assert relative(both[:1], ours(made, (3,), **asked)) < CLOSE


DEEP = {"num_layers": 3, "num_single_layers": 3}
FLUX: dict[str, tuple[Make, Make]] = {
    "dev": (factory.tiny_flux, control.control_flux),
    "fewer residuals than blocks": (
        partial(factory.tiny_flux, **DEEP),
        partial(control.control_flux, num_layers=2, num_single_layers=0),
    ),
    "schnell": (
        partial(factory.tiny_flux, guided=False),
        partial(control.control_flux, guidance_embeds=False),
    ),
    "union": (factory.tiny_flux, partial(control.control_flux, num_mode=10)),
}


@pytest.mark.parametrize("name", FLUX)
def test_flux_equals_diffusers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    means(monkeypatch)
    made, pipe = _once(tmp_path_factory, f"flux-{name}", *FLUX[name], FluxControlNetModel, FluxControlNetPipeline)
    mode = {"control_mode": 4} if name == "union" else {}
    for asked in ({"guidance_scale": 2.5}, {"guidance_scale": 2.5, "controlnet_conditioning_scale": 0.6, **PART}):
        told = {"height": HEIGHT, "width": WIDTH, "control_image": PICTURE, **mode, **asked}
        wanted = unpacked(theirs(pipe, **told))
        assert relative(ours(made, negative_prompt=None, **told), wanted) < CLOSE


def test_flux_with_a_negative_prompt_equals_diffusers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    means(monkeypatch)
    made, pipe = _once(tmp_path_factory, "flux-dev", *FLUX["dev"], FluxControlNetModel, FluxControlNetPipeline)
    told: dict[str, Any] = {"control_image": PICTURE, "guidance_scale": 2.5, "true_cfg_scale": 2.0}
    wanted = unpacked(theirs(pipe, height=HEIGHT, width=WIDTH, negative_prompt=NEGATIVE, **told))
    assert relative(ours(made, **told), wanted) < CLOSE


SD3: dict[str, tuple[Make, Make]] = {
    "as the checkpoint's latents": (tiny_sd3, control.control_sd3),
    "with zeros for the summary": (tiny_sd3, partial(control.control_sd3, force_zeros_for_pooled_projection=True)),
    "fewer residuals than blocks": (
        partial(tiny_sd3, num_layers=5),
        partial(control.control_sd3, num_layers=2),
    ),
    "single blocks, with the network's places": (
        tiny_sd3,
        partial(control.control_sd3, joint_attention_dim=None, use_pos_embed=False, num_layers=2),
    ),
}


@pytest.mark.parametrize("name", SD3)
def test_sd3_equals_diffusers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    means(monkeypatch)
    made, pipe = _once(
        tmp_path_factory, f"sd3-{name}", *SD3[name], SD3ControlNetModel, StableDiffusion3ControlNetPipeline
    )
    for asked in ({"guidance_scale": 1.0}, {"guidance_scale": 3.0, "controlnet_conditioning_scale": 0.6, **PART}):
        told = {"control_image": PICTURE, "negative_prompt": NEGATIVE, **asked}
        wanted = theirs(pipe, height=HEIGHT, width=WIDTH, max_sequence_length=24, **told)
        assert relative(ours(made, **told), wanted) < CLOSE


def test_graphs_have_no_index_arithmetic(tmp_path_factory: pytest.TempPathFactory) -> None:
    union, _ = _once(tmp_path_factory, *UNION)
    flux, _ = _once(tmp_path_factory, "flux-union", *FLUX["union"], FluxControlNetModel, FluxControlNetPipeline)
    assert not (operators(union, "step") | operators(flux, "step")) & INDEXING


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_sdxl_that_inpaints_equals_diffusers(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    means(monkeypatch)
    made = _bundle(tmp_path_factory, "inpaint-sdxl", control.inpaint_sdxl)
    told: dict[str, Any] = {"mask_image": MASK, "guidance_scale": 3.0, "strength": strength, "height": HEIGHT}
    wanted = theirs(made.pipe, image=PICTURE, width=WIDTH, negative_prompt=NEGATIVE, **told)
    assert relative(ours(made, init_image=PICTURE, **told), wanted) < CLOSE


def test_flux_fill_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    means(monkeypatch)
    made = _bundle(tmp_path_factory, "fill", control.fill_flux)
    told: dict[str, Any] = {"mask_image": MASK, "guidance_scale": 3.0, "height": HEIGHT}
    wanted = unpacked(theirs(made.pipe, image=PICTURE, width=WIDTH, **told))
    assert relative(ours(made, init_image=PICTURE, negative_prompt=None, **told), wanted) < CLOSE


def test_flux_canny_equals_diffusers(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    means(monkeypatch)
    made = _bundle(tmp_path_factory, "canny", control.canny_flux)
    told: dict[str, Any] = {"control_image": PICTURE, "guidance_scale": 3.0, "height": HEIGHT, "width": WIDTH}
    wanted = unpacked(theirs(made.pipe, **told))
    assert relative(ours(made, negative_prompt=None, **told), wanted) < CLOSE


_MADE: dict[str, tuple[Exported, Any]] = {}


def _once(
    roots: pytest.TempPathFactory, name: str, make: Make, net: Make, cls: Any, pipeline: Any
) -> tuple[Exported, Any]:
    """Made when it is asked for first; several tests share it."""
    if name not in _MADE:
        _MADE[name] = steered(roots.mktemp(name.replace(" ", "-").replace(",", "")), make, net, cls, pipeline)
    return _MADE[name]


def _bundle(roots: pytest.TempPathFactory, name: str, make: Make) -> Exported:
    if name not in _MADE:
        _MADE[name] = (bundled(roots.mktemp(name), make), None)
    return _MADE[name][0]
