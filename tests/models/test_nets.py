"""Parts of the families' graphs, against the ones in diffusers and against each other."""

from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, ZImageTransformer2DModel
from diffusers.models.transformers.transformer_cogview4 import CogView4RotaryPosEmbed
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from torch import nn
from torch.nn import functional as F

from lssgen.errors import ModelError
from lssgen.models.nets.cogview4 import CogViewStep
from lssgen.models.nets.flux import FluxStep
from lssgen.models.nets.packing import pack, unpack
from lssgen.models.nets.unet import Doubled, checked_unet, guidance_features
from lssgen.models.nets.zimage import ZImageStep


@dataclass
class Configs:
    """Components without weights."""

    configs: dict[str, dict[str, Any]]
    index: dict[str, Any] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return name in self.configs

    def config(self, name: str) -> dict[str, Any]:
        return self.configs[name]

    def module(self, name: str) -> nn.Module:
        raise NotImplementedError(name)


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        ({"in_channels": 7}, "takes 7 channels; export knows 4 and, for inpainting, 9"),
        ({"in_channels": 4, "class_embed_type": "timestep"}, "class_embed_type of the unet is 'timestep'"),
        ({"in_channels": 4, "addition_embed_type": "text_time"}, "addition_embed_type of the unet is 'text_time'"),
    ],
)
def test_a_unet_for_another_task_is_refused(unet: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        checked_unet(Configs({"unet": unet, "vae": {"latent_channels": 4}}), None)


@pytest.mark.parametrize("size", [(6, 10), (5, 10), (6, 9), (5, 9), (1, 1)])
def test_doubling_and_cutting_equals_nearest_interpolation(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert torch.equal(Doubled(nn.Identity())(x, size), F.interpolate(x, size=size, mode="nearest"))


def test_unpacking_undoes_packing() -> None:
    x = torch.randn(2, 3, 4, 6)
    assert pack(x, 2).shape == (2, 6, 12)
    assert torch.equal(unpack(pack(x, 2), 4, 6, 2), x)


def test_features_of_the_guidance_scale_are_those_of_diffusers() -> None:
    expected = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, torch.tensor([0.0, 6.5]), 9)
    assert torch.allclose(guidance_features(torch.tensor([1.0, 7.5]), 9), expected, atol=1e-3)  # angles up to 6500


def test_rotary_angles_of_flux_are_those_of_diffusers() -> None:
    rope = FluxPosEmbed(theta=10000, axes_dim=[4, 6, 6])
    net = nn.Module()
    net.pos_embed, net.config = rope, SimpleNamespace(axes_dims_rope=(4, 6, 6))  # pyright: ignore
    net.transformer_blocks, net.single_transformer_blocks = nn.ModuleList(), nn.ModuleList()
    text = torch.zeros(5, 3)
    image = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(7.0))
    for came, expected in zip(FluxStep(net).rotation(5, 3, 7), rope(torch.cat((text, image))), strict=True):
        assert torch.equal(came, expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (49, 64), (127, 255), (256, 300)])
def test_rotary_angles_of_cogview4_are_those_of_diffusers(rows: int, columns: int) -> None:
    """Whole positions from a floating-point quotient: a wrong rounding would be off by a whole position."""
    rope = CogView4RotaryPosEmbed(16, 2, (256, 256))
    net = nn.Module()
    net.rope, net.transformer_blocks, net.norm_out = rope, nn.ModuleList(), nn.Identity()
    expected = rope(torch.empty(1, 1, 2 * rows, 2 * columns))
    for came, wanted in zip(CogViewStep(net).rotation(5, rows, columns), expected, strict=True):
        assert torch.equal(came[5:], wanted)
    assert torch.equal(CogViewStep(net).rotation(5, rows, columns)[0][:5], torch.ones(5, 16))


@torch.no_grad()
def test_zimage_has_room_in_half_precision_for_what_a_norm_makes_small_again() -> None:
    torch.manual_seed(0)
    net = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24,
        axes_dims=(4, 6, 6), axes_lens=(64, 16, 16),
    ).eval()  # fmt: skip
    for block in net.layers:
        block.feed_forward.w2.weight *= 2e5  # type: ignore[operator]
        block.attention.to_out[0].weight *= 2e5  # type: ignore[operator]
    given = (torch.randn(1, 4, 8, 16), torch.tensor([600.0]), torch.randn(1, 32, 24), torch.ones(1, 32))
    exact = ZImageStep(deepcopy(net)).velocity(*given)
    sums: list[float] = []
    for block in net.layers:
        block.feed_forward.register_forward_hook(lambda _module, _given, out: sums.append(float(out.abs().max())))
    half = ZImageStep(net.half()).velocity(*given).float()
    assert 65504 < max(sums) * 64 < float("inf")
    assert torch.isfinite(half).all()
    assert (half - exact).norm() < 0.02 * exact.norm()
