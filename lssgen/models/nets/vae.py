"""Between latents in model space and pictures: what every family with an AutoencoderKL shares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from lssgen.models.nets.recipe import Components, Recipe
from lssgen.ports import Port


class LatentSpace:
    """The affine map between the model's latents and the VAE's: vae = model * spread / scaling + mean.

    `shift_factor` is a mean that is equal for all channels; `latents_mean` and `latents_std` are per channel.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.scaling = float(config.get("scaling_factor") or 1.0)
        means, spreads = config.get("latents_mean"), config.get("latents_std")
        both = means is not None and spreads is not None
        self.mean = cast(Sequence[float], means) if both else (float(config.get("shift_factor") or 0.0),)
        self.spread = cast(Sequence[float], spreads) if both else (1.0,)

    def to_vae(self, latent: Tensor) -> Tensor:
        """(batch, C, h, w) as the network paints it -> as the decoder takes it."""
        return latent * per_channel(self.spread, latent) / self.scaling + per_channel(self.mean, latent)

    def from_vae(self, latent: Tensor) -> Tensor:
        """Undoes `to_vae`."""
        return (latent - per_channel(self.mean, latent)) * self.scaling / per_channel(self.spread, latent)


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


class Vae(nn.Module):
    """An autoencoder in model space. The latents and pictures that go in and out are float32."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae
        self.space = LatentSpace(self.vae.config)

    def paint(self, latent: Tensor) -> Tensor:
        """Model space (batch, C, h, w) -> picture (batch, 3, height, width), about -1 to 1, not clamped."""
        dtype = next(self.vae.parameters()).dtype
        return self.vae.decode(self.space.to_vae(latent).to(dtype), return_dict=False)[0].float()

    def read(self, picture: Tensor, posterior_noise: Tensor) -> Tensor:
        """Picture (batch, 3, height, width) -> a sample of its posterior, in model space."""
        dtype = next(self.vae.parameters()).dtype
        moments = self.vae.encode(picture.to(dtype), return_dict=False)[0].parameters.float()
        mean, log_variance = moments.chunk(2, 1)
        sample = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * posterior_noise
        return self.space.from_vae(sample)


class Decode(Vae):
    """Latents to pictures as every viewer shows them: 0 to 255, halves rounded to even."""

    def forward(self, latent: Tensor) -> Tensor:
        unit = (self.paint(latent) / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().permute(0, 2, 3, 1).to(torch.uint8)  # last: TensorRT has bytes at the edges only


class Encode(Vae):
    """Pictures, (batch, height, width, 3) uint8, to latents."""

    def forward(self, picture: Tensor, posterior_noise: Tensor) -> Tensor:
        return self.read(picture.float().permute(0, 3, 1, 2) / 127.5 - 1, posterior_noise)


def vae_recipes(components: Components, *, overflows: bool = False) -> tuple[Recipe, ...]:
    """`decode` and `encode`, the same for every family with an AutoencoderKL; `overflows` as in `Recipe`."""
    latent = Port("latent", "float32", ("batch", int(components.config("vae")["latent_channels"]), "height", "width"))
    picture = Port("picture", "uint8", ("batch", "picture_height", "picture_width", 3))
    return (
        Recipe(
            name="decode",
            components=("vae",),
            inputs=(latent,),
            outputs=(picture,),
            build=lambda parts: Decode(parts.module("vae")),
            overflows=overflows,
        ),
        Recipe(
            name="encode",
            components=("vae",),
            inputs=(picture, replace(latent, name="posterior_noise")),
            outputs=(latent,),
            build=lambda parts: Encode(parts.module("vae")),
            overflows=overflows,
        ),
    )
