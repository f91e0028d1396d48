"""Marks in prompts: read as A1111 and ComfyUI read them, and what their weights do, against the formulas by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import SPACES, denoise, fake_pipeline
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand
from lssgen.errors import PlanError, PromptError
from lssgen.manifest import Heard, Manifest, Tokens
from lssgen.ports import Array, Port
from lssgen.runtime import Pipeline
from lssgen.runtime.text import PromptWarning
from lssgen.runtime.weighting import Weighting, read_literally, weighted
from lssgen.testing import FakeBackend, FakeModel, Network, decode_network, fake_bundle, step_network


def pieces(prompt: str, weighting: Weighting) -> list[tuple[str, float]]:
    """Neighbours of one weight, joined."""
    said = weighted(prompt, weighting)
    found: list[tuple[str, float]] = []
    for letter, weight in zip(said.text, said.weights, strict=True):
        if found and found[-1][1] == pytest.approx(weight):
            found[-1] = (found[-1][0] + letter, found[-1][1])
        else:
            found.append((letter, float(weight)))
    return found


A1111: dict[str, list[tuple[str, float]]] = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    "[[weak": [("weak", 1 / 1.21)],
    "\\(literal\\]": [("(literal]", 1.0)],
    "(a)(b)": [("ab", 1.1)],
    "a (red:1.3) b": [("a ", 1.0), ("red", 1.3), (" b", 1.0)],
    "(red: 1.3 )": [("red", 1.3)],
    "((red:1.5) hill)": [("red", 1.65), (" hill", 1.1)],
    "(a:0.5) [b:2)": [("a", 0.5), (" ", 1.0), ("b:2)", 1 / 1.1)],  # no round bracket is open there
    "a) b] c:d": [("a) b] c:d", 1.0)],
    "[low] (x:-1)": [("low", 1 / 1.1), (" ", 1.0), ("x", -1.0)],
    "a\\b \\\\": [("ab \\", 1.0)],
    "": [],
    "()": [],
}


@pytest.mark.parametrize("prompt", A1111)
def test_marks_are_read_by_the_rules_of_a1111(prompt: str) -> None:
    assert pieces(prompt, "a1111") == [(text, pytest.approx(weight)) for text, weight in A1111[prompt]]


COMFYUI: dict[str, list[tuple[str, float]]] = {
    "normal [text]": [("normal [text]", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(a (b:1.3) c:1.2)": [("a ", 1.2), ("b", 1.3), (" c", 1.2)],  # a number counts by itself
    "(a (b))": [("a ", 1.1), ("b", 1.21)],
    "(unbalanced": [("(unbalanced", 1.0)],
    "\\(literal\\)": [("(literal)", 1.0)],
    "(time 12:30)": [("time 12", 30.0)],  # so does ComfyUI
    "(a:b)": [("a:b", 1.1)],
    "a) (b:1.2)": [("a) (b:1.2)", 1.0)],  # one too many closes what opens next
    "": [],
}


@pytest.mark.parametrize("prompt", COMFYUI)
def test_marks_are_read_by_the_rules_of_comfyui(prompt: str) -> None:
    assert pieces(prompt, "comfyui") == [(text, pytest.approx(weight)) for text, weight in COMFYUI[prompt]]


def test_without_rules_marks_are_text() -> None:
    assert pieces("a (red:1.3)", "none") == [("a (red:1.3)", 1.0)]


@pytest.mark.parametrize(
    ("prompt", "weighting", "words"),
    [
        ("(a:1.2.3)", "a1111", r"weight '1\.2\.3' .* is not a number; write \(red:1\.3\)"),
        ("(a:99999)", "a1111", "a weight beyond 1000"),
        ("(" * 500 + "a", "a1111", "a weight beyond 1000"),
        ("(a:1e9)", "comfyui", "a weight beyond 1000"),
        ("(a:nan)", "comfyui", "weight 'nan' .* is not a number"),
        ("(" * 5000 + "a" + ")" * 5000, "comfyui", "nested more than 100 deep"),
    ],
)
def test_impossible_weights_are_refused(prompt: str, weighting: Weighting, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        weighted(prompt, weighting)


# Twenty words at most, so that what the encoder says of them is easy to see through.
WORDS = ("a", "red", "blue", "circle", "square", "big")


def rows_of(ids: Array) -> Array:
    """(1, tokens) -> (1, tokens, 2): a row a token, with its place in it."""
    tokens = ids.shape[1]
    return np.stack([ids + 1.0, ids * 0.5 + np.arange(tokens)], -1).astype(np.float32)


ROWS = Heard(output="rows")


def pipeline_of(folder: Path, *, pad_side: Any = "right", pad_to: Any = "length", heard: Heard = ROWS) -> Pipeline:
    """A pipeline whose text graph says a summary, too."""
    text = Network(
        inputs=(Port("ids", "int64", ("batch", "tokens")),),
        outputs=(Port("rows", "float32", ("batch", "tokens", 2)), Port("text", "float32", ("batch", 1))),
        run=lambda given: {"rows": rows_of(given["ids"]), "text": given["ids"].mean(1, keepdims=True)},
        runs="prompt",
    )
    step = step_network(denoise, text={"text": (1,), "rows": ("tokens", 2)})
    networks = {"text": text, "step": step, "decode": decode_network(), **SPACES}
    bundle = fake_bundle(folder, FakeModel(facts=FACTS, networks=networks, words=WORDS))
    tokens = Tokens(
        port="ids", file="tokenizer.json", length=6, pad_id=0, pad_side=pad_side, pad_to=pad_to, pad_multiple=4,
        heard=heard,
    )  # fmt: skip
    manifest = Manifest(**{f: getattr(bundle.manifest, f) for f in Manifest.__slots__} | {"tokenizers": (tokens,)})
    return Pipeline(Bundle(folder, manifest), FakeBackend(networks))


def heard(pipeline: Pipeline, prompt: str, weighting: Weighting) -> dict[str, Array]:
    text = pipeline._text  # the encoder itself: pictures would hide what is measured
    engine = pipeline.backend.open(pipeline.bundle, Demand())["text"]
    return dict(text.encode(engine, prompt, text.lengths(prompt, weighting), weighting))


@pytest.mark.parametrize("side", ["right", "left"])
def test_a1111_multiplies_rows_and_restores_their_mean(tmp_path: Path, side: str) -> None:
    pipeline = pipeline_of(tmp_path, pad_side=side)
    plain = heard(pipeline, "a red circle", "none")["rows"]
    came = heard(pipeline, "a (red:1.5) [circle]", "a1111")["rows"]
    own = [1, 1.5, 1 / 1.1]
    weights = np.array([*own, 1, 1, 1] if side == "right" else [1, 1, 1, *own])
    wanted = plain * weights[:, None]
    wanted *= plain.mean() / wanted.mean()
    assert came == pytest.approx(wanted, rel=1e-6)
    assert came.mean() == pytest.approx(plain.mean(), rel=1e-6)


def test_comfyui_moves_rows_away_from_the_empty_prompt(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    plain, empty = (heard(pipeline, prompt, "none")["rows"] for prompt in ("a red circle", ""))
    came = heard(pipeline, "a (red:1.5) (circle:0.25)", "comfyui")["rows"]
    wanted = empty + np.array([1, 1.5, 0.25, 1, 1, 1])[:, None] * (plain - empty)
    assert came == pytest.approx(wanted, rel=1e-6)


def test_summaries_of_the_whole_prompt_are_not_weighed(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    assert heard(pipeline, "a (red:1.5)", "a1111")["text"] == heard(pipeline, "a red", "none")["text"]


def test_weights_of_one_change_nothing(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    for weighting in ("a1111", "comfyui"):
        came = heard(pipeline, "a (red:1.0) circle", weighting)
        for port, array in heard(pipeline, "a red circle", "none").items():
            assert np.array_equal(came[port], array)


def test_an_encoder_that_stands_beside_others_weighs_its_own_rows_and_columns(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path, heard=Heard(output="rows", columns=(1, 2)))
    plain = heard(pipeline, "a red", "none")["rows"]
    came = heard(pipeline, "a (red:2)", "a1111")["rows"]
    assert np.array_equal(came[:, 0], plain[:, 0])
    wanted = plain[:, 1] * np.array([1, 2, 1, 1, 1, 1])
    assert came[:, 1] == pytest.approx(wanted * plain[:, 1].mean() / wanted.mean(), rel=1e-6)


def test_a_mark_within_a_word_gives_its_token_the_mean_weight(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    half = heard(pipeline, "a ci(rcl:3)e", "a1111")["rows"]  # three letters of six
    assert half == pytest.approx(heard(pipeline, "a (circle:2)", "a1111")["rows"], rel=1e-6)


def test_what_another_branch_needs_has_no_say(tmp_path: Path) -> None:
    """Where prompts are filled up to the longest, the longest of the branches must not move the mean."""
    pipeline = pipeline_of(tmp_path, pad_to="longest", pad_side="left")
    text = pipeline._text
    engine = pipeline.backend.open(pipeline.bundle, Demand())["text"]
    short, long = (text.encode(engine, "a (red:2)", (length,), "a1111")["rows"] for length in (4, 8))
    plain = text.encode(engine, "a red", (8,), "none")["rows"]
    own = plain[4:] * np.array([1, 1, 1, 2])[:, None]
    assert long[4:] == pytest.approx(own * plain[4:].mean() / own.mean(), rel=1e-6)
    assert np.array_equal(long[:4], plain[:4])
    assert short.shape == (4, 2)


def test_weights_change_the_picture_and_negative_prompts_are_weighed_too(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)

    def positive_rows(ask: Any) -> Array:
        return 0.1 * np.tanh(ask.u) + ask.extra["rows"].mean((1, 2))[:, None, None, None]

    pipeline.backend.networks["step"] = step_network(  # type: ignore[attr-defined]
        positive_rows, text={"text": (1,), "rows": ("tokens", 2)}
    )
    given: dict[str, Any] = {"scaling_space": "latent", "prompt_weighting": "comfyui"}
    plain = pipeline("a red", **given).latents
    assert not np.array_equal(pipeline("a (red:1.5)", **given).latents, plain)
    assert not np.array_equal(pipeline("a red", negative_prompt="(blue:2)", **given).latents, plain)


def test_a_bundle_that_does_not_say_where_tokens_are_heard_weighs_none(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"does not say where single tokens are heard.*export the model again"):
        fake_pipeline(tmp_path).paint("a", prompt_weighting="a1111")


def test_the_empty_prompt_must_have_as_many_rows(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"toy fills prompts up to their own length.*use a1111 or none"):
        pipeline_of(tmp_path, pad_to="longest").paint("a", prompt_weighting="comfyui")


def test_an_unknown_rule_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="prompt_weighting is 'compel'; it must be one of none, a1111, comfyui"):
        pipeline_of(tmp_path).paint("a", prompt_weighting="compel")  # type: ignore[arg-type]


MARKS = {
    "a (red:1.3) circle": "(red:1.3)",
    "((red)) circle": "((red))",
    "[red] circle": "[red]",
    "red++ circle": "red++",
    "(red hill)1.3": "(red hill)1.3",
    "circle <lora:style:0.8>": "<lora:style:0.8>",
    "circle embedding:cat.pt": "embedding:cat.pt",
    "a BREAK b": "BREAK",
    "a cat AND a dog": "AND",
    "a {red|blue} circle": "{red|blue}",
}


@pytest.mark.parametrize("prompt", MARKS)
def test_marks_that_are_read_as_text_are_told_once_a_run(tmp_path: Path, prompt: str) -> None:
    pipeline = fake_pipeline(tmp_path, length=64)
    with pytest.warns(PromptWarning) as told:
        pipeline([prompt, prompt], num_images=2, scaling_space="latent")
    assert [str(warning.message).partition(";")[0] for warning in told] == [f"read as plain text: {MARKS[prompt]!r}"]


@pytest.mark.parametrize(
    "prompt",
    [
        "a circle (red)",
        "10:30, a clock",
        "C++ code",
        "A CAT AND A DOG",
        "a cat - a dog",
        "well-known",
        "1 < 2 > 0",
        ":)",
    ],
)
def test_ordinary_text_is_not_taken_for_marks(prompt: str) -> None:
    assert not read_literally([prompt], "none")


@pytest.mark.parametrize(
    ("prompt", "weighting", "told"),
    [
        ("(red:1.3) [blue]", "a1111", ""),
        ("(red:1.3) [blue]", "comfyui", ""),
        ("[red:blue:0.5]", "a1111", "[red:blue:0.5]"),
        ("(red)1.3", "a1111", "(red)1.3"),
        ("<lora:x:1>", "comfyui", "<lora:x:1>"),
    ],
)
def test_marks_that_are_heard_are_not_told(prompt: str, weighting: Weighting, told: str) -> None:
    said = read_literally([prompt], weighting)
    assert said.startswith(f"read as plain text: {told!r}; ") if told else not said
