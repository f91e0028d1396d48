"""Pictures that the demo model paints, judged by its own judge: stages, pictures to start from, masks.

Seeds are fixed, so a machine paints the same pictures every time. Another processor rounds otherwise, and a shape may
fail the judge there by a hair: bounds leave one picture of each group.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lssgen
from lssgen.bundle import Bundle
from lssgen.runtime import Pipeline

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_model"))

from scenes import draw, parse, place
from score import BACKGROUND_TOLERANCE, border_colour, score

GIVEN = "a red circle left of a blue square on a white background"
WANTED = (
    "a red circle left of a green star on a white background",
    "a red circle left of a yellow triangle on a white background",
    "a red circle left of a purple square on a white background",
)
OTHER_COLOURS = "a green circle left of a yellow square on a white background"
STAGES: dict[str, dict[str, Any]] = {"two stages": {}, "one stage": {"start_sigma": 1.0}}


@pytest.fixture(scope="module")
def pipeline(demo: Bundle) -> Iterator[Pipeline]:
    with lssgen.load(demo.folder, threads=1) as opened:
        yield opened


def scene(side_px: int = 256) -> Image.Image:
    return Image.fromarray(draw(place(parse(GIVEN), np.random.default_rng(1)), side_px))


def box(side_px: int, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """A mask that is white inside a box, given in shares of the side."""
    mask = np.zeros((side_px, side_px), np.uint8)
    rows, columns = (slice(int(a * side_px), int(b * side_px)) for a, b in ((top, bottom), (left, right)))
    mask[rows, columns] = 255
    return Image.fromarray(mask)


def things(picture: Image.Image) -> np.ndarray:
    """(height, width) whether a pixel is other than the background."""
    levels = np.asarray(picture).astype(float)
    return np.sqrt(np.square(levels - border_colour(levels)).sum(-1)) > BACKGROUND_TOLERANCE


@pytest.mark.parametrize("stages", STAGES)
def test_what_is_painted_is_what_the_prompt_says(pipeline: Pipeline, stages: str) -> None:
    result = pipeline(list(WANTED), num_images=2, **STAGES[stages])
    right = [score(np.asarray(picture.image), picture.prompt).right for picture in result.pictures]
    assert sum(right) >= 5, right  # all six when this was written; of 200 prompts, 98.5 % and more


@pytest.mark.parametrize("stages", STAGES)
def test_a_masked_thing_becomes_what_the_prompt_says_and_the_rest_stays_bit_for_bit(
    pipeline: Pipeline, stages: str
) -> None:
    """The mask covers the square tightly, and its edges fall inside latent cells (8 px)."""
    mask = box(256, 0.575, 0.3, 0.945, 0.67)
    result = pipeline(list(WANTED), init_image=scene(), mask_image=mask, num_images=2, **STAGES[stages])
    black = np.asarray(mask) == 0
    for picture in result.pictures:
        assert np.array_equal(np.asarray(picture.image)[black], np.asarray(scene())[black])
    right = [score(np.asarray(picture.image), picture.prompt).right for picture in result.pictures]
    assert sum(right) >= 5, right


@pytest.mark.parametrize("strength", [0.75, 0.9])
def test_a_masked_thing_follows_the_prompt_below_full_strength_too(pipeline: Pipeline, strength: float) -> None:
    """0.75 enters at the last stage, 0.9 at the first: what the mask hides is still there, as noisy as that."""
    mask = box(256, 0.5, 0.0, 1.0, 1.0)
    result = pipeline(list(WANTED), init_image=scene(), mask_image=mask, strength=strength, num_images=2)
    right = [score(np.asarray(picture.image), picture.prompt).right for picture in result.pictures]
    assert sum(right) >= 5, right


def test_a_picture_of_another_size_and_its_mask_are_fitted_together(pipeline: Pipeline) -> None:
    given = scene(600).crop((0, 50, 600, 550))
    mask = box(600, 0.5, 0.0, 1.0, 1.0).crop((0, 50, 600, 550))
    result = pipeline(WANTED[0], init_image=given, mask_image=mask, num_images=2)
    assert [picture.image.size for picture in result.pictures] == [(256, 256)] * 2
    assert any(score(np.asarray(picture.image), WANTED[0]).colours for picture in result.pictures)


@pytest.mark.parametrize("strength", [0.6, 0.75, 0.9])
def test_a_picture_from_a_picture_follows_the_prompt(pipeline: Pipeline, strength: float) -> None:
    result = pipeline(OTHER_COLOURS, init_image=scene(), strength=strength, num_images=3)
    right = [score(np.asarray(picture.image), OTHER_COLOURS).right for picture in result.pictures]
    assert sum(right) >= 2, right


def test_the_weaker_a_run_is_the_more_of_its_picture_stays(pipeline: Pipeline) -> None:
    """At 0.6 the colours change and things stay where they were; 1 keeps nothing but what the prompt says too."""
    given = things(scene())
    overlap: list[float] = []
    for strength in (0.6, 1.0):
        pictures = pipeline(OTHER_COLOURS, init_image=scene(), strength=strength, num_images=3).pictures
        found = [things(picture.image) for picture in pictures]
        overlap.append(float(np.mean([(given & one).sum() / (given | one).sum() for one in found])))
    assert overlap[0] > 0.86 > overlap[1]  # 0.93 and 0.79 when this was written
