"""Latents of FLUX.2: normalised by what is in the VAE's weights, whichever autoencoder paints."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from factory import liven
from factory_flux2 import statistics, tiny_klein
from torch.nn import functional as F

from lssgen.export.checkpoint import Checkpoint, Parts
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.models.nets.vae import LatentSpace, joint, latents_said
from lssgen.training.autoencoder import load_autoencoder


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_klein(tmp_path_factory.mktemp("checkpoints") / "klein")


def test_the_configuration_says_what_the_weights_do(klein: Path) -> None:
    config = Checkpoint(klein).config("vae")
    mean, spread = statistics(klein)
    assert torch.equal(torch.tensor(config["latents_mean"]), mean)
    assert torch.equal(torch.tensor(config["latents_std"]), spread)
    assert joint(config)
    assert latents_said(config) == "the statistics of the VAE's batch norm"
    # What is built of it has them too, though no class of diffusers takes them.
    assert Parts(Checkpoint(klein), torch.float32).module("vae").config["latents_mean"] == config["latents_mean"]


def test_squares_of_cells_are_normalised_together(klein: Path) -> None:
    space, (mean, spread) = LatentSpace(Checkpoint(klein).config("vae")), statistics(klein)
    latent = torch.randn(2, 4, 6, 10)
    wanted = F.pixel_unshuffle(latent, 2) * spread.reshape(1, -1, 1, 1) + mean.reshape(1, -1, 1, 1)
    assert torch.equal(space.to_vae(latent), F.pixel_shuffle(wanted, 2))
    assert torch.allclose(space.from_vae(space.to_vae(latent)), latent, atol=1e-5)


def test_another_autoencoder_paints_latents_that_the_own_ones_statistics_normalise(klein: Path, tmp_path: Path) -> None:
    """Tiny autoencoders were distilled from what the VAE makes, and the network paints something else."""
    torch.manual_seed(1)
    tiny = AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
    )  # fmt: skip
    liven(tiny)
    tiny.save_pretrained(tmp_path / "tiny")
    order = ExportConfig(
        model=str(klein), output=tmp_path / "bundle", resolutions=((64, 64),), vae=str(tmp_path / "tiny")
    )
    outline = design(order)
    came, own = outline.model.checkpoint.config("vae"), Checkpoint(klein).config("vae")
    assert came["_class_name"] == "AutoencoderTiny"
    assert came["latents_std"] == own["latents_std"] == outline.model.latents["latents_std"]


def test_an_upsampler_is_trained_among_the_vaes_own_latents(klein: Path) -> None:
    vae = load_autoencoder(str(klein), torch.device("cpu"))
    assert (vae.channels, vae.cell_px, vae.normalisation) == (4, 4, {})
