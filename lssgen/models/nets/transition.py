"""From one stage to the next: a latent is brought to twice the size, and to the noise that the next one starts with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lssgen.manifest import Feed, Latent, Mix, Noise
from lssgen.models.nets.cosines import enlarged, low_part
from lssgen.models.nets.recipe import Components, Recipe
from lssgen.models.nets.vae import LatentSpace, Vae, draws, joint, normalisation
from lssgen.plan.facts import ScalingSpace
from lssgen.plan.transitions import TRANSITIONS
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


def nearest(image: Tensor) -> Tensor:
    """Twice the size in both axes, every cell four times: (batch, C, h, w) -> (batch, C, 2 h, 2 w)."""
    batch, channels, height, width = image.shape
    copies = image[:, :, :, None, :, None].expand(batch, channels, height, 2, width, 2)
    return copies.reshape(batch, channels, 2 * height, 2 * width)


def largest_share(values: Tensor, share: float) -> Tensor:
    """The smallest number that at most a share of the values of every picture exceeds: (batch, 1, h, w) of 0 or more ->
    (batch, 1, 1, 1).

    By halving an interval and not by sorting: backends sort a few thousand values at most, and of a fixed number.
    """
    low, high = torch.zeros_like(values.amax((2, 3), keepdim=True)), values.amax((2, 3), keepdim=True)
    # 24 halvings: float32 has no finer numbers beside the largest.
    for _ in range(24):
        middle = (low + high) / 2
        exceed = (values > middle).to(values.dtype).mean((2, 3), keepdim=True) > share
        low, high = torch.where(exceed, middle, low), torch.where(exceed, high, middle)
    return high


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
    """By bicubic interpolation of the latent.

    Args:
        space: Normalisation to leave before and to come back to after: where squares of cells are normalised together,
            only the VAE's own latents have neighbours that are alike. None: every cell is normalised as its neighbour,
            with which interpolation commutes.
    """

    def __init__(self, space: LatentSpace | None = None) -> None:
        super().__init__()
        self.space = space

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        if self.space is None:
            return remix(bicubic(latent), noise, mix)
        return remix(self.space.from_vae(bicubic(self.space.to_vae(latent))), noise, mix)


class PixelTransition(Vae):
    """By the way of the picture: decode, bicubic, encode, draw from the posterior."""

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor, posterior_noise: Tensor | None = None) -> Tensor:
        return remix(self.read(bicubic(self.paint(latent)), posterior_noise), noise, mix)


class CosineTransition(nn.Module):
    """By the cosine transform: the state is kept, its frequencies lie within the larger latent's, new ones are noise.

    Source: SPEED; a start that is noisier than the state can be has the rest of its noise from `low_noise`.
    """

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        height, width = latent.shape[2:]
        gain, amount, low_amount = mix[:, :, None, None, None].unbind(1)
        low = gain * latent + (low_amount - amount) * low_part(noise, height, width)
        return enlarged(low) + amount * noise


class SelfLiftTransition(Vae):
    """By nearest neighbours and, where the way of the picture says otherwise, by a mixture of both.

    Of the cells, the share `MIXED` in which the two differ most, by the mean over channels, get the way of the picture
    with a weight that rises from the first to the second of `WEIGHTS` with the difference. The encoder's mean is taken.

    Source: SelfLift, as proposed for SGLang (pull request 33733).
    """

    MIXED = 0.4
    WEIGHTS = (0.7, 1.0)

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        near, seen = nearest(latent), self.read_mean(bicubic(self.paint(latent)))
        weight = self.weights((near - seen).abs().mean(1, keepdim=True))
        return remix(near + weight * (seen - near), noise, mix)

    def weights(self, difference: Tensor) -> Tensor:
        """(batch, 1, h, w) weights of the way of the picture, from the difference of the two."""
        least, most = largest_share(difference, self.MIXED), difference.amax((2, 3), keepdim=True)
        low, high = self.WEIGHTS
        # A picture on which both agree everywhere has nothing to mix, and nothing to divide by.
        rise = (difference - least) / (most - least).clamp(min=torch.finfo(difference.dtype).tiny)
        return torch.where(difference > least, low + (high - low) * rise, torch.zeros_like(difference))


class SuperResolutionTransition(Vae):
    """By the way of the picture, enlarged by a network that the user gives. The encoder's mean is taken.

    Args:
        vae: The autoencoder.
        enlarge: The network: (batch, 3, height, width) in [0, 1] -> the same at twice the size.

    Source: MrFlow.
    """

    def __init__(self, vae: nn.Module, enlarge: Callable[[Tensor], Tensor]) -> None:
        super().__init__(vae)
        self.enlarge = enlarge

    def forward(self, latent: Tensor, noise: Tensor, mix: Tensor) -> Tensor:
        picture = (self.paint(latent) / 2 + 0.5).clamp(0, 1)
        large = self.enlarge(picture).clamp(0, 1)
        return remix(self.read_mean(large * 2 - 1), noise, mix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """What the graphs between stages are made with, beside the checkpoint.

    Attributes:
        latents: Normalisation of the model's latents, as `LatentSpace` reads it.
        convert_to: The one that the upsampler's input is converted to; None: it gets the model's latents as they are.
        enlarge: Super-resolution network, see `SuperResolutionTransition`; None: there is none.
        enlarge_sha256: Hash of its file.
    """

    latents: Mapping[str, Any] = field(default_factory=dict[str, Any])
    convert_to: Mapping[str, Any] | None = None
    enlarge: Callable[[Tensor], Tensor] | None = None
    enlarge_sha256: str = ""

    @property
    def conversion(self) -> Mapping[str, object]:
        """What of it decides the upsampler's graph."""
        return {} if self.convert_to is None else {"from": self.latents, "to": self.convert_to}


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitionGraph:
    """The graph of a transition.

    Attributes:
        components: Parts of the checkpoint whose weights it holds.
        build: Function from them to the module: (latent, noise, mix, posterior noise where it draws) -> next latent.
        settings: Whatever else decides what it computes.
        draws: Draws from the autoencoder's posterior, if that has one.
    """

    components: tuple[str, ...] = ()
    build: Callable[[Components, Ways], nn.Module]
    settings: Callable[[Ways], Mapping[str, object]] = lambda _: {}
    draws: bool = False


def _resnet(parts: Components, ways: Ways) -> nn.Module:
    upsampler = parts.module("upsampler")
    if ways.convert_to is None:
        return ResnetTransition(upsampler)
    return ConvertedTransition(upsampler, LatentSpace(ways.latents), LatentSpace(ways.convert_to))


def _latent(parts: Components, ways: Ways) -> nn.Module:
    del parts
    return LatentTransition(LatentSpace(ways.latents) if joint(ways.latents) else None)


def _super_resolution(parts: Components, ways: Ways) -> nn.Module:
    assert ways.enlarge is not None, "the export makes this graph only where it was given a network"
    return SuperResolutionTransition(parts.module("vae"), ways.enlarge)


def _of(module: Callable[..., nn.Module], *components: str, draws: bool = False) -> TransitionGraph:
    """The graph of a module that is made of parts of the checkpoint alone."""

    def build(parts: Components, ways: Ways) -> nn.Module:
        del ways
        return module(*map(parts.module, components))

    return TransitionGraph(components=components, build=build, draws=draws)


GRAPHS: Mapping[ScalingSpace, TransitionGraph] = {
    "resnet": TransitionGraph(components=("upsampler",), build=_resnet, settings=lambda ways: ways.conversion),
    "latent": TransitionGraph(
        build=_latent, settings=lambda ways: dict(normalisation(ways.latents)) if joint(ways.latents) else {}
    ),
    "pixel": _of(PixelTransition, "vae", draws=True),
    "dct": _of(CosineTransition),
    "selflift": _of(SelfLiftTransition, "vae"),
    "sr": TransitionGraph(
        components=("vae",), build=_super_resolution, settings=lambda ways: {"network": ways.enlarge_sha256}
    ),
}
"""The graph of every transition in `lssgen.plan.transitions.TRANSITIONS`, which says what noise it takes."""


def transition_recipes(
    components: Components, spaces: Sequence[ScalingSpace], channels: int, ways: Ways, *, overflows: bool = False
) -> tuple[Recipe, ...]:
    """The graphs between stages. "resnet" wants a part called "upsampler".

    Args:
        components: The checkpoint.
        spaces: Which of them to make.
        channels: Of a latent.
        ways: What they are made with besides.
        overflows: Of the VAE; as in `Recipe`.
    """
    return tuple(
        _recipe(space, components, channels, ways, overflows=overflows)
        for space in spaces
        if space != "resnet" or components.has("upsampler")
    )


def _recipe(space: ScalingSpace, components: Components, channels: int, ways: Ways, *, overflows: bool) -> Recipe:
    graph, mixes = GRAPHS[space], TRANSITIONS[space].mixes
    large = ("batch", channels, "next_height", "next_width")
    inputs: dict[Port, Feed] = {
        Port("latent", "float32", ("batch", channels, "height", "width")): Latent(),
        Port("noise", "float32", large): Noise(),
        Port("mix", "float32", ("batch", len(mixes))): Mix(values=mixes),
    }
    if graph.draws and draws(components.config("vae")):
        inputs[Port("posterior_noise", "float32", large)] = Noise(of="posterior")
    coded = "vae" in graph.components
    return Recipe(
        name=f"transition_{space}",
        components=graph.components,
        inputs=tuple(inputs),
        outputs=(Port("next_latent", "float32", large),),
        build=lambda parts: graph.build(parts, ways),
        settings=graph.settings(ways),
        runs="transition",
        feeds={port.name: feed for port, feed in inputs.items()},
        # Without an autoencoder they are small, and work on the state itself, which is float32.
        precise=not coded,
        overflows=overflows and coded,
    )
