"""Between the stages."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lssgen.models.nets.transition import ConvertedTransition, ResnetTransition, bicubic
from lssgen.models.nets.vae import LatentSpace


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (16, 12)])
def test_bicubic_is_that_of_torch_borders_included(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    wanted = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
    torch.testing.assert_close(bicubic(image), wanted, rtol=0, atol=2e-6)


def test_bicubic_keeps_a_constant() -> None:
    torch.testing.assert_close(bicubic(torch.full((1, 1, 4, 4), 3.0)), torch.full((1, 1, 8, 8), 3.0))


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.18215},
        {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        {"scaling_factor": 0.5, "latents_mean": [-1.6, 1.9], "latents_std": [8.5, 5.9]},
        {"scaling_factor": 0.13025, "latents_mean": None, "latents_std": None, "shift_factor": None},
    ],
)
def test_from_vae_undoes_to_vae(config: dict[str, object]) -> None:
    space, latent = LatentSpace(config), torch.randn(2, 2, 3, 3)
    torch.testing.assert_close(space.from_vae(space.to_vae(latent)), latent)


def test_to_vae_is_the_formula_of_the_published_decoders() -> None:
    latent = torch.randn(1, 2, 3, 3)
    shifted = LatentSpace({"scaling_factor": 1.5305, "shift_factor": 0.0609}).to_vae(latent)
    torch.testing.assert_close(shifted, latent / 1.5305 + 0.0609)
    spread = LatentSpace({"scaling_factor": 0.5, "latents_mean": [-1.0, 2.0], "latents_std": [3.0, 4.0]}).to_vae(latent)
    wanted = latent * torch.tensor([3.0, 4.0])[:, None, None] / 0.5 + torch.tensor([-1.0, 2.0])[:, None, None]
    torch.testing.assert_close(spread, wanted)


PLAYGROUND = {"scaling_factor": 0.5, "latents_mean": [-1.6574, 1.886], "latents_std": [8.4927, 5.9022]}
SDXL = {"scaling_factor": 0.13025}


def test_a_conversion_gives_the_upsampler_the_latents_it_knows() -> None:
    """V = P * std / 0.5 + mean is the VAE's latent, Z = 0.13025 V is SDXL's."""
    seen: list[torch.Tensor] = []

    class Spy(nn.Module):
        def forward(self, latent: torch.Tensor) -> torch.Tensor:
            seen.append(latent)
            return latent

    latent = torch.randn(1, 2, 3, 3)
    ConvertedTransition(Spy(), LatentSpace(PLAYGROUND), LatentSpace(SDXL))(latent, latent, torch.tensor([[1.0, 0.0]]))
    std, mean = (torch.tensor(PLAYGROUND[name]).reshape(1, 2, 1, 1) for name in ("latents_std", "latents_mean"))
    torch.testing.assert_close(seen[0], 0.13025 * (latent * std / 0.5 + mean))


@pytest.mark.parametrize("spaces", [(PLAYGROUND, SDXL), (SDXL, PLAYGROUND), ({"shift_factor": 0.1}, SDXL)])
def test_a_conversion_there_and_back_changes_nothing(spaces: tuple[dict[str, object], ...]) -> None:
    """Around a linear upsampler whose rows sum to one, which commutes with every affine map."""
    latent, noise, mix = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 8, 8), torch.tensor([[0.7, 0.3]] * 2)
    doubling = nn.Upsample(scale_factor=2.0, mode="bilinear")
    converted = ConvertedTransition(doubling, *map(LatentSpace, spaces))(latent, noise, mix)
    torch.testing.assert_close(converted, ResnetTransition(doubling)(latent, noise, mix), rtol=1e-5, atol=1e-5)
