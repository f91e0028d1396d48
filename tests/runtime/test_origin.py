from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import denoise, fake_pipeline, with_scheduler
from PIL import Image

from lssgen.errors import PlanError, PromptError
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.runtime.noise import NoiseStream
from lssgen.runtime.options import STRENGTH, Options
from lssgen.runtime.origin import pasted, read_mask, read_picture, start_from
from lssgen.testing import Ask, step_network

LATENT = Options(scaling_space="latent")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
SCHEDULERS = {
    "flow": {},
    "ddim": {"facts": with_scheduler("DDIMScheduler", BETAS, "fraction")},
    "euler": {"facts": with_scheduler("EulerDiscreteScheduler", BETAS, "fraction")},
    "pndm": {"facts": with_scheduler("PNDMScheduler", BETAS | {"skip_prk_steps": True}, "fraction")},
}


def photo(width: int = 64, height: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([60 + x // 4, 60 + y // 4, 100 + (x + y) // 8], -1).astype(np.uint8))


def half(width: int = 64, height: int = 64) -> Image.Image:
    """White on the left half."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return Image.fromarray(mask)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 0.9, 1.0])
def test_what_the_mask_keeps_is_unchanged_and_the_rest_is_painted(
    tmp_path: Path, scheduler: str, strength: float
) -> None:
    step = step_network(denoise, history=4)
    pipeline = fake_pipeline(tmp_path, step=step, history=4, **SCHEDULERS[scheduler])
    result = pipeline("a red circle", init_image=photo(), mask_image=half(), strength=strength, **LATENT)
    painted, given = np.asarray(result.images[0]), np.asarray(photo())
    assert np.array_equal(painted[:, 32:], given[:, 32:])
    assert not np.array_equal(painted[:, :32], given[:, :32])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_what_is_kept_is_as_noisy_as_what_is_painted_at_every_step(tmp_path: Path, scheduler: str) -> None:
    """The kept cells that a step sees are the picture's latent and the stage's noise, mixed at the step's level."""
    seen: list[Array] = []

    def spy(ask: Ask) -> Array:
        seen.append(ask.u[0].copy())
        return denoise(ask)

    pipeline = fake_pipeline(tmp_path, step=step_network(spy, history=4), history=4, **SCHEDULERS[scheduler])
    plan = pipeline("a", init_image=photo(), mask_image=half(), guidance_scale=1.0, **LATENT).plan
    stream = NoiseStream(0)
    for stage in plan.stages:
        noise, latent = stream.draw((4, stage.height, stage.width)), _encoded(photo(), stage.height)
        levels = ((stage.image, stage.noise), *stage.levels)
        for step, (image, amount) in zip(stage.steps, levels, strict=False):
            kept = (image * latent + amount * noise)[..., stage.width // 2 :] * step.c_in
            assert seen.pop(0)[..., stage.width // 2 :] == pytest.approx(kept, abs=1e-5)


def _encoded(picture: Image.Image, size: int) -> Array:
    pixels = np.asarray(picture.resize((8 * size, 8 * size), Image.Resampling.LANCZOS), np.float32)
    cells = pixels.reshape(size, 8, size, 8, 3).mean((1, 3)).transpose(2, 0, 1)
    return np.concatenate([(cells - 128) / 64, np.zeros((1, size, size))])


def test_a_weak_run_stays_near_its_picture_and_a_strong_one_leaves_it(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path, network=lambda ask: np.zeros_like(ask.u))
    away = [
        np.abs(np.asarray(pipeline("a", init_image=photo(), strength=s, **LATENT).images[0], float) - photo()).mean()
        for s in (0.1, 0.5, 1.0)
    ]
    assert away[0] < away[1] < away[2]


def test_the_picture_enters_at_the_stage_that_its_strength_asks_for(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    sizes = {
        strength: [stage.height for stage in pipeline.plan(strength=strength, **LATENT).stages]
        for strength in (0.3, 0.75, 0.8, 1.0)
    }
    assert sizes == {0.3: [8], 0.75: [8], 0.8: [4, 8], 1.0: [4, 8]}


def test_a_picture_without_a_mask_has_the_strength_of_later_stages_unless_told(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    assert pipeline("a", init_image=photo(), **LATENT).request.plan_options.strength == STRENGTH
    assert pipeline("a", init_image=photo(), mask_image=half(), **LATENT).request.plan_options.strength == 1


def test_a_picture_from_a_picture_does_not_depend_on_its_company(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    given = {"init_image": photo(), "mask_image": half(), **LATENT}
    many = pipeline(["a", "red"], num_images=2, batch=3, **given).latents
    assert np.array_equal(pipeline("red", seed=3, **given).latents[0], many[3])


def test_another_shape_is_scaled_to_cover_and_cut_evenly(tmp_path: Path) -> None:
    plan = fake_pipeline(tmp_path).plan(**LATENT)
    start = start_from(plan, photo(256, 128), half(256, 128))
    assert start.picture.size == (64, 64)
    assert start.repaint.mean() == pytest.approx(0.5)
    inner = photo(256, 128).crop((64, 0, 192, 128)).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.asarray(start.picture, float) == pytest.approx(np.asarray(inner, float), abs=1.5)


def test_half_white_pixels_mix_the_painted_and_the_given(tmp_path: Path) -> None:
    plan = fake_pipeline(tmp_path).plan(**LATENT)
    start = start_from(plan, Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("L", (64, 64), 51))
    mixed = pasted(np.zeros((64, 64, 3), np.uint8), start)
    assert (mixed == (160, 0, 0)).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask_image": half()}, "belong to a picture to start from"),
        ({"strength": 0.5}, "belong to a picture to start from"),
        ({"init_image": photo(), "mask_image": half(32, 64)}, "the mask is 32 x 64 px, the picture .* 64 x 64 px"),
        ({"init_image": photo(), "mask_image": Image.new("L", (64, 64))}, "black all over"),
    ],
)
def test_a_start_that_makes_no_sense_is_refused(tmp_path: Path, given: Any, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        fake_pipeline(tmp_path).paint("a", **given, **LATENT)


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_strength_outside_its_range_is_refused(tmp_path: Path, strength: float) -> None:
    with pytest.raises(PlanError, match=r"strength is .*above 0 and be at most 1"):
        fake_pipeline(tmp_path).paint("a", init_image=photo(), strength=strength, **LATENT)


def test_a_strength_that_leaves_no_step_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"strength 0\.1 leaves no step out of 6"):
        fake_pipeline(tmp_path, **SCHEDULERS["ddim"]).paint("a", init_image=photo(), strength=0.1, **LATENT)


def test_a_bundle_that_cannot_encode_starts_from_no_picture(tmp_path: Path) -> None:
    whole = fake_pipeline(tmp_path)
    graphs = {name: graph for name, graph in whole.bundle.manifest.graphs.items() if name != "encode"}
    bundle = replace(whole.bundle, manifest=replace(whole.bundle.manifest, graphs=graphs))
    with pytest.raises(PromptError, match="has no graph 'encode', so no run can start from a picture"):
        Pipeline(bundle, whole.backend).paint("a", init_image=photo(), **LATENT)
    assert whole.backend.calls == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("given", [{"strength": 1.0}, {"mask_image": Image.new("L", (64, 64), 255)}])
def test_all_white_or_all_the_way_is_what_the_prompt_alone_would_be(tmp_path: Path, scheduler: str, given: Any) -> None:
    step = step_network(denoise, history=4)
    pipeline = fake_pipeline(tmp_path, step=step, history=4, **SCHEDULERS[scheduler])
    alone = pipeline("a red circle", **LATENT)
    started = pipeline("a red circle", init_image=photo(), **given, **LATENT)
    assert np.array_equal(started.latents, alone.latents)
    assert np.array_equal(started.images[0], alone.images[0])


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(PromptError, match=r"x\.png cannot be read"):
        read_picture(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of what it passes over
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_a_damaged_picture_is_refused_whatever_pillow_raises(tmp_path: Path, suffix: str) -> None:
    file, random = tmp_path / f"x.{suffix}", np.random.default_rng(0)
    photo().save(file)
    whole = file.read_bytes()
    readable = 0
    for _ in range(100):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 200), 8):
            damaged[place] = random.integers(256)
        file.write_bytes(damaged)
        with suppress(PromptError):
            read_picture(file)
            readable += 1
    assert readable < 90


@pytest.mark.parametrize("mode", ["L", "I;16", "I"])
def test_a_picture_of_sixteen_bits_keeps_its_levels(tmp_path: Path, mode: str) -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    wide = {"L": ramp, "I;16": ramp.astype(np.uint16) * 257, "I": ramp.astype(np.int32) * 257}[mode]
    image = Image.fromarray(wide)
    assert image.mode == mode
    image.save(tmp_path / "x.tif")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "x.tif"))[..., 0], ramp)
    start = start_from(fake_pipeline(tmp_path).plan(**LATENT), image, image)
    assert start.repaint.mean() == pytest.approx(0.5, abs=0.01)
    assert np.asarray(start.picture).mean() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1", "YCbCr", "HSV"])
def test_every_other_kind_of_picture_looks_as_it_does(tmp_path: Path, mode: str) -> None:
    plan = fake_pipeline(tmp_path).plan(**LATENT)
    start = start_from(plan, Image.new("RGB", (64, 64), (255, 255, 255)).convert(mode), None)
    assert np.asarray(start.picture).min() >= 254


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="8 or 16 bits a channel"):
        fake_pipeline(tmp_path).paint("a", init_image=Image.new("F", (64, 64), 0.5), **LATENT)


def test_a_mask_drawn_in_its_transparency_is_refused_where_it_would_repaint_everything(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    mask.paste((255, 255, 255, 0), (0, 0, 32, 64))
    with pytest.raises(PromptError, match="transparent in places"):
        fake_pipeline(tmp_path).paint("a", init_image=photo(), mask_image=mask, **LATENT)
    mask.save(tmp_path / "mask.png")
    with pytest.raises(PromptError, match="transparent in places"):
        read_mask(tmp_path / "mask.png")
