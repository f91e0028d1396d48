"""A tiny VAE and a folder of small pictures, made once."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

from lssgen.training.config import PairRecipe, TrainConfig, TrainJob

SHAPE = """{"_class_name": "LatentUpSampler", "block_out_channels": [8, 8], "is_up_samples": [true, false],
"strides": [2, 1], "norm_num_groups": 4, "interpolate": "bilinear"}"""


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with an AutoencoderKL of 4 px a cell inside."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    AutoencoderKL(
        block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=1.5, shift_factor=0.1,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AutoencoderTiny of 8 px a cell."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taesd")
    AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of 40x36 px."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def job(vae: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJob:
    """Six steps of a tiny shape, installed below tmp_path/home."""
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    (tmp_path / "shape.json").write_text(SHAPE)
    config = TrainConfig(
        pairs=PairRecipe(height=32, width=32), steps=6, batch=2, cached_pairs=5, learning_rate=1e-2, image_loss="l1"
    )
    return TrainJob(
        vae=str(vae),
        images=images,
        output=tmp_path / "out",
        config=config,
        shape=str(tmp_path / "shape.json"),
        device="cpu",
        save_every=2,
        install_anyway=True,  # six steps make nothing that is better than bicubic
    )


class _EveryLine:
    """A follower that says at once what it hears."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say

    def at(self, share: float, where: str) -> None:
        self._say(f"{share:.0%}: {where}")


@pytest.fixture
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long says all that it would show on a terminal, as "50%: training: step 3 of 6"."""
    monkeypatch.setattr("lssgen.training.progress.watched", lambda say: nullcontext(_EveryLine(say)))
