"""Bundles with a ControlNet, or of checkpoints that inpaint, and what both sides of a comparison are asked."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from exported import NEGATIVE, PROMPT, Exported
from factory import tiny_sd3, tiny_upsampler
from PIL import Image
from torch import Tensor

from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.runtime.text import PromptWarning

WIDTH, HEIGHT = 96, 64
STEPS = 5

Make = Callable[[Path], Path]


def bundled(root: Path, make: Make, control: Make | None = None) -> Exported:
    """A checkpoint and its bundle below `root`, with a ControlNet where one is asked for."""
    folder, upsampler = make(root / "checkpoint"), tiny_upsampler(root / "upsampler")
    config = ExportConfig(
        model=str(folder),
        output=root / "bundle",
        resolutions=((32, 48), (64, 96)),
        upsampler=upsampler,
        transitions=("latent",),
        controlnet=None if control is None else str(control(root / "controlnet")),
        max_sequence_length=24 if getattr(make, "func", make) is tiny_sd3 else None,
        threads=1,
    )
    return Exported(folder=folder, upsampler=upsampler, bundle=export(config))


def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let diffusers encode pictures as lssgen does, by the mean of the posterior, which draws no random numbers."""

    def mean(self: DiagonalGaussianDistribution, generator: Any = None) -> Tensor:
        del generator
        return self.mode()

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", mean)


def ours(made: Exported, seeds: tuple[int, ...] = (3,), **asked: Any) -> Tensor:
    """(B, C, h, w) latents of a run in one stage, or as `asked` says."""
    usual: Any = {
        "height": HEIGHT, "width": WIDTH, "min_resolution": 32, "num_inference_steps": STEPS, "start_sigma": 1.0,
        "shorten": False,
        "negative_prompt": NEGATIVE, "scaling_space": "latent",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the negative prompt has no effect", PromptWarning)
        result = made.run(PROMPT, seed=seeds[0], num_images=len(seeds), batch=len(seeds), **usual | asked)
    return torch.from_numpy(np.stack([picture.latent for picture in result.pictures]))


@torch.no_grad()
def theirs(pipe: Any, seeds: tuple[int, ...] = (3,), **asked: Any) -> Tensor:
    """Latents of a pipeline of diffusers; FLUX's are packed."""
    pipe.set_progress_bar_config(disable=True)
    usual = {"num_inference_steps": STEPS, "output_type": "latent"}
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(PROMPT, num_images_per_prompt=len(seeds), generator=generators, **usual | asked).images


def unpacked(tokens: Tensor) -> Tensor:
    """FLUX's tokens as (B, C, h, w) latents, of cells of four pixels."""
    return torch.nn.functional.fold(tokens.transpose(1, 2), (HEIGHT // 4, WIDTH // 4), 2, stride=2)


def shrunk(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width) of a picture at a stage's size (height, width), 0 to 1."""
    small = np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(small / 255).permute(2, 0, 1)[None]
