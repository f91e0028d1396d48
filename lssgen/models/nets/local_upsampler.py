"""The latent upsampler that this package ships and trains: it looks at no more than a neighbourhood of every cell.

Made of what works in few parameters in image restoration: residual blocks with a depthwise convolution, and a product
of two halves in place of an activation (NAFNet, arXiv 2204.04676), without its pooling over the whole picture.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lssgen.errors import UpsamplerError
from lssgen.models.nets.upsampler import Upsampler, is_positive

EPS = 1e-6
"""Added to the mean square that a cell's channels are divided by the root of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpSamplerConfig:
    """What config.json holds.

    Attributes:
        in_channels, out_channels: Channels of the latent that comes in and goes out, which are equal.
        width: Channels inside.
        low_blocks, high_blocks: Residual blocks before and after the doubling.
        kernel: Side of the depthwise convolutions, odd.

    Raises:
        UpsamplerError: A field has the wrong type or value.
    """

    in_channels: int = 16
    out_channels: int = 16
    width: int = 64
    low_blocks: int = 6
    high_blocks: int = 8
    kernel: int = 5

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "width", "low_blocks", "high_blocks", "kernel"):
            if not is_positive(getattr(self, name)):
                raise UpsamplerError(f"upsampler config: {name} is {getattr(self, name)!r}, but must be an int above 0")
        if self.in_channels != self.out_channels:
            raise UpsamplerError(
                f"upsampler config: in_channels is {self.in_channels} and out_channels {self.out_channels}, but the "
                "latent that goes out is the one that comes in, enlarged and corrected"
            )
        if not self.kernel % 2:
            raise UpsamplerError(f"upsampler config: kernel is {self.kernel}, but must be odd")

    @property
    def scale(self) -> Fraction:
        """2: side of the latent that goes out, over the side of the one that comes in."""
        return Fraction(2)

    @property
    def reach(self) -> int:
        """Cells of the low latent, in each direction, that an output cell depends on: what tiles must overlap by."""
        half = self.kernel // 2
        # 1 for each of the convolutions at both ends; one low cell is two high ones.
        return 1 + self.low_blocks * half + (self.high_blocks * half + 1 + 1) // 2


def local_config(channels: int) -> LocalUpSamplerConfig:
    """The shape that `lssgen-train-upsampler` trains.

    Args:
        channels: Of the latent.
    """
    return LocalUpSamplerConfig(in_channels=channels, out_channels=channels)


class LocalLatentUpSampler(Upsampler[LocalUpSamplerConfig]):
    """Doubles a latent: bilinear interpolation, plus what residual blocks at both sizes find to correct.

    Works in the model's own latent space, as the published network. No norm looks further than one cell, so that a
    latent can be enlarged in tiles that overlap by `Config.reach` cells, with the very values of the whole.
    """

    Config = LocalUpSamplerConfig

    def __init__(self, config: LocalUpSamplerConfig) -> None:
        super().__init__(config)
        width = config.width
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.low = nn.Sequential(*(_Block(width, config.kernel) for _ in range(config.low_blocks)))
        self.enlarge = nn.Conv2d(width, 4 * width, 1)
        self.high = nn.Sequential(*(_Block(width, config.kernel) for _ in range(config.high_blocks)))
        self.conv_out = _silent(nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        """Args: latent, (batch, in_channels, h, w). Returns: (batch, out_channels, 2 h, 2 w)."""
        x = F.pixel_shuffle(self.enlarge(self.low(self.conv_in(latent))), 2)
        plain = F.interpolate(latent, scale_factor=2, mode="bilinear", align_corners=False)
        return plain + self.conv_out(self.high(x))


class _Block(nn.Module):
    """Two residual steps: one that looks at the neighbours, and one that mixes a cell's channels."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _CellNorm(width), _CellNorm(width)
        self.spread = nn.Conv2d(width, 2 * width, 1)
        self.look = nn.Conv2d(2 * width, 2 * width, kernel, padding=kernel // 2, groups=2 * width)
        self.gather = _silent(nn.Conv2d(width, width, 1))
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.unmix = _silent(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gather(_product(self.look(self.spread(self.norm1(x)))))
        return x + self.unmix(_product(self.mix(self.norm2(x))))


class _CellNorm(nn.Module):
    """Every cell's channels over their root mean square, times a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + EPS) * self.weight[:, None, None]


def _product(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return one * other


def _silent(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution that begins with zeros: before the first step, the network is bilinear interpolation."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
