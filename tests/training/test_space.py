"""A VAE without a bundle, for measuring noise levels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from factory import tiny_vae

from lssgen.errors import ModelError, UpsamplerError
from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config
from lssgen.training.space import VaeSpace


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    module: Any = tiny_vae(4)
    module.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_all_ways_double_a_latent_and_none_puts_noise_in(vae: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    LatentUpSampler(published_config(4)).save_pretrained(tmp_path / "upsampler")
    space = VaeSpace(str(vae), tmp_path / "upsampler")
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    latent = space.encode(picture)
    module: Any = AutoencoderKL.from_pretrained(vae)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        mean = module.encode(pixels).latent_dist.mean - (module.config.shift_factor or 0.0)
    np.testing.assert_allclose(latent, module.config.scaling_factor * mean[0].numpy(), atol=1e-5)
    assert list(space.operators) == ["resnet", "latent", "pixel", "dct", "selflift"]
    for enlarge in space.operators.values():
        made = enlarge(latent)
        assert made.shape == (4, 2 * latent.shape[1], 2 * latent.shape[2])
        assert (made == enlarge(latent)).all()
    flat = np.full((4, 4, 6), 0.5, np.float32)
    for name in ("latent", "dct"):  # a clean latent keeps its height
        np.testing.assert_allclose(space.operators[name](flat), 0.5, atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert space.identity != VaeSpace(str(vae), None).identity


def test_a_vae_whose_space_is_unknown_is_refused(vae: Path) -> None:
    """diffusers would take it for Stable Diffusion 1's, and every noise level would mean another one."""
    config = json.loads((vae / "config.json").read_text())
    del config["scaling_factor"]
    (vae / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="names no scaling_factor, and no latents_mean and latents_std: the space"):
        VaeSpace(str(vae), None)


def test_an_upsampler_for_other_channels_is_refused(vae: Path, tmp_path: Path) -> None:
    LatentUpSampler(published_config(16)).save_pretrained(tmp_path / "upsampler")
    with pytest.raises(UpsamplerError, match="turns 16 latent channels into 16"):
        VaeSpace(str(vae), tmp_path / "upsampler")
