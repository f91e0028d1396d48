"""From one stage to the next: upsample a clean latent by two, then mix fresh noise in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.manifest import Feed, Latent, Mix, Noise
from lssgen.models.nets.recipe import Components, Recipe
from lssgen.models.nets.vae import LatentSpace, Vae, draws
from lssgen.plan.facts import ScalingSpace
from lssgen.ports import Port

EVEN = (-0.03515625, 0.26171875, 0.87890625, -0.10546875, 0.0)
"""Weights of cells i - 2 to i + 2 in output cell 2 i; output 2 i + 1 has the same, mirrored.

Source: cubic convolution with a = -0.75 at a quarter cell (Keys 1981), the kernel of torch's "bicubic".
"""


def bicubic(image: Tensor) -> Tensor:
    """Twice the size in both axes: torch's bicubic with align_corners false, as one convolution.

    Every backend has convolutions; their cubic resizes differ at borders and in coefficients.

    Args:
        image: (batch, C, height, width).

    Returns:
        (batch, C, 2 height, 2 width).
    """
    taps = torch.tensor((EVEN, EVEN[::-1]), dtype=image.dtype, device=image.device)
    kernels = torch.einsum("ai,bj->abij", taps, taps).reshape(4, 1, 5, 5)
    batch, channels, height, width = image.shape
    # Channels as a batch: one kernel for all of them, whatever their number.
    planes = F.pad(image.reshape(batch * channels, 1, height, width), (2, 2, 2, 2), mode="replicate")
    return F.pixel_shuffle(F.conv2d(planes, kernels), 2).reshape(batch, channels, 2 * height, 2 * width)


def remix(clean: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
    """mix[:, 0] * clean + mix[:, 1] * noise, (batch, C, h, w) each; mix is (batch, 2)."""
    image, amount = mix[:, :, None, None, None].unbind(1)
    return image * clean + amount * noise


class ResnetTransition(nn.Module):
    """By the latent upsampler; neither scaled nor clamped before or after."""

    def __init__(self, upsampler: nn.Module) -> None:
        super().__init__()
        self.upsampler = upsampler

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        return remix(self.upsampler(latent), noise, mix)


class ConvertedTransition(ResnetTransition):
    """By the latent upsampler, among latents of another normalisation of its VAE: into the one it knows, and back.

    Args:
        upsampler: The network.
        outside: Normalisation of the model's latents.
        inside: The one that the upsampler was trained with.
    """

    def __init__(self, upsampler: nn.Module, outside: LatentSpace, inside: LatentSpace) -> None:
        super().__init__(upsampler)
        self.outside, self.inside = outside, inside

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        # By the VAE's own latents, which both normalisations are of.
        large = self.upsampler(self.inside.from_vae(self.outside.to_vae(latent)))
        return remix(self.outside.from_vae(self.inside.to_vae(large)), noise, mix)


class LatentTransition(nn.Module):
    """By bicubic interpolation of the latent."""

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        return remix(bicubic(latent), noise, mix)


class PixelTransition(Vae):
    """By the way of the picture: decode, bicubic, encode, draw from the posterior."""

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        return remix(self.read(bicubic(self.paint(latent)), posterior_noise), noise, mix)


def transition_recipes(
    components: Components,
    spaces: Sequence[ScalingSpace],
    channels: int,
    convert_to: Mapping[str, Any] | None = None,
    *,
    latents: Mapping[str, Any],
    overflows: bool = False,
) -> tuple[Recipe, ...]:
    """The graphs between stages. "resnet" wants a part called "upsampler".

    Args:
        components: The checkpoint.
        spaces: Which of them to make.
        channels: Of a latent.
        convert_to: Normalisation that the upsampler's input is converted to, as `LatentSpace` reads it; None: it gets
            the model's latents as they are.
        latents: Normalisation of the model's latents, as `LatentSpace` reads it.
        overflows: Of the VAE; as in `Recipe`.
    """
    drawn = draws(components.config("vae")) if "pixel" in spaces else False
    small = Port("latent", "float32", ("batch", channels, "height", "width"))
    large = ("batch", channels, "next_height", "next_width")
    inputs = (small, Port("noise", "float32", large), Port("mix", "float32", ("batch", 2)))
    feeds: dict[str, Feed] = {"latent": Latent(), "noise": Noise(), "mix": Mix()}
    outputs = (Port("next_latent", "float32", large),)

    def resnet(parts: Components) -> ResnetTransition:
        upsampler = parts.module("upsampler")
        if convert_to is None:
            return ResnetTransition(upsampler)
        return ConvertedTransition(upsampler, LatentSpace(latents), LatentSpace(convert_to))

    recipes = {
        "resnet": Recipe(
            name="transition_resnet",
            components=("upsampler",),
            inputs=inputs,
            outputs=outputs,
            build=resnet,
            settings={} if convert_to is None else {"from": latents, "to": convert_to},
            runs="transition",
            feeds=feeds,
            precise=True,
        ),
        "latent": Recipe(
            name="transition_latent",
            components=(),
            inputs=inputs,
            outputs=outputs,
            build=lambda _: LatentTransition(),
            runs="transition",
            feeds=feeds,
            precise=True,
        ),
        "pixel": Recipe(
            name="transition_pixel",
            components=("vae",),
            inputs=(*inputs, *((Port("posterior_noise", "float32", large),) if drawn else ())),
            outputs=outputs,
            build=lambda parts: PixelTransition(parts.module("vae")),
            runs="transition",
            feeds={**feeds, **({"posterior_noise": Noise(of="posterior")} if drawn else {})},
            overflows=overflows,
        ),
    }
    return tuple(recipes[space] for space in spaces if space != "resnet" or components.has("upsampler"))
