"""Checkers and watermarks: what they say is done, and nothing gets out around them."""

import json
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fakes import fake_pipeline
from onnx.parser import parse_model
from PIL import Image

import lssgen
from lssgen.bundle import Bundle
from lssgen.commands import run as run_command
from lssgen.errors import CheckError, RefusedPictureError
from lssgen.runtime import Options, Pipeline, Preview
from lssgen.runtime.checking import Checked, Guard, Verdict, name_of
from lssgen.runtime.record import read_record, settings_from_file

EXAMPLES = Path(__file__).parents[2] / "examples"
LATENT = Options(scaling_space="latent")
BLACK = Image.new("RGB", (64, 64))
RED = Image.new("RGB", (64, 64), "red")

Pictures = Sequence[Image.Image]


def guarded(folder: Path, **hooks: Any) -> Pipeline:
    plain = fake_pipeline(folder)
    return Pipeline(plain.bundle, plain.backend, guard=Guard(**hooks))


def says(*verdicts: Verdict) -> Callable[..., list[Verdict]]:
    """A checker that says the same of every batch."""

    def checker(pictures: Pictures, prompts: Sequence[str]) -> list[Verdict]:
        del prompts
        return (list(verdicts) * len(pictures))[: len(pictures)]

    return checker


def test_without_hooks_pictures_are_what_they_were_and_say_nothing(tmp_path: Path) -> None:
    (picture,) = fake_pipeline(tmp_path)("a", **LATENT).pictures
    assert picture.checked == ()
    assert not Guard()


def test_checker_is_given_all_pictures_of_a_batch_with_their_prompts(tmp_path: Path) -> None:
    seen: list[tuple[list[tuple[int, int]], list[str]]] = []

    def checker(pictures: Pictures, prompts: Sequence[str]) -> list[Verdict]:
        seen.append(([picture.size for picture in pictures], list(prompts)))
        return [Verdict()] * len(pictures)

    plain = fake_pipeline(tmp_path / "plain")(["a", "b"], batch=2, **LATENT)
    result = guarded(tmp_path / "guarded", checker=checker)(["a", "b"], batch=2, **LATENT)
    assert seen == [([(64, 64)] * 2, ["a", "b"])]
    assert [one.tobytes() for one in result.images] == [one.tobytes() for one in plain.images]
    assert result.pictures[0].checked == (Checked(by=name_of(checker), action="keep"),)


@pytest.mark.parametrize("other", [None, RED])
def test_replaced_picture_gives_neither_itself_nor_its_latent(tmp_path: Path, other: Image.Image | None) -> None:
    checker = says(Verdict(action="replace", reason="no", image=other), Verdict())
    result = guarded(tmp_path, checker=checker)(["a", "b"], batch=2, **LATENT)
    assert result.images[0].tobytes() == (other or BLACK).tobytes()
    assert not result.latents[0].any()
    assert result.latents[1].any()
    assert [picture.checked[0].action for picture in result.pictures] == ["replace", "keep"]


def test_refused_picture_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    pipeline = guarded(tmp_path, checker=says(Verdict(action="refuse", reason="too red")))
    with pytest.raises(RefusedPictureError, match=r"a picture was refused by .*checker: too red"):
        pipeline("a", **LATENT)


def test_batches_before_a_refusal_stay(tmp_path: Path) -> None:
    verdicts = iter([[Verdict()], [Verdict(action="refuse")]])
    painting = guarded(tmp_path, checker=lambda *_: next(verdicts)).paint(["a", "b"], **LATENT)
    assert len(next(painting).pictures) == 1
    with pytest.raises(RefusedPictureError, match="it gives no reason"):
        next(painting)


def test_previews_pass_the_hooks_too(tmp_path: Path) -> None:
    shown: list[Preview] = []
    checker = says(Verdict(action="replace"))
    guarded(tmp_path, checker=checker)("a", on_preview=shown.append, **LATENT)
    assert [image.getextrema() for preview in shown for image in preview.images] == [((0, 0),) * 3]


def test_refused_preview_is_not_shown(tmp_path: Path) -> None:
    pipeline = guarded(tmp_path, checker=says(Verdict(action="refuse")))
    with pytest.raises(RefusedPictureError):
        pipeline("a", on_preview=lambda _: pytest.fail("it was shown"), **LATENT)


def raises(error: BaseException) -> Callable[..., Any]:
    def hook(*_: object) -> None:
        raise error

    return hook


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (raises(ValueError("no model")), r"failed \(ValueError: no model\); no picture is let out"),
        (raises(SystemExit(3)), r"failed \(SystemExit: 3\)"),
        (lambda *_: [], r"was given 1 pictures and answered for 0"),
        (lambda *_: None, r"failed \(TypeError"),
        (lambda *_: [True], r"answered with a bool; it must give Verdicts"),
        (lambda *_: [Verdict(action="replace", image=Image.new("RGB", (1, 1)))], r"gave a picture \(RGB, \(1, 1\)\)"),
        (lambda *_: [Verdict(action="replace", image=Image.new("L", (64, 64)))], r"gave a picture \(L, "),
        (lambda *_: [Verdict(action="perhaps")], r"action is 'perhaps'; it must be one of keep, replace, refuse"),
        (lambda *_: [Verdict(image=RED)], r"has a picture, and its action is keep"),
    ],
)
def test_checker_that_fails_lets_nothing_out(tmp_path: Path, hook: Any, words: str) -> None:
    painting = guarded(tmp_path, checker=hook).paint("a", **LATENT)
    with pytest.raises(CheckError, match=words):
        next(painting)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (raises(OSError("gone")), r"failed \(OSError: gone\)"),
        (lambda _: [], r"answered for 0"),
        (lambda _: [Image.new("RGB", (1, 1))], r"gave a picture \(RGB, \(1, 1\)\) for one that is RGB, \(64, 64\)"),
        (lambda _: ["a text"], r"gave a picture \(str\)"),
    ],
)
def test_watermark_that_fails_lets_nothing_out(tmp_path: Path, hook: Any, words: str) -> None:
    with pytest.raises(CheckError, match=words):
        guarded(tmp_path, watermark=hook)("a", **LATENT)


def test_watermark_comes_after_the_checkers_and_keeps_the_latent(tmp_path: Path) -> None:
    order: list[str] = []

    def checker(pictures: Pictures, prompts: Sequence[str]) -> list[Verdict]:
        del prompts
        order.append("checker")
        return [Verdict()] * len(pictures)

    def watermark(pictures: Pictures) -> list[Image.Image]:
        order.append("watermark")
        return [RED] * len(pictures)

    (picture,) = guarded(tmp_path, checker=[checker, checker], watermark=watermark)("a", **LATENT).pictures
    assert order == ["checker", "checker", "watermark"]
    assert [one.action for one in picture.checked] == ["keep", "keep", "watermark"]
    assert picture.image is RED
    assert picture.latent.any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"checker": "nowhere_at_all:make"}, r"checker nowhere_at_all:make cannot be made: ModuleNotFoundError"),
        ({"checker": "json:nothing"}, r"checker json:nothing cannot be made: AttributeError"),
        ({"checker": "json:loads"}, r"checker json:loads cannot be made: TypeError"),
        ({"checker": "builtins:int"}, r"checker 'builtins:int' is not a function, but a int"),
        ({"checker": "unknown"}, r"no installed package names a checker 'unknown'; there are none"),
        ({"watermark": "unknown"}, r"no installed package names a watermark 'unknown'"),
        ({"checker": [7]}, r"checker 7 is not a function"),
    ],
)
def test_hook_that_is_not_there_is_refused_before_anything_is_loaded(given: Any, words: str) -> None:
    with pytest.raises(CheckError, match=words):
        lssgen.load("no such bundle", **given)


def test_package_names_its_hooks_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("own", "checker:detector", "lssgen.checkers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(
        "lssgen.runtime.checking.entry_points", lambda group: metadata.EntryPoints([point]).select(group=group)
    )
    assert [one.checked[0].by for one in Guard("own")([RED], ["a"])] == ["checker:Detector"]


# --- The example, on a real model, from the command line --------------------------------------------------------------


@pytest.fixture
def classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network whose score is how bright a picture is, to a power that is written into it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("CHECKER_MODEL", str(tmp_path / "classifier.onnx"))
    return tmp_path / "classifier.onnx"


def write_classifier(path: Path, factor: float) -> None:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        brightness (float[pictures, 3, 8, 8] pixels) => (float[pictures] score) {{
            axes = Constant <value = int64[3] {{1, 2, 3}}> ()
            mean = ReduceMean <keepdims = 0> (pixels, axes)
            factor = Constant <value = float {{{factor}}}> ()
            score = Mul (mean, factor)
        }}"""
    onnx.save(parse_model(text), path)


def painted(demo: Bundle, folder: Path, *words: str) -> int:
    return run_command.main(
        ["a red star on a white background", "--bundle", str(demo.folder), "--steps", "2", "--quiet", "--engine",
         "onnxruntime", "--verify", "never", "-o", str(folder / "star.png"), *words]
    )  # fmt: skip


def test_classifier_of_the_example_decides_on_the_command_line(
    demo: Bundle, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = ["--checker", "checker:classifier"]
    write_classifier(classifier, 0.0)
    assert painted(demo, tmp_path / "kept", *hook) == 0
    kept = Image.open(tmp_path / "kept" / "star.png")
    assert json.loads(kept.info["parameters"])["checked"] == [
        {"by": "checker:Classifier", "action": "keep", "reason": "score 0.00"}
    ]
    record = read_record(next((tmp_path / "kept").glob("*.run.json")))
    assert record.pictures[0].checked == [Checked(by="checker:Classifier", action="keep", reason="score 0.00")]
    assert settings_from_file(tmp_path / "kept" / "star.png").options["num_inference_steps"] == 2
    mean = float(np.asarray(kept, np.float32).mean() / 255)
    write_classifier(classifier, 0.7 / mean)
    assert painted(demo, tmp_path / "replaced", *hook) == 0
    assert Image.open(tmp_path / "replaced" / "star.png").getextrema() == ((0, 0),) * 3
    write_classifier(classifier, 2 / mean)
    capsys.readouterr()
    assert painted(demo, tmp_path / "refused", *hook) == 1
    assert "RefusedPictureError: a picture was refused by checker:Classifier: score" in capsys.readouterr().err
    assert not list((tmp_path / "refused").glob("*.png"))


def test_latents_of_a_replaced_picture_are_not_saved(demo: Bundle, classifier: Path, tmp_path: Path) -> None:
    write_classifier(classifier, 0.0)
    assert painted(demo, tmp_path, "--checker", "checker:classifier", "--save-latents", str(tmp_path / "a.npy")) == 0
    assert np.load(tmp_path / "a.npy").any()
    mean = float(np.asarray(Image.open(tmp_path / "star.png"), np.float32).mean() / 255)
    write_classifier(classifier, 0.7 / mean)
    assert painted(demo, tmp_path, "--checker", "checker:classifier", "--save-latents", str(tmp_path / "b.npy")) == 0
    assert not np.load(tmp_path / "b.npy").any()


def test_dumped_inputs_and_a_checker_exclude_each_other(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        painted(demo, tmp_path, "--checker", "checker:classifier", "--dump-inputs", str(tmp_path / "dump"))
    assert "--dump-inputs writes latents that no --checker has seen" in capsys.readouterr().err


def test_watermark_of_the_example_is_found_by_its_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    (picture,) = guarded(tmp_path / "one", watermark="checker:watermark")("a", **LATENT).pictures
    is_marked = sys.modules["checker"].is_marked
    assert is_marked(picture.image)
    (plain,) = fake_pipeline(tmp_path / "two")("a", **LATENT).pictures
    assert not is_marked(plain.image)
    with pytest.raises(RefusedPictureError, match="it is marked"):
        Guard("checker:detector")([picture.image], ["a"])
