"""Reference pictures as an editing model's step takes them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import denoise, fake_pipeline
from PIL import Image

from lssgen.bundle import Bundle
from lssgen.errors import PromptError
from lssgen.manifest import Manifest, Reference, References
from lssgen.ports import Array, Port
from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.references import see_references
from lssgen.soundness import first_fault
from lssgen.testing import step_network

RULES = References(patch=2, unit_px=16, most_px=128 * 128, most=3)
LATENT = Options(scaling_space="latent", guidance_scale=1.0)
TOKENS = Port("references", "float32", ("batch", "reference_tokens", 16))
PLACES = Port("reference_places", "int64", ("reference_tokens", 3))


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), 90, np.uint8))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return replace(fake_pipeline(tmp_path).bundle.manifest, references=RULES)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ((64, 64), (64, 64)),
        ((100, 79), (96, 64)),  # whole tokens
        ((256, 256), (128, 128)),  # the largest area
        ((512, 64), (352, 32)),  # 362 x 45 has it
    ],
)
def test_a_picture_is_made_smaller_and_cut_to_whole_tokens(
    manifest: Manifest, given: tuple[int, int], seen: tuple[int, int]
) -> None:
    (fitted,) = see_references(manifest, [photo(*given)])
    assert fitted.size == seen


def test_what_is_cut_off_is_the_same_on_both_sides(manifest: Manifest) -> None:
    stripes = np.zeros((64, 70, 3), np.uint8)
    stripes[:, 3:-3] = 255
    (fitted,) = see_references(manifest, [Image.fromarray(stripes)])
    assert np.asarray(fitted).min() == 255


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([photo(64, 63)], "reference 1 is 64 x 63 px; each side needs at least 64"),
        ([photo(64, 64), photo(64, 520)], "reference 2 is 64 x 520 px, longer than 8 times its width"),
        ([photo(64, 64)] * 4, "4 reference pictures came; toy sees up to 3"),
        (["cat.png"], r"reference 1 is a str; it must be a picture: PIL\.Image\.open"),
    ],
)
def test_pictures_that_the_model_cannot_see_are_refused(manifest: Manifest, given: list[Any], words: str) -> None:
    with pytest.raises(PromptError, match=words):
        see_references(manifest, given)


def test_a_model_that_sees_none_says_so_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="toy sees no reference pictures; leave them out, or export a model"):
        fake_pipeline(tmp_path).paint("a", references=[photo(64, 64)], **LATENT)


@pytest.mark.parametrize("sizes", [(), ((64, 64),), ((64, 96), (80, 64))])
def test_the_step_sees_every_picture_at_its_own_size_in_every_stage(
    tmp_path: Path, sizes: tuple[tuple[int, int], ...]
) -> None:
    pipeline, calls = seeing(tmp_path)
    given = [photo(*size) for size in sizes]
    plan = pipeline("a", references=given, **Options(LATENT, num_images=2, batch=2)).plan
    side = 2 * pipeline.bundle.manifest.facts.cell_px
    grids = [(number, row, column) for number, (width, height) in enumerate(sizes, start=1)
             for row in range(height // side) for column in range(width // side)]  # fmt: skip
    assert len(calls) == plan.evaluations
    for call in calls:
        assert call["reference_places"].tolist() == [list(place) for place in grids]
        assert call["references"].shape == (2, len(grids), 16)
        assert np.array_equal(call["references"][0], call["references"][1])


def seeing(folder: Path) -> tuple[Pipeline, list[Mapping[str, Array]]]:
    """A pipeline whose step takes reference pictures, and what its calls were given."""
    calls: list[Mapping[str, Array]] = []
    plain = step_network(denoise, history=1)

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        calls.append({name: given[name].copy() for name in (TOKENS.name, PLACES.name)})
        return plain.run({name: value for name, value in given.items() if name not in (TOKENS.name, PLACES.name)})

    feeds = {**plain.feeds, TOKENS.name: Reference(what="tokens"), PLACES.name: Reference(what="places")}
    step = replace(plain, inputs=(*plain.inputs, TOKENS, PLACES), run=run, feeds=feeds)
    pipeline = fake_pipeline(folder, step=step, history=1)
    manifest = replace(pipeline.bundle.manifest, references=replace(RULES, unit_px=2 * 8))
    return Pipeline(Bundle(pipeline.bundle.folder, manifest), pipeline.backend), calls


def test_a_manifest_whose_step_sees_pictures_without_rules_is_no_manifest(tmp_path: Path) -> None:
    pipeline, _ = seeing(tmp_path)
    assert not first_fault(pipeline.bundle.manifest)
    assert "has no rules" in first_fault(replace(pipeline.bundle.manifest, references=None))
    for wrong in ({"most": 0}, {"unit_px": 0}, {"most_aspect": 0.5}, {"least_side_px": 8}):
        assert first_fault(replace(pipeline.bundle.manifest, references=replace(RULES, **wrong)))
