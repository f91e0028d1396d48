import gc
import json
import shutil
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from lssgen.commands import demo as demo_module
from lssgen.commands import paint as paint_module
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
    assert sorted(path.name for path in Path("gallery").iterdir()) == [".lock", "0000.jpg", "run.json"]


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


def test_a_run_is_repeated_from_its_picture(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("a red circle", "--seed", "5", "--steps", "9", "-o", "one.png", "--save-latents", "one.npy")
    assert run("--config", "one.png", "-o", "two.png", "--save-latents", "two.npy") == 0
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))
    Image.new("RGB", (8, 8)).save("plain.png")
    capsys.readouterr()
    assert run("--config", "plain.png") == 1
    assert "plain.png is a picture that does not say how it was painted" in capsys.readouterr().err


def test_pictures_of_an_earlier_run_that_stay_are_mentioned(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a", "--num-images", "3", "-o", "many/") == 0
    assert "stay" not in capsys.readouterr().err
    assert run("a", "--seed", "9", "-o", "many/") == 0
    assert "2 pictures of the run before stay: 0001.png, 0002.png" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["", " ", "/dev/null"])
@pytest.mark.parametrize("flag", ["--output", "--preview"])
def test_what_is_no_place_for_a_picture_is_refused(
    run: Any, flag: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a", flag, place) == 1
    assert f"{flag} is " in capsys.readouterr().err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("prompt", ["\ud800", "caf\udce9"])
def test_a_prompt_that_is_not_text_is_refused(run: Any, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(prompt) == 1
    assert "is not text: character" in capsys.readouterr().err


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
        (("a", "-o", "x.gif"), "unknown format"),
        (("a", "--preview", "x.gif"), "--preview x.gif has an unknown format"),
        (("a", "--height", "72"), "multiples of 16 px; 64 x 72 is not"),
        (("--prompts", "p.jsonl", "--outdir", "g"), "prompt file p.jsonl cannot be read"),
        (("a", "--config", "none.json"), "none.json cannot be read"),
        (("a", "-o", "/proc/x.png"), "cannot be written"),
        (("a", "--skip-layer-guidance"), "without layer gates"),
        (("a", "--original-size", "64"), "toy is not told sizes"),
        (("a", "-o", "a" * 300 + ".png"), "File name too long"),
        (("a", "--save-latents", "/proc/z.npy"), "/proc/z.npy cannot be written"),
        (("a", "--seed", str(2**64 - 1), "--num-images", "2"), f"seed {2**64} cannot be used"),
        (("\ud83d",), "is not text"),
        (("a", "--negative-prompt", "\ud83d"), "the negative prompt holds what is not text"),
        (
            ("a", "--save-latents", "z.pt"),
            "--save-latents z.pt has an unknown format; latents end in one of .npy, .saf",
        ),
        (("a", "b c", "--num-images", "60000"), "120,000 pictures were asked for; ask for 100,000 a run at most"),
        (("a", "--size", "16385"), "a picture of 16385 x 16385 px was asked for; ask for 268,435,456 pixels at most"),
        (("a", "--condition", "depth=x.png"), "x.png cannot be read"),
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
    ("flags", "words"),
    [
        ((), 'nothing to paint: give a prompt, as in lssgen-run "a red circle", or --prompts FILE.jsonl;'),
        (("--prompts", "p.jsonl"), "go together"),
        (("a", "--outdir", "g"), "go together"),
        (("a", "--prompts", "p.jsonl", "--outdir", "g"), "without PROMPT"),
        (("--prompts", "p.jsonl", "--outdir", "g", "--preview", "v"), "without PROMPT"),
        (("--prompts", "p.jsonl", "--outdir", "g", "--condition", "a=b"), "without PROMPT"),
        (("a", "--condition", "a.png"), "--condition: 'a.png' is not NAME=FILE, such as depth=depth.png;"),
        (("a", "--num-images", "0"), "--num-images: 0 is too small; give 1 or more;"),
        (("a", "--height", "0"), "--height: 0 is too small; give 1 or more;"),
        (("a", "--steps", "9" * 23), "is too large; give 10,000 at most;"),
        (("a", "--guidance-scale", "nan"), "--guidance-scale: 'nan' is not a finite number;"),
        (
            ("a", "red", "star", "above", "a", "circle"),
            '6 prompts were given, 6 of them a single word; put quotes around a prompt: lssgen-run "a red star above a '
            'circle". To paint single words, write them to a file for --prompts;',
        ),
        (("a", "photo", "of", "New York"), 'put quotes around a prompt: lssgen-run "a photo of New York"'),
        (("it's", "a", "trap"), "put quotes around a prompt: lssgen-run 'it'"),
        (("a", "--tf32"), "--tf32 is not an option of engine onnxruntime, but of onnxruntime-cuda and tensorrt and"),
        (("a", "--engine", "tensorrt", "--threads", "2"), "--threads is not an option of engine tensorrt, but of onnx"),
    ],
)
def test_flags_that_contradict_each_other_are_one_line_and_status_two(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(list(flags))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lssgen-run: ")
    assert words in line


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
        ('{"scheduler": {"_class_name": "DDIMScheduler"}}', "unknown option '_class_name'; there are solver, sigma"),
        ('{"scheduler": "eular"}', "no scheduler called 'eular' (did you mean euler?)"),
        ("[" * 100_000, "nested more than 64 deep"),
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


def test_two_first_uses_of_the_demo_model_make_it_once(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path))
    made: list[Path] = []

    def make(folder: Path) -> None:
        time.sleep(0.2)
        shutil.copytree(toy, folder)
        made.append(folder)

    monkeypatch.setattr(demo_module, "write_demo_bundle", make)
    monkeypatch.setattr(demo_module, "is_current", lambda folder: folder.exists())
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(lambda _: demo_module.demo_bundle("lssgen-run"), range(3)))
    assert made == [tmp_path / "bundles" / "demo"]
    assert set(folders) == set(made)
    assert capsys.readouterr().err.count("this once") == 1


def test_the_first_stage_starts_from_the_noise_of_the_seed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    init = NoiseStream.__init__

    def note(self: NoiseStream, seed: int, *more: int) -> None:
        drawn.append(seed)
        init(self, seed, *more)

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


@pytest.mark.parametrize("prompt", ["", "   ", "\U0001f600 \u202e\u00e9", "\x00", "a red circle " * 1500])
def test_any_text_is_a_prompt_and_comes_back_from_the_record(run: Any, prompt: str) -> None:
    assert run(prompt, "-o", "one.png", "--save-latents", "one.npy") == 0
    assert json.loads(Path("one.run.json").read_text())["pictures"][0]["prompt"] == prompt
    assert run("--config", "one.run.json", "-o", "two.png", "--save-latents", "two.npy") == 0
    assert np.array_equal(np.load("one.npy"), np.load("two.npy"))


@pytest.mark.parametrize("flag", ["--threads", "--device"])
@pytest.mark.parametrize(("value", "words"), [("-1", "give 0 or more"), ("two", "whole"), ("1.5", "whole")])
def test_counts_are_whole_numbers(flag: str, value: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["a red circle", f"{flag}={value}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lssgen-run: {flag}: ")
    assert words in line


def test_previews_are_the_pictures_of_the_smaller_stages(run: Any) -> None:
    assert run("a", "red", "-o", "x.png", "--preview", "small/") == 0
    assert sorted(path.name for path in Path("small").iterdir()) == ["0000-stage1.png", "0001-stage1.png"]
    with Image.open("small/0001-stage1.png") as image:
        assert image.size == (32, 32)
        assert json.loads(image.info["parameters"]) == {"prompt": "red", "seed": 1, "stage": 1}
    assert run("a", "-o", "x.png", "--preview", "v.webp") == 0
    assert Path("v-stage1.webp").exists()


def test_pictures_are_handed_on_and_not_kept(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def look(image: Image.Image, *_: object) -> None:
        seen.append(weakref.ref(image))
        gc.collect()
        alive.append(sum(one() is not None for one in seen))

    monkeypatch.setattr(paint_module, "write_picture", look)
    assert run("a", "--num-images", "5") == 0
    assert max(alive) <= 2  # the picture at hand, and the one before it


def test_a_run_that_is_stopped_leaves_no_half_of_its_latents(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(paint_module, "write_picture", stop)
    assert run("a", "--save-latents", "z.npy") == 130
    assert [path.name for path in Path().iterdir()] == ["lssgen.run.json"]


def test_a_flag_wins_over_the_config(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.json").write_text('{"height": 128, "width": 128, "num_inference_steps": 3, "token_clamp": false}')
    assert run("--plan-only", "--config", "c.json", "--size", "64x96", "--token-clamp") == 0
    assert "toy: 64 x 96 px, 3 steps" in capsys.readouterr().out


def test_inputs_of_every_graph_are_dumped_at_every_size_and_change_no_picture(run: Any) -> None:
    assert run("a", "-o", "x.png", "--save-latents", "x.npy") == 0
    assert run("a", "-o", "y.png", "--save-latents", "y.npy", "--dump-inputs", "d") == 0
    names = {"text", "step-4x4", "step-8x8", "transition_latent-4x4", "decode-8x8"}
    assert {path.stem for path in Path("d").iterdir()} == names
    assert np.array_equal(np.load("x.npy"), np.load("y.npy"))
    assert set(json.loads(Path("d/step-8x8.json").read_text())[0]) >= {"latent", "row", "text"}


def test_a_repeated_run_has_all_prompts_and_the_bundle_of_the_first(
    run: Any, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("a red circle", "a", "a", "-o", "x.png") == 0
    record = json.loads(Path("x.run.json").read_text())
    record["pictures"] = record["pictures"][:1]  # as after Ctrl-C
    Path("x.run.json").write_text(json.dumps(record))
    assert main(["--config", "x.run.json", "-o", "y.png", "--quiet"]) == 0
    assert json.loads(Path("y.run.json").read_text())["prompts"] == ["a red circle", "a", "a"]
    for index in range(3):
        assert Image.open(f"x-000{index}.png").tobytes() == Image.open(f"y-000{index}.png").tobytes()
    other = shutil.copytree(toy, tmp_path / "other")
    text = (other / "manifest.json").read_bytes()
    (other / "manifest.json").write_bytes(text.split(b',\n  "seal"')[0] + b"\n}\n")
    capsys.readouterr()
    assert main(["--config", "x.run.json", "--bundle", "other", "-o", "y.png"]) == 0
    assert (
        "x.run.json was painted from another bundle than other is now; pictures will differ" in capsys.readouterr().err
    )
    record["bundle"]["folder"] = "/nowhere"
    Path("x.run.json").write_text(json.dumps(record))
    assert main(["--config", "x.run.json"]) == 1
    assert "x.run.json was painted from bundle /nowhere, which is not there; name it" in capsys.readouterr().err


def test_a_pictures_own_parameters_are_a_config(run: Any) -> None:
    assert run("a red circle", "--seed", "5", "-o", "x.png", "--negative-prompt", "a") == 0
    with Image.open("x.png") as image:
        Path("c.json").write_text(image.info["parameters"])
        pixels = image.tobytes()
    assert run("--config", "c.json", "-o", "y.png") == 0
    assert Image.open("y.png").tobytes() == pixels


def test_a_config_may_begin_with_a_byte_order_mark(run: Any) -> None:
    Path("c.json").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "num_inference_steps": 3}')
    assert run("--config", "c.json") == 0


def test_a_repeated_run_wants_the_pictures_that_the_first_started_from(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, level in (("in.png", 100), ("other.png", 30)):
        Image.new("RGB", (64, 64), (level, level, level)).save(name)
    assert run("a", "--init-image", "in.png", "-o", "x.png") == 0
    assert run("--config", "x.run.json") == 1
    assert "x.run.json started from in.png: give the same with --init-image" in capsys.readouterr().err
    assert run("--config", "x.run.json", "--init-image", "other.png") == 0
    assert "other.png is none of the pictures that x.run.json started from" in capsys.readouterr().err
    assert run("--config", "x.run.json", "--init-image", "in.png") == 0
    assert "none of the pictures" not in capsys.readouterr().err


def test_two_single_words_are_painted_with_a_warning(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("red", "circle") == 0
    assert "warning: 2 pictures of one word each; put quotes around both words to paint one" in capsys.readouterr().err


def test_latents_are_written_as_safetensors_too(run: Any) -> None:
    assert run("a", "--num-images", "2", "--save-latents", "z.npy") == 0
    assert run("a", "--num-images", "2", "--save-latents", "z.safetensors") == 0
    ((name, latents),) = load_file("z.safetensors").items()
    assert name == "latents"
    assert np.array_equal(latents, np.load("z.npy"))


def test_what_a_plan_has_to_say_is_said_by_the_run(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rounding = shutil.copytree(toy, tmp_path / "rounding")
    text = (rounding / "manifest.json").read_bytes().split(b',\n  "seal"')[0] + b"\n}\n"
    (rounding / "manifest.json").write_bytes(text.replace(b'"oversize": "refuse"', b'"oversize": "floor"'))
    assert b'"floor"' in (rounding / "manifest.json").read_bytes()
    assert main(["a", "--bundle", "rounding", "--scaling-space", "latent", "--size", "70"]) == 0
    assert "The picture will be 64 x 64 px, not 70 x 70: sides are rounded down" in capsys.readouterr().err


def test_a_damaged_bundle_is_noticed_as_often_as_is_asked_for(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    folder = shutil.copytree(toy, tmp_path / "b")
    flags = ["a", "--bundle", "b", "--scaling-space", "latent", "--quiet", "--verify"]
    data = (folder / "decode.onnx").read_bytes()
    (folder / "decode.onnx").write_bytes(data.replace(b"nearest", b"nearesT"))
    assert main([*flags, "once"]) == main([*flags, "always"]) == 1
    assert capsys.readouterr().err.count("decode.onnx has changed since the export") == 2
    assert main([*flags, "never"]) == 1  # ONNX Runtime notices this one
    (folder / "decode.onnx").write_bytes(data)
    assert main([*flags, "once"]) == 0
