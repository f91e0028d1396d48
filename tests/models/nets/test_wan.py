"""The Wan autoencoders on one moment: what diffusers' films begin with, without an axis of time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import liven
from factory_qwen import tiny_wan, tiny_wan21
from torch import Tensor, nn

from lssgen.errors import ModelError
from lssgen.export.weights import open_weights
from lssgen.export.writer import weightless
from lssgen.models.nets.vae import Decode, Vae
from lssgen.models.nets.wan import OneMoment

CLOSE = 1e-5
"""Relative L2: float32, where a convolution over time adds zeros and one over a plane does not."""

KINDS: dict[str, Callable[[], Any]] = {
    "qwen": tiny_wan,
    "qwen, all halvings of time": lambda: tiny_wan(temperal_downsample=[True, True]),
    "qwen21": tiny_wan21,
    "qwen21, deeper": lambda: tiny_wan21(dim_mult=[1, 2, 4, 4], temperal_downsample=[True, False, True]),
    "qwen21 without shortcuts": lambda: tiny_wan21(is_residual=False, decoder_base_dim=8),
}


@pytest.fixture(params=KINDS)
def vae(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = KINDS[request.param]().eval().requires_grad_(False)
    liven(made)
    return made


def off(came: Tensor, wanted: Tensor) -> float:
    return float((came - wanted).norm() / wanted.norm())


@torch.no_grad()
def test_decoding_equals_the_first_frame_of_diffusers(vae: Any) -> None:
    latent = torch.randn(2, 4, 6, 10)
    wanted = vae.decode(latent.unsqueeze(2)).sample[:, :3, 0]
    (came,) = OneMoment(vae).decode(latent, return_dict=False)
    assert off(came, wanted) < CLOSE


@torch.no_grad()
def test_encoding_equals_the_first_frame_of_diffusers(vae: Any) -> None:
    picture = torch.rand(2, 3, 24, 40) * 2 - 1
    colours = vae.encoder.conv_in.in_channels
    opaque = torch.cat((picture, torch.ones(2, colours - 3, 24, 40)), 1)
    wanted = vae.encode(opaque.unsqueeze(2)).latent_dist
    (came,) = OneMoment(vae).encode(picture, return_dict=False)
    assert off(came.parameters, wanted.parameters[:, :, 0]) < CLOSE


@torch.no_grad()
def test_latents_are_normalised_channel_by_channel(vae: Any) -> None:
    mean, std = (torch.tensor(vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    latent = torch.randn(1, 4, 6, 10)
    wanted = vae.decode((latent * std + mean).unsqueeze(2)).sample[:, :3, 0]
    assert off(Vae(vae).paint(latent), wanted) < CLOSE


def test_only_the_last_slice_of_a_kernel_is_read_from_a_checkpoint(vae: Any, tmp_path: Path) -> None:
    """Name by name and shape by shape; what reaches over time alone is there and not asked for."""
    vae.save_pretrained(tmp_path / "vae")
    with weightless(torch.float32):
        bare = Decode(type(vae).from_config(vae.config))
    weights = open_weights({"vae": tmp_path / "vae"}).fit(bare)
    for name, tensor in bare.named_parameters():
        whole = dict(vae.named_parameters())[name.removeprefix("vae.")]
        last = whole[:, :, -1] if whole.ndim == 5 and tensor.ndim == 4 else whole
        assert torch.equal(weights.tensor(name), last.reshape(tensor.shape))
        slabs = torch.cat(list(weights.slabs(name, torch.float32, 1000)))
        assert torch.equal(slabs, last.flatten())


def test_no_convolution_reaches_over_time(vae: Any) -> None:
    called = [layer for name, layer in OneMoment(vae).named_modules() if "time_conv" not in name]
    assert not any(isinstance(layer, nn.Conv3d) for layer in called)


@pytest.mark.parametrize(("field", "value"), [("patch_size", 2), ("attn_scales", [0.5])])
def test_an_autoencoder_with_what_no_published_one_has_is_refused(field: str, value: object) -> None:
    vae = tiny_wan21()
    vae.register_to_config(**{field: value})
    with pytest.raises(ModelError, match=f"has {field} .*, which no published VAE has; choose another VAE"):
        OneMoment(vae)
