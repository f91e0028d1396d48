from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from lssgen.commands.train_upsampler import build_parser, main
from lssgen.training.config import PairRecipe, TrainConfig


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
    assert main([*folders, "--crop", "32", "--steps", "2", "--batch", "2", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "| upsampler |" in out
    folder = Path(out.splitlines()[-1].removeprefix("upsampler, report and contact sheet: "))
    assert (folder / "diffusion_pytorch_model.safetensors").exists()
    assert "3 pictures in" in err


def test_a_mistake_is_one_line_and_a_status(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*folders, "--crop", "24"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("lssgen-train-upsampler: TrainingError: crops of 24x24 px do not halve into whole latent")


def test_defaults_are_those_of_the_records() -> None:
    args = build_parser().parse_args(["--vae", "x", "--images", "y"])
    assert args.crop == (PairRecipe().width, PairRecipe().height)
    assert (args.steps, args.learning_rate, args.image_loss) == (
        TrainConfig().steps, TrainConfig().learning_rate, TrainConfig().image_loss,
    )  # fmt: skip


@pytest.mark.parametrize(("text", "size"), [("256", (256, 256)), ("320x192", (320, 192))])
def test_a_crop_is_a_side_or_width_and_height(text: str, size: tuple[int, int]) -> None:
    assert build_parser().parse_args(["--vae", "x", "--images", "y", "--crop", text]).crop == size


def test_a_crop_that_is_no_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--vae", "x", "--images", "y", "--crop", "big"])
    assert "'big' is neither a side in pixels nor WIDTHxHEIGHT" in capsys.readouterr().err
