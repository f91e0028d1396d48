import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lssgen.commands import run as command
from lssgen.commands.run import main
from lssgen.runtime.noise import NoiseStream
from lssgen.runtime.pipeline import Pipeline


@pytest.fixture
def run(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """lssgen-run in an empty folder, on the toy bundle."""
    monkeypatch.chdir(tmp_path)

    def with_flags(*flags: str) -> int:
        return main([*flags, "--bundle", str(toy), "--threads", "1", "--quiet", "--scaling-space", "latent"])

    return with_flags


def test_a_prompt_becomes_a_picture_and_a_record(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a red circle", "-o", "out/cat.png", "--seed", "3") == 0
    assert capsys.readouterr().out == "out/cat.png\n"
    with Image.open("out/cat.png") as image:
        assert image.size == (64, 64)
        assert json.loads(image.info["parameters"])["seed"] == 3
    record = json.loads(Path("out/cat.run.json").read_text())
    assert (record["finished"], record["configuration"]["seed"]) == (True, 3)
    assert [len(stage["steps"]) for stage in record["times"][0]["stages"]] == [6, 4]
    assert [len(stage["steps"]) for stage in record["plan"]["stages"]] == [6, 4]
    assert set(record["bundle"]) == {"folder", "manifest_sha256"}


def test_several_pictures_are_numbered(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a", "red", "--num-images", "2", "--batch", "3", "--format", "webp") == 0
    assert capsys.readouterr().out.split() == [f"lssgen-000{i}.webp" for i in range(4)]
    assert all(Path(f"lssgen-000{i}.webp").exists() for i in range(4))


def test_a_folder_takes_numbered_pictures_and_run_json(run: Any) -> None:
    assert run("a", "-o", "gallery/", "--format", "jpg") == 0
    assert sorted(path.name for path in Path("gallery").iterdir()) == ["0000.jpg", "run.json"]


def test_saved_latents_are_those_of_seed_plus_index(run: Any) -> None:
    assert run("a", "--seed", "5", "--num-images", "3", "--batch", "2", "--save-latents", "z.npy") == 0
    latents = np.load("z.npy")
    assert (latents.shape, latents.dtype) == ((3, 4, 8, 8), np.float32)
    assert run("a", "--seed", "7", "--save-latents", "one.npy") == 0
    assert latents[2] == pytest.approx(np.load("one.npy")[0], abs=1e-6)


def test_a_run_is_repeated_from_its_record(run: Any) -> None:
    run(
        "a red circle", "--seed", "5", "--steps", "9", "--num-images", "2", "-o", "one.png", "--save-latents", "one.npy"
    )
    assert run("--config", "one.run.json", "-o", "two.png", "--save-latents", "two.npy") == 0
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))
    assert run("--config", "one.run.json", "--seed", "6", "--num-images", "1", "--save-latents", "three.npy") == 0
    assert np.load("three.npy")[0] == pytest.approx(np.load("one.npy")[1], abs=1e-6)


@pytest.mark.parametrize(("flags", "recorded"), [((), None), (("--negative-prompt", ""), "")])
def test_an_empty_negative_prompt_is_not_one_that_was_not_given(
    run: Any, flags: tuple[str, ...], recorded: str | None
) -> None:
    assert run("a", *flags, "-o", "one.png") == run("--config", "one.run.json", "-o", "two.png") == 0
    for name in ("one", "two"):
        assert json.loads(Path(f"{name}.run.json").read_text())["configuration"]["negative_prompt"] == recorded
        with Image.open(f"{name}.png") as image:
            assert json.loads(image.info["parameters"])["negative_prompt"] == recorded


def test_plan_only_prints_the_stages_and_paints_nothing(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--plan-only") == 0
    out = capsys.readouterr().out
    assert "32 x 32" in out
    assert "64 x 64" in out
    assert not list(Path().iterdir())


def test_ctrl_c_leaves_finished_pictures_whole_and_on_record(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[object] = []
    batch = Pipeline._batch

    def stop_at_the_third(self: Pipeline, *args: Any) -> Any:
        batches.append(args)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return batch(self, *args)

    monkeypatch.setattr(Pipeline, "_batch", stop_at_the_third)
    assert run("a", "--num-images", "4", "-o", "x.png") == 130
    assert sorted(path.name for path in Path().iterdir()) == ["x-0000.png", "x-0001.png", "x.run.json"]
    record = json.loads(Path("x.run.json").read_text())
    assert (record["finished"], len(record["pictures"])) == (False, 2)
    for index in range(2):
        with Image.open(f"x-000{index}.png") as image:
            image.load()


def test_a_prompt_file_becomes_folders_and_resumes(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.jsonl").write_text('{"prompt": "a red circle"}\n{"prompt": "a blue square"}\n')
    flags = ("--prompts", "p.jsonl", "--outdir", "g", "--num-images", "2")
    assert run(*flags) == 0
    assert sorted(str(path) for path in Path("g").rglob("*.png"))[0] == "g/00000/samples/0000.png"
    assert json.loads(Path("g/00001/result.json").read_text())["n_sample"] == 2
    capsys.readouterr()
    assert run(*flags) == 0
    assert "2 of them from earlier runs" in capsys.readouterr().out
    assert run(*flags, "--seed", "1") == 1
    assert "seed was 0, is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "nothing to paint"),
        (("a", "-o", "x.gif"), "unknown format"),
        (("a", "--height", "72"), "multiples of 16 px"),
        (("a", "--num-images", "0"), "num_images is 0"),
        (("--prompts", "p.jsonl"), "go together"),
        (("a", "--outdir", "g"), "go together"),
        (("a", "--prompts", "p.jsonl", "--outdir", "g"), "without PROMPT"),
        (("--prompts", "p.jsonl", "--outdir", "g"), "prompt file p.jsonl cannot be read"),
        (("a", "--config", "none.json"), "none.json cannot be read"),
        (("a", "-o", "/proc/x.png"), "cannot be written"),
        (("a", "--skip-layer-guidance"), "without layer gates"),
        (("a", "--original-size", "64"), "toy is not told sizes"),
        (("a", "--crop-left-top", "a"), "--crop-left-top is 'a'"),
        (("a", "--height", "0"), "height is 0; it must be at least 1"),
        (("a", "--steps", "9" * 23), "ask for 10000 at most"),
        (("a", "-o", "a" * 300 + ".png"), "File name too long"),
        (("a", "--save-latents", "/proc/z.npy"), "/proc/z.npy cannot be written"),
        (("a", "--save-latents", "."), "it is a folder"),
        (("a", "--seed", str(2**64 - 1), "--num-images", "2"), f"seed {2**64} cannot be used"),
        (("a", "--guidance-scale", "nan"), "guidance_scale is nan; it must be a finite number"),
        (("\ud83d",), "cannot be read"),
    ],
)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    run: Any, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    assert run(*flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"height": "big"}', "Expected `int`"),
        ("[1]", "Expected `object`"),
        ('{"hight": 3}', "did you mean 'height'"),
        ("", "truncated"),
        ('{"guidance_scale": NaN}', "malformed"),
        ('{"seed": true}', "Expected `int`, got `bool`"),
        ('{"configuration": {"wid": 1}}', "did you mean 'width'"),
        ('{"skip_layers": {"scales": 2.0}}', "unknown option 'scales'; did you mean 'scale'"),
        ("[" * 100_000, "Expected `object`"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(
    run: Any, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    Path("c.json").write_text(content)
    assert run("a", "--config", "c.json") == 1
    assert words in capsys.readouterr().err


def test_a_long_prompt_warns_on_one_line(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a " * 8 + "red circle") == 0
    assert "lssgen-run: warning: prompt too long" in capsys.readouterr().err
    assert Path("lssgen.png").exists()


def test_the_demo_model_is_exported_once_by_another_process(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    commands: list[list[str]] = []

    class Done:
        returncode = 0

    def export(command: list[str], **_: object) -> Done:
        commands.append(command)
        shutil.copytree(toy, command[-1])
        return Done()

    monkeypatch.setattr(command.subprocess, "run", export)
    for _ in range(2):
        assert main(["a", "--scaling-space", "latent", "--threads", "1", "--quiet"]) == 0
    assert [line[1:5] for line in commands] == [["-m", "lssgen.commands.export", "--model", "demo"]]


def test_without_torch_the_demo_model_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    assert main(["a"]) == 1
    assert 'pip install "lssgen[export]"' in capsys.readouterr().err


def test_the_first_stage_starts_from_the_noise_of_the_seed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    init = NoiseStream.__init__

    def note(self: NoiseStream, seed: int) -> None:
        drawn.append(seed)
        init(self, seed)

    monkeypatch.setattr(NoiseStream, "__init__", note)
    assert run("a", "--seed", "11", "--num-images", "2") == 0
    assert drawn == [11, 12]


def test_a_picture_is_repainted_where_its_mask_is_white(run: Any) -> None:
    given = np.random.default_rng(0).integers(60, 200, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(given).save("in.png")
    Image.fromarray(mask).save("mask.png")
    assert run("a red circle", "--init-image", "in.png", "--mask-image", "mask.png", "-o", "out.png") == 0
    with Image.open("out.png") as image:
        painted = np.asarray(image)
    assert np.array_equal(painted[32:], given[32:])
    assert not np.array_equal(painted[:32], given[:32])
    assert set(json.loads(Path("out.run.json").read_text())["start"]) == {"in.png", "mask.png"}


def test_a_picture_that_is_not_there_is_named(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a", "--init-image", "none.png") == 1
    assert "picture none.png cannot be read" in capsys.readouterr().err


def test_memory_that_does_not_suffice_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhaust(*_: object) -> None:
        np.empty(1 << 50)

    monkeypatch.setattr(Pipeline, "_batch", exhaust)
    assert run("a") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not enough memory (Unable to allocate" in line


@pytest.mark.parametrize("prompt", ["", "   ", "\U0001f600 \u202e\u00e9", "\x00", "a red circle " * 5000])
def test_any_text_is_a_prompt_and_comes_back_from_the_record(run: Any, prompt: str) -> None:
    assert run(prompt, "-o", "one.png", "--save-latents", "one.npy") == 0
    assert json.loads(Path("one.run.json").read_text())["pictures"][0]["prompt"] == prompt
    assert run("--config", "one.run.json", "-o", "two.png", "--save-latents", "two.npy") == 0
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))


@pytest.mark.parametrize("flag", ["--threads", "--device"])
@pytest.mark.parametrize("value", ["-1", "two", "1.5"])
def test_counts_are_whole_numbers(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["a red circle", f"{flag}={value}"])
    assert f"argument {flag}: '{value}' is no whole number of 0 or more" in capsys.readouterr().err
