"""lssgen calibrate: actions, each with its own options, and every mistake one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_bundle import toy_in_stages

from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.calibrate import main
from lssgen.commands.plan import main as plan


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    out, err = capsys.readouterr()
    return out, err.strip().splitlines()[-1] if err.strip() else ""


@pytest.mark.filterwarnings("always::lssgen.runtime.text.PromptWarning")
def test_ranges_then_quantise_makes_a_bundle_beside_the_other(
    demo: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    too_long = "a green triangle that stands on its tip below a yellow ring with a hole"
    prompts.write_text(f"a red star above a blue circle on a white background\n{too_long}\n")
    file, made = tmp_path / "demo.ranges.safetensors", tmp_path / "made"
    runs = ["--threads=1", "--verify=never", f"--prompts={prompts}"]
    assert main(["ranges", str(demo.folder), "-o", str(file), "--steps=16", *runs]) == 0
    out, err = capsys.readouterr()
    assert "lssgen-calibrate: warning: prompt too long" in err
    assert "PromptWarning" not in err
    assert "| input of | largest at 128x128 | largest at 256x256 | ratio |" in out
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    words = ["--format=fp8", "--for=tensorrt-rtx", "--target=sm89,sm120", f"--statistics={file}", "--compare=0"]
    assert main(["quantise", str(demo.folder), "-o", str(made), *words, *runs]) == 0
    out, err = capsys.readouterr()
    assert "TensorRT fuses attention in fp8 only where the rest is in fp16 or bf16" in err
    assert "57 products in fp8 for tensorrt-rtx, 0 kept, 5 attentions" in out
    assert "not timed" in err
    again = [
        "quantise",
        str(made),
        "-o",
        str(tmp_path / "twice"),
        "--verify=never",
    ]
    assert main(again) == 1
    assert "is quantised already; take the bundle that it was made from" in lines(capsys)[1]
    assert read_bundle(made).manifest.graphs["step"].quantisation is not None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "quantise BUNDLE --statistics none.safetensors",
            "CalibrationError: statistics none.safetensors cannot be read",
        ),
        ("quantise BUNDLE --format int8-weights --for tensorrt-rtx --target sm99", "there is no target 'sm99'"),
        ("ranges BUNDLE --prompts none.txt", "PromptError: prompts none.txt cannot be read"),
        ("adopt BUNDLE", "CalibrationError: to adopt a graph, give its ONNX file with --graph"),
        ("adopt BUNDLE --graph none.onnx --compare 0", "none.onnx is not an ONNX graph that can be read"),
        ("ranges nowhere", "BundleError: nowhere is not a bundle"),
        ("sigma BUNDLE", "CalibrationError: to measure noise levels, give a folder of photographs with --images"),
        ("sigma BUNDLE --images none", "CalibrationError: there is no folder none; give one with photographs"),
        ("sigma BUNDLE --images . --crop 264", "a crop of 264 px does not do for latent cells of 8 px"),
        ("sigma BUNDLE --images . --crop 256", "0 of 0 pictures in . can be read and are 256 px or more"),
        ("sigma BUNDLE --images . --upsampler up", "--upsampler goes with --vae"),
        ("sigma BUNDLE --levels none.json", "CalibrationError: none.json cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    demo: Bundle, words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    argv = [str(demo.folder) if word == "BUNDLE" else word for word in words.split()]
    assert main([*argv, "--verify=never", "--output", str(tmp_path / "made")]) == 1
    _, err = lines(capsys)
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("rangs demo", "ACTION: there is no 'rangs'; did you mean ranges?"),
        ("ranges demo --format int8", "--format is not an option of ranges"),
        ("quantise demo --graph x.onnx", "--graph is not an option of quantise"),
        ("adopt demo --smoothing 0.5", "--smoothing is not an option of adopt"),
        ("quantise demo --format int3", "--format: there is no 'int3'; did you mean int8?"),
        ("quantise demo --share 2", "--share: 2 is too large; give 1 at most"),
        ("quantise demo --for onnxruntime-cuda", "--for: there is no 'onnxruntime-cuda'; did you mean onnxruntime?"),
    ],
)
def test_a_slip_is_one_line_and_status_2(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert said in capsys.readouterr().err


def test_sigma_measures_a_bundle_and_puts_its_levels_there_or_those_of_a_file(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs, bundle = tmp_path / "photographs", toy_in_stages(toy, tmp_path / "toy")
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        small = Image.fromarray(rng.integers(0, 256, (33, 40, 3), np.uint8))
        small.resize((320, 264), Image.Resampling.BICUBIC).save(photographs / f"{number}.png")
    words = ["sigma", str(bundle.folder), "--threads=1"]
    assert main([*words, f"--images={photographs}", "--crop=256"]) == 0
    out, err = lines(capsys)
    assert "| cycles per cell | power | latent error |" in out
    assert "--start-sigma auto starts at these" in out
    assert f"noise levels: {tmp_path / 'toy.sigma.json'}" in err
    found = read_bundle(bundle.folder).manifest.facts.defaults.covering_sigmas
    assert 0 < found["latent"] < 1
    assert main([*words, f"--levels={tmp_path / 'toy.sigma.json'}", "--quality=0.2"]) == 0
    assert read_bundle(bundle.folder).manifest.facts.defaults.covering_sigmas["latent"] < found["latent"]
    assert plan(["--bundle", str(bundle.folder), "--start-sigma=auto", "--steps=50"]) == 0
    assert "published 0.75; --start-sigma auto: 0." in lines(capsys)[0]


def test_only_sigma_of_a_vae_does_without_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["sigma", "--images=."], ["ranges"], ["quantise", "--format=fp8"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert "BUNDLE is required" in lines(capsys)[1]
