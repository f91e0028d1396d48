"""Between latents in model space and pictures: what every family shares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isclose, isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.models.nets.recipe import Components, Recipe
from lssgen.models.nets.wan import CLASSES, OneMoment
from lssgen.models.published import NORMALISATION
from lssgen.ports import Port

TINY = "AutoencoderTiny"
"""Class of the small autoencoders (TAESD) that read and paint latents of a large one, already in model space."""


class LatentSpace:
    """The affine map between the model's latents and the VAE's: vae = model * spread / scaling + mean.

    `shift_factor` is a mean that is equal for all channels; `latents_mean` and `latents_std` are per channel, or, with
    p * p times as many numbers, per channel and place in a square of p x p cells, in the order of `PixelUnshuffle`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.scaling = float(config.get("scaling_factor") or 1.0)
        means, spreads = config.get("latents_mean"), config.get("latents_std")
        # As diffusers' SDXL pipeline: one of them alone counts for nothing.
        both = means is not None and spreads is not None
        self.mean = cast(Sequence[float], means) if both else (float(config.get("shift_factor") or 0.0),)
        self.spread = cast(Sequence[float], spreads) if both else (1.0,)

    def to_vae(self, latent: Tensor) -> Tensor:
        """(batch, C, h, w) as the network paints it -> as the decoder takes it."""
        return self._in_squares(
            latent, lambda x: x * per_channel(self.spread, x) / self.scaling + per_channel(self.mean, x)
        )

    def from_vae(self, latent: Tensor) -> Tensor:
        """Undoes `to_vae`."""
        return self._in_squares(
            latent, lambda x: (x - per_channel(self.mean, x)) * self.scaling / per_channel(self.spread, x)
        )

    def joins(self, channels: int) -> bool:
        """Whether squares of cells are normalised together, in latents of that many channels."""
        return len(self.mean) > channels

    def _in_squares(self, latent: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        channels = latent.shape[1]
        if not self.joins(channels):
            return apply(latent)
        side = isqrt(len(self.mean) // channels)
        return F.pixel_shuffle(apply(F.pixel_unshuffle(latent, side)), side)


def normalisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a VAE's configuration that say how latents are normalised."""
    return {name: config[name] for name in NORMALISATION if config.get(name) is not None}


def same_latents(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two VAE configurations normalise alike, to the digits that configurations are written with."""
    spaces = [LatentSpace(config) for config in (one, other)]
    numbers = [(space.scaling, *space.mean, *space.spread) for space in spaces]
    return len(numbers[0]) == len(numbers[1]) and all(
        isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(*numbers, strict=True)
    )


def joint(config: Mapping[str, Any]) -> bool:
    """Whether a VAE configuration normalises squares of cells together, and not every cell alike."""
    channels = config.get("latent_channels")
    return channels is not None and LatentSpace(config).joins(int(channels))


def latents_said(config: Mapping[str, Any]) -> str:
    """The normalisation of a VAE configuration in words."""
    if joint(config):
        return "the statistics of the VAE's batch norm"
    return ", ".join(f"{name} {value}" for name, value in (normalisation(config) or {"scaling_factor": 1}).items())


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


class Vae(nn.Module):
    """An autoencoder in model space. The latents and pictures that go in and out are float32."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = OneMoment(vae) if type(vae).__name__ in CLASSES else vae
        self.space = LatentSpace(self.vae.config)

    def paint(self, latent: Tensor) -> Tensor:
        """Model space (batch, C, h, w) -> picture (batch, 3, height, width), about -1 to 1, not clamped."""
        dtype = next(self.vae.parameters()).dtype
        return self.vae.decode(self.space.to_vae(latent).to(dtype), return_dict=False)[0].float()

    def read(self, picture: Tensor, posterior_noise: Tensor | None) -> Tensor:
        """Picture (batch, 3, height, width) -> a sample of its posterior, in model space.

        Args:
            posterior_noise: What is drawn with; None for autoencoders that have no posterior, see `draws`.
        """
        dtype = next(self.vae.parameters()).dtype
        found = self.vae.encode(picture.to(dtype), return_dict=False)[0]
        if posterior_noise is None:
            return self.space.from_vae(found.float())
        # From the parameters, since its own `sample` would draw inside the graph.
        mean, log_variance = found.parameters.float().chunk(2, 1)
        # The bounds of diffusers' DiagonalGaussianDistribution.
        sample = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * posterior_noise
        return self.space.from_vae(sample)

    def read_mean(self, picture: Tensor) -> Tensor:
        """Picture (batch, 3, height, width) -> the mean of its posterior, in model space."""
        dtype = next(self.vae.parameters()).dtype
        found = self.vae.encode(picture.to(dtype), return_dict=False)[0]
        # A tiny autoencoder gives the latent itself.
        mean = found if isinstance(found, Tensor) else found.parameters.chunk(2, 1)[0]
        return self.space.from_vae(mean.float())


class Decode(Vae):
    """Latents to pictures as every viewer shows them: 0 to 255, halves rounded to even."""

    def forward(self, latent: Tensor) -> Tensor:
        unit = (self.paint(latent) / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().permute(0, 2, 3, 1).to(torch.uint8)  # last: TensorRT has bytes at the edges only


class Encode(Vae):
    """Pictures, (batch, height, width, 3) uint8, to latents."""

    def forward(self, picture: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        return self.read(picture.float().permute(0, 3, 1, 2) / 127.5 - 1, posterior_noise)


class EncodeKept(Vae):
    """The same, with the middle grey where `kept`, (batch, height, width, 1), is 0; for networks that inpaint."""

    def forward(self, picture: Tensor, kept: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        pixels = (picture.float() / 127.5 - 1) * kept
        return self.read(pixels.permute(0, 3, 1, 2), posterior_noise)


def draws(config: Mapping[str, Any]) -> bool:
    """Whether an autoencoder, of that config.json, has a posterior to draw latents from; tiny ones do not."""
    return config.get("_class_name") != TINY


def vae_recipes(
    components: Components, channels: int, *, overflows: bool = False, inpaints: bool = False
) -> tuple[Recipe, ...]:
    """`decode` and `encode`, the same for every family.

    Args:
        components: The checkpoint.
        channels: Number of channels of a latent, as the family's record says.
        overflows: As in `Recipe`.
        inpaints: The network takes a picture in which what is to be painted is grey.
    """
    drawn = draws(components.config("vae"))
    latent = Port("latent", "float32", ("batch", channels, "height", "width"))
    picture = Port("picture", "uint8", ("batch", "picture_height", "picture_width", 3))
    read = [picture]
    if inpaints:
        read.append(Port("kept", "float32", (*picture.shape[:3], 1)))
    if drawn:
        read.append(replace(latent, name="posterior_noise"))
    encoder = EncodeKept if inpaints else Encode
    return (
        Recipe(
            name="decode",
            components=("vae",),
            inputs=(latent,),
            outputs=(picture,),
            build=lambda parts: Decode(parts.module("vae")),
            runs="end",
            overflows=overflows,
        ),
        Recipe(
            name="encode",
            components=("vae",),
            inputs=tuple(read),
            outputs=(latent,),
            build=lambda parts: encoder(parts.module("vae")),
            runs="start",
            overflows=overflows,
        ),
    )
