"""Control pictures and checkpoints that inpaint, on the command line and from Python, with networks that are toys."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle as toy_module
from PIL import Image

import lssgen
from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.plan import main as plan_main
from lssgen.commands.run import main
from lssgen.errors import BundleError, LssgenError
from lssgen.manifest import Picture
from lssgen.plan.facts import Control
from lssgen.ports import Port
from lssgen.testing import step_network


def patched(monkeypatch: pytest.MonkeyPatch, ports: str, seen: str, extra: list[Any], facts: Any, columns: int) -> None:
    """A toy whose step has more columns in its row and more ports, and sees `seen` in the place of its latent."""
    step = toy_module.GRAPHS["step"].replace("float[batch, 8] row", f"float[batch, {8 + columns}] row, {ports}")
    names = "".join(f", told{number}" for number in range(columns))
    split = "blend1{} = Split <axis = 1, num_outputs = {}>"
    step = step.replace(split.format("", 8), split.format(names, 8 + columns))
    one = "one = Constant <value = int64[1] {1}> ()"
    step = step.replace("u = Mul (c_in, latent)", f"{one}\n{seen}\nu = Mul (c_in, seen)")
    monkeypatch.setattr(toy_module, "GRAPHS", {**toy_module.GRAPHS, "step": step})
    like = step_network(lambda ask: ask.u, history=1, extra=extra)
    monkeypatch.setattr(toy_module, "LIKE", {**toy_module.LIKE, "step": like})
    monkeypatch.setattr(toy_module, "FACTS", facts)


def steered(folder: Path, monkeypatch: pytest.MonkeyPatch, modes: int = 0) -> Bundle:
    """The mean of every cell of a control picture, times the scale, is added to what the step sees."""
    port = Port("control", "float32", ("batch", 192, "height", "width"))
    seen = "mean = ReduceMean (control, one)\nshare = Mul (told0, mean)\nseen = Add (latent, share)"
    facts = replace(toy_module.FACTS, control=Control(modes=modes))
    ports, extra = "float[batch, 192, height, width] control", [(port, Picture(name="control", read_as="cells"))]
    patched(monkeypatch, ports, seen, extra, facts, 1 + modes)
    return toy_module.toy_bundle(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bundle = steered(tmp_path / "b", monkeypatch)
    here(tmp_path, monkeypatch)
    return bundle.folder


def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "white").save("white.png")
    Image.new("RGB", (64, 64), "black").save("black.png")
    Image.new("RGB", (64, 48), "black").save("wide.png")
    Image.new("RGB", (128, 128), "white").save("large.png")


def flags(folder: Path) -> list[str]:
    return ["a", "--bundle", str(folder), "--scaling-space", "latent", "--threads", "1", "--quiet"]


def pixels(folder: Path, name: str, *given: str) -> Any:
    assert main([*flags(folder), *given, "-o", f"{name}.png"]) == 0
    return np.asarray(Image.open(f"{name}.png"))


def test_a_control_picture_steers_a_run_and_is_on_record(folder: Path) -> None:
    white, black = (pixels(folder, f"on-{one}", "--control", f"{one}.png") for one in ("white", "black"))
    assert not np.array_equal(white, black)
    record = json.loads(Path("on-white.run.json").read_text())
    assert set(record["start"]) == {"control=white.png"}


def test_a_run_is_repeated_from_its_record_with_its_control(folder: Path) -> None:
    first = pixels(folder, "first", "--control", "white.png", "--control-scale", "0.5", "--control-end", "0.8")
    again = pixels(folder, "again", "--control", "white.png", "--config", "first.run.json")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pixels(folder, "whole", "--control", "white.png"))


def test_a_picture_of_another_size_and_the_same_shape_is_scaled(folder: Path) -> None:
    small, large = (pixels(folder, one, "--control", f"{one}.png") for one in ("white", "large"))
    assert np.array_equal(small, large)


def test_a_scale_of_zero_needs_no_picture_and_equals_one_that_is_off(folder: Path) -> None:
    without = pixels(folder, "without", "--control-scale", "0")
    off = pixels(folder, "off", "--control", "white.png", "--control-scale", "0")
    assert np.array_equal(without, off)
    with lssgen.load(folder, threads=1) as pipeline:
        picture = Image.open("white.png")
        first = pipeline("a", control_image=picture, scaling_space="latent")
        after = pipeline("a", controlnet_conditioning_scale=0.0, scaling_space="latent")
    # The first run's picture is still in the buffers of the second, and does nothing there.
    assert np.array_equal(np.asarray(after.images[0]), without)
    assert not np.array_equal(np.asarray(first.images[0]), without)


def test_the_plan_says_how_strongly_the_picture_acts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--bundle", str(folder), "--scaling-space", "latent", "--control-scale", "0.5", "--control-end", "0.5"]
    assert plan_main(asked) == 0
    assert "Control picture: scale 0.5 in 3 of 6, 1 of 4 steps" in capsys.readouterr().out
    assert plan_main([*asked, "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["plan"]["stages"]
    assert [step["control"] for step in stages[0]["steps"]] == [[0.5]] * 3 + [[0.0]] * 3
    # It leaves out the first two of its schedule's six: the noise levels that are steered are those of the first stage.
    assert [step["control"] for step in stages[1]["steps"]] == [[0.5], [0.0], [0.0], [0.0]]


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    capsys.readouterr()
    assert main([*flags(folder), *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(Path.cwd().glob("lssgen*.png"))
    return line


def test_what_is_wrong_with_a_control_picture_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "takes the pictures control; none came" in refused(folder, capsys)
    line = refused(folder, capsys, "--control", "wide.png")
    assert "the control picture is 64 x 48 px, of another shape than the run's 64 x 64 px" in line
    line = refused(folder, capsys, "--control", "white.png", "--control-start", "0.5", "--control-end", "0.5")
    assert "the start must lie below the end" in line
    assert "none.png cannot be read" in refused(folder, capsys, "--control", "none.png")
    line = refused(folder, capsys, "--control", "white.png", "--control", "white.png")
    assert "control was given twice" in line


def test_a_union_must_be_told_a_kind_that_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    union = steered(tmp_path / "b", monkeypatch, modes=3).folder
    here(tmp_path, monkeypatch)
    assert "give control_mode, 0 to 2 (--control-mode)" in refused(union, capsys, "--control", "white.png")
    assert "knows the kinds 0 to 2" in refused(union, capsys, "--control", "white.png", "--control-mode", "3")
    pixels(union, "known", "--control", "white.png", "--control-mode", "2")


def test_a_bundle_without_a_controlnet_refuses_a_control_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = toy_module.toy_bundle(tmp_path / "b").folder
    here(tmp_path, monkeypatch)
    assert "has no ControlNet, so a control picture" in refused(plain, capsys, "--control", "white.png")
    assert "has no ControlNet: export it" in refused(plain, capsys, "--control-scale", "0.5")


def test_a_network_that_inpaints_wants_a_picture_and_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, kept = Port("mask", "float32", ("batch", 64, "height", "width")), toy_module.LIKE["encode"].outputs[0]
    extra = [
        (mask, Picture(name="mask", read_as="cell_mask")),
        (replace(kept, name="around"), Picture(name="kept", read_as="kept")),
    ]
    ports = "float[batch, 64, height, width] mask, float[batch, 4, height, width] around"
    seen = "mean = ReduceMean (mask, one)\nmore = Add (around, mean)\nseen = Add (latent, more)"
    patched(monkeypatch, ports, seen, extra, toy_module.FACTS, 0)
    folder = toy_module.toy_bundle(tmp_path / "b").folder
    here(tmp_path, monkeypatch)
    for given in ([], ["--init-image", "white.png"]):
        assert "give a picture and its mask, init_image and mask_image" in refused(folder, capsys, *given)
    Image.fromarray(np.repeat(np.uint8([0, 255]), 32)[None].repeat(64, 0)).save("half.png")
    painted = pixels(folder, "painted", "--init-image", "white.png", "--mask-image", "half.png")
    assert (painted[:, :32] == 255).all()


def test_a_row_that_does_not_fit_the_controlnet_is_a_damaged_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = steered(tmp_path / "b", monkeypatch, modes=2).folder
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"modes": 2', '"modes": 3'))
    with pytest.raises(BundleError, match="12 columns of a step with this ControlNet"):
        read_bundle(folder)


def test_a_control_image_that_is_no_picture_is_refused(folder: Path) -> None:
    with lssgen.load(folder, threads=1) as pipeline, pytest.raises(LssgenError, match="control_image is a str"):
        pipeline("a", control_image="white.png")  # pyright: ignore[reportArgumentType]
