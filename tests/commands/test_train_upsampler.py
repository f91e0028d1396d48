import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from lssgen.commands.train_upsampler import build_parser, job_from_args, main
from lssgen.training.config import PairRecipe, TrainConfig, TrainJob

SHORT = ("--crop", "32", "--steps", "2", "--batch", "2", "--image-loss", "l1", "--device", "cpu")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """--vae, --images and --output for a tiny job."""
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    return [f"--{name}={tmp_path / name}" for name in ("vae", "images", "output")]


def test_the_command_trains_and_says_where_the_result_is(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders, *SHORT, "--install-anyway"]) == 0
    out, err = capsys.readouterr()
    assert "| upsampler |" in out
    folder = Path(out.splitlines()[-1].removeprefix("upsampler, report and contact sheet: "))
    assert (folder / "diffusion_pytorch_model.safetensors").exists()
    assert "3 pictures in" in err


def test_a_mistake_is_one_line_and_a_status(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folders, "--crop", "24"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lssgen-train-upsampler: TrainingError: crops of 24x24 px do not halve into whole latent")


def test_an_upsampler_that_is_not_worth_having_is_not_installed_and_that_is_one_line_with_the_numbers(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*folders, *SHORT]) == 1
    out, err = capsys.readouterr()
    assert "| upsampler |" in out
    last = err.splitlines()[-1]
    assert last.startswith(
        "lssgen-train-upsampler: TrainingError: the upsampler is not installed: on 1 validation pict"
    )
    assert last.endswith("to install it all the same, run the same command with --install-anyway")


def test_without_the_export_extra_it_says_what_to_install(
    folders: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("lssgen.training.")]:
        if not name.endswith((".config", ".limits")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(folders) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('needs torch; install it with pip install "lssgen[export]"')


@pytest.mark.parametrize(
    "flags",
    [
        "--learning-rate nan", "--image-weight nan", "--latent-weight inf", "--weight-decay -1", "--clip nan",
        "--ema 1.5", "--crop 0", "--batch -1", "--batch 1e9", "--accumulate 0", "--workers -1", "--threads -5",
        "--save-every 0", "--steps -1", "--cached-pairs -1", "--seed -1", "--seed 99999999999999999999999",
        "--batch 100000000000",
    ],
)  # fmt: skip
def test_a_number_that_makes_no_sense_is_one_line(
    flags: str, folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):  # of what the parser refuses itself
        assert main([*folders, *flags.split()]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lssgen-train-upsampler: ")


def test_without_flags_everything_is_the_records_default() -> None:
    args = build_parser().parse_args(["--vae", "x", "--images", "y"])
    assert job_from_args(args) == TrainJob(vae="x", images=Path("y"))


def test_flags_reach_the_records() -> None:
    flags = "--vae x --images y --crop 320x192 --target nearest --no-sample-low --ema 0.5 --bf16 --no-install"
    job = job_from_args(build_parser().parse_args(flags.split()))
    pairs = PairRecipe(width=320, height=192, target="nearest")
    config = TrainConfig(pairs=pairs, sample_low=False, ema=0.5, bf16=True)
    assert job == TrainJob(vae="x", images=Path("y"), config=config, install=False)


def test_a_shape_and_an_upsampler_to_start_from_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--vae", "x", "--images", "y", "--shape", "c.json", "--start-from", "u"])
    assert "--shape and --start-from exclude each other" in capsys.readouterr().err
