"""The demo model's world: its grammar, its held-out captions and its pictures."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "demo_model"))

from scenes import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    all_captions,
    caption,
    draw,
    is_held_out,
    parse,
    place,
)


def test_every_caption_parses_back_to_itself() -> None:
    assert all(caption(parse(text)) == text for text in all_captions())


def test_the_grammar_has_19440_captions_without_repeats() -> None:
    assert len(all_captions()) == len(set(all_captions())) == 19440


def test_about_a_twentieth_of_the_captions_is_held_out() -> None:
    held_out = [text for text in all_captions() if is_held_out(text)]
    assert 0.04 < len(held_out) / len(all_captions()) < 0.06


def test_every_word_of_a_held_out_caption_occurs_in_training() -> None:
    training = {word for text in all_captions() if not is_held_out(text) for word in text.split()}
    assert {*COLOURS, *SHAPES, *BACKGROUNDS, "small", "large"} <= training
    assert {word for relation in RELATIONS for word in relation.split()} <= training


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "a mauve circle above a red star on a white background",
            "'mauve'; expected one of small, large, red",
        ),
        ("a red circle on a white background", "expected one of left of, right of, above, below"),
        ("a large red circle on a white", "came the end; expected one of background"),
        ("a large red circle on a white background please", "'please' follows the last word"),
    ],
)
def test_a_sentence_outside_the_grammar_is_refused_at_its_first_wrong_word(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text)


def test_a_scene_is_the_same_picture_at_every_size() -> None:
    scene = place(parse("a red star left of a blue circle on a gray background"), np.random.default_rng(3))
    large = draw(scene, 256).astype(float)
    shrunk = large.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(shrunk - draw(scene, 128)).mean() < 0.5


def test_a_seed_decides_the_scene() -> None:
    said = parse("a small pink diamond on a black background")
    assert place(said, np.random.default_rng(5)) == place(said, np.random.default_rng(5))
