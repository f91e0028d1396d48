"""Between the stages."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import nn
from torch.nn import functional as F

from lssgen.manifest import Mix
from lssgen.models.nets.cosines import cosine_rows, enlarged, low_part
from lssgen.models.nets.transition import (
    GRAPHS,
    ConvertedTransition,
    CosineTransition,
    ResnetTransition,
    SelfLiftTransition,
    Ways,
    bicubic,
    largest_share,
    nearest,
    transition_recipes,
)
from lssgen.models.nets.vae import LatentSpace
from lssgen.plan.transitions import TRANSITIONS


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


def test_every_transition_has_a_graph_and_its_mix_is_fed_as_its_record_says() -> None:
    assert set(GRAPHS) == set(TRANSITIONS)
    recipes = transition_recipes(Parts(), tuple(TRANSITIONS), 4, Ways())
    assert [recipe.name for recipe in recipes] == [f"transition_{space}" for space in TRANSITIONS]
    for recipe, record in zip(recipes, TRANSITIONS.values(), strict=True):
        assert recipe.feeds["mix"] == Mix(values=record.mixes)
        assert {port.name: port for port in recipe.inputs}["mix"].shape == ("batch", len(record.mixes))


class Parts:
    """A checkpoint of a tiny autoencoder and an upsampler, of which nothing is built."""

    index: ClassVar[dict[str, object]] = {}

    def has(self, name: str) -> bool:
        return bool(name)

    def config(self, name: str) -> dict[str, object]:
        return {"_class_name": "AutoencoderTiny", "name": name}

    def module(self, name: str) -> nn.Module:
        raise AssertionError(name)


def test_a_kept_state_has_its_cosine_transform_within_the_larger_one_and_noise_beyond() -> None:
    """Against SciPy's transform, in float64."""
    rng = np.random.default_rng(0)
    state, noise = rng.standard_normal((2, 3, 6, 10)), rng.standard_normal((2, 3, 12, 20))
    gain, amount, low_amount = 1.2, 0.76, 0.3
    wanted = amount * dctn(noise, axes=(2, 3), norm="ortho")
    wanted[..., :6, :10] *= low_amount / amount
    wanted[..., :6, :10] += gain * dctn(state, axes=(2, 3), norm="ortho")
    mix = torch.tensor([[gain, amount, low_amount]] * 2)
    made = CosineTransition()(*(torch.from_numpy(x).float() for x in (state, noise)), mix)
    # float32, sums of 20 products along either axis.
    np.testing.assert_allclose(made, idctn(wanted, axes=(2, 3), norm="ortho"), atol=5e-6)


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_the_rows_of_the_transform_are_orthonormal_at_every_size(size: int) -> None:
    rows = cosine_rows(size, size, torch.zeros(1))
    # 256 products of float32, of which each has an error of 1e-7.
    torch.testing.assert_close(rows @ rows.T, torch.eye(size), rtol=0, atol=5e-6)


def test_enlarging_keeps_a_constant_with_half_its_height_and_undoes_itself() -> None:
    """Energy is kept, and there are four times as many cells."""
    flat = torch.full((1, 1, 4, 6), 3.0)
    torch.testing.assert_close(enlarged(flat), torch.full((1, 1, 8, 12), 1.5))
    latent = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(low_part(enlarged(latent), 4, 6), latent, rtol=1e-5, atol=1e-5)


def test_nearest_copies_every_cell_four_times() -> None:
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert nearest(image)[0, 0].tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_the_largest_share_is_found_without_sorting(share: float) -> None:
    values = torch.rand(3, 1, 20, 30, generator=torch.Generator().manual_seed(0)) ** 3
    found = values > largest_share(values, share)
    for picture, kept in zip(values, found, strict=True):
        wanted = np.sort(picture.numpy().ravel())[::-1][: int(share * 600)]
        assert sorted(picture[kept].tolist(), reverse=True) == pytest.approx(wanted.tolist())


def test_values_that_are_all_equal_have_no_largest_share() -> None:
    assert not (torch.ones(1, 1, 4, 4) > largest_share(torch.ones(1, 1, 4, 4), 0.4)).any()


class Halves(nn.Module):
    """An autoencoder of cells of two pixels whose pictures lack a fixed part of the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, object] = {}
        self.gain = nn.Parameter(torch.tensor(0.8))

    def decode(self, latent: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        return (self.gain * F.interpolate(latent, scale_factor=2.0),)

    def encode(self, picture: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        assert not return_dict
        return (F.avg_pool2d(picture, 2),)


def test_selflift_mixes_where_nearest_neighbours_and_the_way_through_pixels_differ_most() -> None:
    """By NumPy: the 40 % of cells that differ most get weights that rise from 0.7 to 1 with the difference."""
    rng = torch.Generator().manual_seed(0)
    latent, noise = torch.randn(2, 3, 6, 8, generator=rng), torch.randn(2, 3, 12, 16, generator=rng)
    made = SelfLiftTransition(Halves())(latent, noise, torch.tensor([[0.4, 0.6]] * 2)).detach().numpy()
    picture = 0.8 * np.repeat(np.repeat(latent.numpy(), 2, 2), 2, 3)
    large = F.interpolate(torch.from_numpy(picture), scale_factor=2.0, mode="bicubic").numpy()
    seen = large.reshape(2, 3, 12, 2, 16, 2).mean((3, 5))
    near = np.repeat(np.repeat(latent.numpy(), 2, 2), 2, 3)
    difference = np.abs(near - seen).mean(1, keepdims=True)
    for row in range(2):
        order = np.sort(difference[row].ravel())
        least, most = order[192 - 76 - 1], order[-1]  # 76 cells are the most that 40 % of 192 hold
        rise = 0.7 + 0.3 * (difference[row] - least) / (most - least)
        weight = np.where(difference[row] > least, rise, 0)
        wanted = 0.4 * ((1 - weight) * near[row] + weight * seen[row]) + 0.6 * noise[row].numpy()
        # The threshold is found to the last bit of float32, and weights change by a millionth with it.
        np.testing.assert_allclose(made[row], wanted, atol=1e-4)


def test_selflift_is_nearest_neighbours_where_both_agree() -> None:
    latent = torch.full((1, 3, 4, 4), 0.0)
    noise = torch.zeros(1, 3, 8, 8)
    made = SelfLiftTransition(Halves())(latent, noise, torch.tensor([[1.0, 0.0]]))
    assert made.isfinite().all()
    torch.testing.assert_close(made, nearest(latent))
