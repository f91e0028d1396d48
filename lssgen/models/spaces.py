"""The latent spaces that several models share, and that small autoencoders were distilled for.

An upsampler belongs to a space: to a VAE and the way its latents are normalised, not to the network that paints in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lssgen.models.aliases import ALIASES
from lssgen.models.costs import Config
from lssgen.models.published import NORMALISATION

CELL_PX = 8
"""Pixels along one side of a latent cell, in all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One of them.

    Attributes:
        name: Key in `SPACES`.
        title: Models whose latents these are, for people.
        channels: Channels of a latent.
        normalisation: Fields of the VAE's config.json that say how its latents become the model's; empty: they are the
            VAE's own.
        tiny: sha256 of the encoder files of small autoencoders whose latents are the model's.
    """

    name: str
    title: str
    channels: int
    normalisation: Config = field(default_factory=dict[str, object])
    tiny: tuple[str, ...] = ()


def _normalisation(alias: str) -> Config:
    vae = ALIASES[alias].published["vae"]
    return {name: vae[name] for name in NORMALISATION if vae.get(name) is not None}


SPACES: Mapping[str, Space] = {
    space.name: space
    for space in (
        Space(
            name="sd",
            title="Stable Diffusion 1.x and 2.x",
            channels=4,
            normalisation=_normalisation("sd15"),
            tiny=("a6b8c0fda4aad50784e543389e0239c72c5e31e9775c9e612ea8333bf3a77dcb",),
        ),
        Space(
            name="sdxl",
            title="Stable Diffusion XL",
            channels=4,
            normalisation=_normalisation("sdxl"),
            tiny=("3d78013286676a1a51074831230f90972e573698fe4b11416d6f28e0cd5bbe7e",),
        ),
        Space(
            name="sd3",
            title="Stable Diffusion 3 and 3.5",
            channels=16,
            normalisation=_normalisation("sd3"),
            tiny=("e5c96f3476bd26fe73e96d701a694f40d7ab48a290494cbbf70a3697d09cab4a",),
        ),
        Space(
            name="flux",
            title="FLUX.1 and Z-Image",
            channels=16,
            normalisation=_normalisation("flux-dev"),
            tiny=("19f5a854ce575fd0a1c0a52938410cf5fb4dc4b8ae71c8887533646d8fe47030",),
        ),
        # Its model normalises 2 x 2 cells together, as no field of a VAE's config says.
        Space(
            name="flux2",
            title="FLUX.2, as its VAE makes them",
            channels=32,
            tiny=("10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",),
        ),
    )
}
"""Every space, by name. Source of the hashes: weights of madebyollin/taesd (MIT) as safetensors, of FLUX.2 as .pth."""


def space_of_tiny(encoder_sha256: str) -> Space | None:
    """The space whose latents a small autoencoder makes, by the hash of its encoder's file; None: nobody knows."""
    return next((space for space in SPACES.values() if encoder_sha256 in space.tiny), None)
