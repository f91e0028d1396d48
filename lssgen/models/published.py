"""The latent upsamplers that were published with LSSGen: what each was trained for, which no file of theirs says.

None of them is in this package. Source of the hashes: LSSGen, arXiv 2507.16154, the files as published.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lssgen.models.aliases import ALIASES
from lssgen.models.costs import Config

LICENCE = "published with LSSGen, for research and education only"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedUpsampler:
    """One of them.

    Attributes:
        name: Name of its folder.
        vae: config.json of the VAE whose latents it was trained on; `NORMALISATION` matters.
        lent_to: The same of VAEs that normalise otherwise, whose latents the published pipelines give it as they are.
    """

    name: str
    vae: Config
    lent_to: tuple[Config, ...] = ()


NORMALISATION = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Fields of a VAE's config.json that say how its latents are normalised for the model."""


def _vae(alias: str) -> Config:
    return ALIASES[alias].published["vae"]


PUBLISHED: Mapping[str, PublishedUpsampler] = {
    "0a76909caa2377aebbe3a6ab7e9c9c4d386dd32b2d3f1318defe6fbd0b47e025": PublishedUpsampler(
        name="FLUX-VAE-scaler", vae=_vae("flux-dev")
    ),
    "b38c370d43228c736b5902ccc0e7d79571832c68f00dce43a49981ad8e6e0955": PublishedUpsampler(
        name="SD3-VAE-scaler", vae=_vae("sd3")
    ),
    "29f0cfcd4bf0f489f70ba154e6b39480d370e44008ed5610d99875e8f6dd6808": PublishedUpsampler(
        name="CogView4-VAE-scaler", vae=_vae("cogview4")
    ),
    "7128d23c66dbb2ad65439920a2485f39cee30b368845e3aa06eb6822380a72bf": PublishedUpsampler(
        name="SD-VAE-scaler", vae=_vae("sd15")
    ),
    "dc91db290e0046119c1f3d3a950a216d09fca01e3f63c82d3bbfefd491a971d2": PublishedUpsampler(
        name="SDXL-VAE-scaler", vae=_vae("sdxl"), lent_to=(_vae("playground"),)
    ),
}
"""Upsamplers by sha256 of the weight file."""
