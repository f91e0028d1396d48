"""The Wan autoencoder on one moment of a film, which is what a picture is to it.

Its convolutions reach over time, but only backwards: of the first moment, all that lies before is zeros, so each is
exactly a convolution over height and width with the last slice of its kernel, and what halves or doubles time does
nothing. So these graphs have no axis of time, and a third of the weights.

Source: diffusers' AutoencoderKLQwenImage and AutoencoderKLQwenImage21, as they code a film's first frame.
"""

from collections.abc import Mapping
from typing import Any

from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.errors import ModelError

CLASSES = ("AutoencoderKLQwenImage", "AutoencoderKLQwenImage21")
"""Autoencoders of diffusers that are opened so."""

UNKNOWN = ("patch_size", "attn_scales")
"""Fields of a configuration that are empty in all published ones: pictures in patches, and attention on the way down,
with which diffusers itself cannot encode."""

OPAQUE = 1.0
"""Transparency of a picture that has none, in [-1, 1]."""


class OneMoment(nn.Module):
    """A Wan autoencoder that takes and gives pictures. Names of parameters are those of diffusers.

    That of Qwen-Image 2.1 knows transparency, which the pictures here do not have: what it reads is opaque, and of
    what it paints the three colours are kept.

    Attributes:
        config: The autoencoder's configuration.

    Raises:
        ModelError: The autoencoder has something of `UNKNOWN`.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        for field in UNKNOWN:
            if value := vae.config.get(field):
                raise ModelError(
                    f"the VAE's config.json has {field} {value}, which no published VAE has; choose another VAE"
                )
        self.config: Mapping[str, Any] = vae.config
        self.encoder: Any = flattened(vae.encoder)
        self.decoder: Any = flattened(vae.decoder)
        self.quant_conv: Any = flat_convolution(vae.quant_conv)
        self.post_quant_conv: Any = flat_convolution(vae.post_quant_conv)

    def decode(self, latent: Tensor, *, return_dict: bool) -> tuple[Tensor]:
        """(batch, C, h, w) -> (batch, 3, height, width), -1 to 1; called as diffusers' autoencoders are."""
        del return_dict
        net = self.decoder
        x = middle(net.mid_block, net.conv_in(self.post_quant_conv(latent)))
        for block in net.up_blocks:
            x = up(block, x)
        return (net.conv_out(F.silu(net.norm_out(x)))[:, :3].clamp(-1, 1),)

    def encode(self, picture: Tensor, *, return_dict: bool) -> tuple[DiagonalGaussianDistribution]:
        """(batch, 3, height, width), -1 to 1 -> what is known of its latent, (batch, C, h, w)."""
        del return_dict
        net = self.encoder
        further = net.conv_in.in_channels - picture.shape[1]
        x = net.conv_in(F.pad(picture, (0, 0, 0, 0, 0, further), value=OPAQUE) if further else picture)
        for layer in net.down_blocks:
            x = down(layer, x)
        x = middle(net.mid_block, x)
        return (DiagonalGaussianDistribution(self.quant_conv(net.conv_out(F.silu(net.norm_out(x))))),)


def down(layer: Any, x: Tensor) -> Tensor:
    """One layer of the way down: a block of some, a residual layer, or half the size."""
    if hasattr(layer, "avg_shortcut"):
        around = averaged(layer.avg_shortcut, x)
        for inside in layer.resnets:
            x = residual(inside, x)
        return around + (x if layer.downsampler is None else layer.downsampler.resample(x))
    return residual(layer, x) if hasattr(layer, "conv1") else layer.resample(x)


def up(block: Any, x: Tensor) -> Tensor:
    """One block of the way up, with twice the size at its end in all but the last."""
    shortcut = getattr(block, "avg_shortcut", None)
    around = None if shortcut is None else repeated(shortcut, x)
    for layer in block.resnets:
        x = residual(layer, x)
    larger = block.upsamplers[0] if getattr(block, "upsamplers", None) else getattr(block, "upsampler", None)
    if larger is not None:
        # The copying alone: type casts around it would be nodes that change nothing.
        x = larger.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest"))
    return x if around is None else x + around


def averaged(shortcut: Any, x: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, C', h / 2, w / 2) by means over what becomes one cell, and over channels; or h, w.

    Where time is halved too, the moment before the first counts as zeros.
    """
    cells = F.pixel_unshuffle(x, shortcut.factor_s) if shortcut.factor_s > 1 else x
    if shortcut.factor_t > 1:
        moments = cells.unflatten(1, (shortcut.in_channels, 1, -1))
        cells = F.pad(moments, (0, 0, 0, 0, 0, 0, shortcut.factor_t - 1, 0)).flatten(1, 3)
    return cells.unflatten(1, (shortcut.out_channels, shortcut.group_size)).mean(2)


def repeated(shortcut: Any, x: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, C', 2 h, 2 w), channels as the copies' cells; of a doubled time its end."""
    copies = x.unsqueeze(2).expand(-1, -1, shortcut.repeats, -1, -1).flatten(1, 2)
    moments = copies.unflatten(1, (shortcut.out_channels, shortcut.factor_t, -1))
    return F.pixel_shuffle(moments[:, :, -1].flatten(1, 2), shortcut.factor_s)


def middle(block: Any, x: Tensor) -> Tensor:
    first, *rest = block.resnets
    x = residual(first, x)
    for attend, layer in zip(block.attentions, rest, strict=True):
        x = residual(layer, attention(attend, x))
    return x


def residual(layer: Any, x: Tensor) -> Tensor:
    """(batch, C, h, w) -> (batch, C', h, w)."""
    inside = layer.conv1(F.silu(layer.norm1(x)))
    return layer.conv2(F.silu(layer.norm2(inside))) + layer.conv_shortcut(x)


def attention(layer: Any, x: Tensor) -> Tensor:
    """(batch, C, h, w) -> the same; every cell attends to all, in one head."""
    flat = layer.to_qkv(layer.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(*flat.chunk(3, -1)).squeeze(1)
    return layer.proj(mixed.transpose(1, 2).unflatten(2, x.shape[2:])) + x


class CellNorm(nn.Module):
    """Every cell's channels divided by their root mean square, in float32, as `F.normalize` does it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.scale = float(layer.scale)
        self.gamma: nn.Parameter = layer.gamma

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1).to(x.dtype) * (self.scale * self.gamma.reshape(-1, 1, 1))


def flattened(module: nn.Module) -> nn.Module:
    """The module with every layer that is called as one without time; checkpoints have the others too."""
    for name, child in module.named_children():
        if name == "time_conv":
            continue
        if hasattr(child, "_padding"):  # diffusers' own mark of a causal convolution
            setattr(module, name, flat_convolution(child))
        elif hasattr(child, "gamma"):
            setattr(module, name, CellNorm(child))
        else:
            flattened(child)
    return module


def flat_convolution(layer: Any) -> nn.Conv2d:
    """The convolution that a causal one is on the first moment; its weights are the last slice of the other's."""
    across, _, down, *_ = layer._padding  # left, right, top, bottom, and before and after in time
    size, stride = layer.kernel_size[-2:], layer.stride[-2:]
    flat = nn.Conv2d(layer.in_channels, layer.out_channels, size, stride, padding=(down, across), device="meta")
    weight = layer.weight if layer.weight.ndim == 4 else layer.weight[:, :, -1]
    flat.weight = nn.Parameter(weight, requires_grad=False)
    flat.bias = layer.bias
    return flat
