"""The judge of the demo model's pictures: right for drawn scenes, wrong as soon as one word is."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_model"))

from scenes import caption, draw, parse, place, random_scene
from score import regions, score


def picture(text: str, side_px: int = 128) -> np.ndarray:
    return draw(place(parse(text), np.random.default_rng(11)), side_px)


@pytest.mark.parametrize("side_px", [128, 256])
def test_drawn_scenes_are_right(side_px: int) -> None:
    rng = np.random.default_rng(side_px)
    for scene in (random_scene(rng, lone_share=0.4) for _ in range(40)):
        assert score(draw(scene, side_px), caption(scene)).right, caption(scene)


def test_blurred_and_noisy_scenes_are_still_right() -> None:
    rng = np.random.default_rng(0)
    text = "a yellow star above a purple diamond on a white background"
    soft = picture(text).astype(float)
    soft = (soft + np.roll(soft, 1, 0) + np.roll(soft, 1, 1) + np.roll(soft, (1, 1), (0, 1))) / 4
    assert score(np.clip(soft + rng.normal(0, 6, soft.shape), 0, 255).astype(np.uint8), text).right


@pytest.mark.parametrize(
    ("shown", "part"),
    [
        ("a red circle left of a blue square on a black background", "background"),
        ("a green circle left of a blue square on a white background", "colours"),
        ("a blue circle left of a red square on a white background", "colours"),
        ("a red star left of a blue square on a white background", "shapes"),
        ("a red square left of a blue circle on a white background", "shapes"),
        ("a red circle above a blue square on a white background", "relation"),
        ("a large red circle on a white background", "count"),
    ],
)
def test_one_wrong_word_makes_exactly_its_part_wrong(shown: str, part: str) -> None:
    verdict = score(picture(shown), "a red circle left of a blue square on a white background")
    assert not verdict.right
    assert not getattr(verdict, part)


def test_small_and_large_are_told_apart() -> None:
    assert not score(
        picture("a small red circle on a white background"), "a large red circle on a white background"
    ).sizes


def test_specks_are_no_things_but_a_third_shape_is() -> None:
    text = "a red circle left of a blue square on a white background"
    speckled = picture(text)
    speckled[3:6, 60:63] = (214, 39, 40)
    assert score(speckled, text).right
    speckled[5:25, 50:70] = (214, 39, 40)
    assert not score(speckled, text).count


def test_a_blob_is_no_shape() -> None:
    blank = picture("a small red circle on a white background")
    blank[:] = 245
    blank[40:80, 40:52] = (214, 39, 40)
    blank[68:80, 40:90] = (214, 39, 40)
    assert not score(blank, "a small red square on a white background").shapes


def test_regions_that_touch_only_at_a_corner_are_two() -> None:
    mask = np.zeros((32, 32), bool)
    mask[4:12, 4:12] = mask[12:20, 12:20] = True
    assert [int(region.sum()) for region in regions(mask)] == [64, 64]
