"""The latent upsampler as published with LSSGen: a small ResNet that doubles a latent.

Source: LSSGen, arXiv 2507.16154; configuration fields, keys and layer order as published with it.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from lssgen.errors import UpsamplerError
from lssgen.models.nets.upsampler import Upsampler, is_positive

ACTIVATIONS = {"silu": F.silu, "swish": F.silu, "mish": F.mish, "gelu": F.gelu, "relu": F.relu}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")

BLOCK_EPS, OUT_EPS = 1e-6, 1e-5
"""The published networks divide by slightly different numbers in their blocks and before the last convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpSamplerConfig:
    """What config.json holds. Defaults are the published class's; all five published checkpoints override several.

    Attributes:
        in_channels, out_channels: Channels of the latent that comes in and goes out.
        block_out_channels: Channels after each block; the first is also what the first convolution makes.
        is_up_samples: True where a block with a stride above 1 enlarges, False where it shrinks.
        strides: Factor of each block: 1 or 2 where it enlarges, any from 1 where it does not.
        norm_num_groups: Groups of every group norm; divides every entry of `block_out_channels`.
        act_fn: One of `ACTIVATIONS`.
        interpolate: Way to resize the skip branch, one of `INTERPOLATIONS`.

    Raises:
        UpsamplerError: A field has the wrong type or value, or the three lists differ in length.
    """

    in_channels: int = 16
    out_channels: int = 16
    block_out_channels: tuple[int, ...] = (64,)
    is_up_samples: tuple[bool, ...] = (True,)
    strides: tuple[int, ...] = (2,)
    norm_num_groups: int = 32
    act_fn: str = "silu"
    interpolate: str = "nearest"

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "norm_num_groups"):
            if not is_positive(getattr(self, name)):
                raise UpsamplerError(f"upsampler config: {name} is {getattr(self, name)!r}, but must be an int above 0")
        for name, fits, kind in (
            ("block_out_channels", is_positive, "ints above 0"),
            ("is_up_samples", _is_bool, "true and false"),
            ("strides", is_positive, "ints above 0"),
        ):
            values: object = getattr(self, name)
            if not isinstance(values, tuple) or not values or not all(map(fits, cast(tuple[object, ...], values))):
                raise UpsamplerError(f"upsampler config: {name} is {values!r}, but must be a list of {kind}")
        lengths = [len(self.block_out_channels), len(self.is_up_samples), len(self.strides)]
        if len(set(lengths)) != 1:
            raise UpsamplerError(
                f"upsampler config: block_out_channels, is_up_samples and strides have {lengths} entries; "
                "each needs one per block"
            )
        for up, stride in zip(self.is_up_samples, self.strides, strict=True):
            if up and stride > 2:
                raise UpsamplerError(
                    f"upsampler config: an enlarging block has stride {stride}, but its 4x4 transposed convolution "
                    "only knows 2 (or 1, for a block that keeps the size)"
                )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise UpsamplerError(
                    f"upsampler config: {channels} channels do not divide into norm_num_groups {self.norm_num_groups}"
                )
        for name, known in (("act_fn", tuple(ACTIVATIONS)), ("interpolate", INTERPOLATIONS)):
            if getattr(self, name) not in known:
                raise UpsamplerError(f"upsampler config: {name} is {getattr(self, name)!r}, but must be one of {known}")

    @property
    def scale(self) -> Fraction:
        """Side of the latent that goes out, over the side of the one that comes in."""
        return prod(
            # Fractions, so that 2 * 1/3 * 3 is exactly 2.
            (Fraction(s) if up else Fraction(1, s) for up, s in zip(self.is_up_samples, self.strides, strict=True)),
            start=Fraction(1),
        )


def published_config(channels: int) -> UpSamplerConfig:
    """The shape of the published checkpoints: 128 and 64 wide for 16-channel latents, 64 and 32 for 4-channel ones.

    Args:
        channels: Of the latent; more than 4 get the wide network.
    """
    return UpSamplerConfig(
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(128, 64) if channels > 4 else (64, 32),
        is_up_samples=(True, False),
        strides=(2, 1),
        interpolate="bilinear",
    )


class LatentUpSampler(Upsampler[UpSamplerConfig]):
    """Doubles a latent: conv, residual blocks of which the first enlarges, norm, activation, conv.

    Works in the model's own latent space (after the VAE's scaling and shift), nothing is clamped and there is no
    path around the network. The group norms look at the whole latent, so a latent cannot be upsampled in tiles.

    Source: LSSGen, arXiv 2507.16154, as published.
    """

    Config = UpSamplerConfig

    def __init__(self, config: UpSamplerConfig) -> None:
        super().__init__(config)
        self.upsampler = _ResNet(config)  # published keys all start with "upsampler."

    def forward(self, latent: Tensor) -> Tensor:
        """Args: latent, (batch, in_channels, h, w). Returns: (batch, out_channels, scale * h, scale * w)."""
        return self.upsampler(latent)


class _ResNet(nn.Module):
    def __init__(self, config: UpSamplerConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.activation = ACTIVATIONS[config.act_fn]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        # The first list is one longer (strict=False): the last width goes into no further block.
        self.up_blocks = nn.ModuleList(
            _Block(config, c_in, c_out, up, stride)
            for c_in, c_out, up, stride in zip(
                (widths[0], *widths), widths, config.is_up_samples, config.strides, strict=False
            )
        )
        self.norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=OUT_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.activation(self.norm_out(x)))


class _Block(nn.Module):
    """Norm, resizing conv, activation, norm, conv, activation; beside it the input, projected and then resized."""

    def __init__(self, config: UpSamplerConfig, c_in: int, c_out: int, up: bool, stride: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.act_fn]
        self.mode = config.interpolate
        self.factor = 1.0 if stride == 1 else float(stride) if up else 1 / stride
        self.norm1 = nn.GroupNorm(config.norm_num_groups, c_in, eps=BLOCK_EPS)
        if stride == 1:
            self.conv1: nn.Module = nn.Conv2d(c_in, c_out, 3, padding=1)
        elif up:
            self.conv1 = nn.ConvTranspose2d(c_in, c_out, 4, stride=stride, padding=1)
        else:
            self.conv1 = nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, c_out, eps=BLOCK_EPS)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip_proj = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.conv1(self.norm1(x)))
        y = self.activation(self.conv2(self.norm2(y)))
        skip = self.skip_proj(x)
        if self.factor != 1:
            # torch refuses align_corners, even False, for nearest.
            corners = None if self.mode == "nearest" else False
            skip = F.interpolate(skip, scale_factor=self.factor, mode=self.mode, align_corners=corners)
        return y + skip


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)
