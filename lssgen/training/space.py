"""A VAE of diffusers and the ways among its latents, without a bundle: for measuring noise levels."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lssgen.errors import ModelError
from lssgen.models.nets.cosines import enlarged
from lssgen.models.nets.transition import PixelTransition, SelfLiftTransition, bicubic
from lssgen.models.nets.upsampler import WEIGHTS_FILE
from lssgen.models.nets.upsamplers import load_upsampler
from lssgen.plan.facts import ScalingSpace
from lssgen.plan.transitions import SIDES
from lssgen.training.autoencoder import Autoencoder, load_autoencoder

Array = NDArray[np.float32]
_CLEAN = ((1.0, 0.0),)
"""Weights of a transition that puts no noise in."""


class VaeSpace:
    """An autoencoder in torch.

    Args:
        vae: As `load_autoencoder` takes it.
        upsampler: Folder of a latent upsampler; None: none is measured.

    Raises:
        ModelError: There is no such VAE, or nothing says how its latents are normalised.
        UpsamplerError: The upsampler does not fit it.
    """

    def __init__(self, vae: str, upsampler: Path | None) -> None:
        self._autoencoder = load_autoencoder(vae, torch.device("cpu"))
        _see_known(self._autoencoder)
        self._upsampler, self._weights = None, ""
        if upsampler is not None:
            network = load_upsampler(upsampler)
            network.check_fits(self._autoencoder.channels, model=vae)
            self._upsampler, self._weights = network, sha256((upsampler / WEIGHTS_FILE).read_bytes()).hexdigest()

    @property
    def name(self) -> str:
        return self._autoencoder.name

    @property
    def identity(self) -> str:
        return f"{self._autoencoder.sha256} {self._weights}"

    @property
    def cell_px(self) -> int:
        return self._autoencoder.cell_px

    @property
    def operators(self) -> Mapping[ScalingSpace, Callable[[Array], Array]]:
        vae = self._autoencoder.vae
        found: dict[ScalingSpace, nn.Module | Callable[[Tensor], Tensor]] = {
            "latent": bicubic,
            "pixel": _without_noise(PixelTransition(vae)),
            "dct": _by_cosines,
            "selflift": _without_noise(SelfLiftTransition(vae)),
        }
        if self._upsampler is not None:
            found = {"resnet": self._upsampler, **found}
        return {space: _in_numpy(way) for space, way in found.items()}

    def encode(self, picture: NDArray[np.uint8]) -> Array:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            return self._autoencoder.encode(pixels).mean[0].numpy()

    def close(self) -> None:
        """Nothing to free."""


def _see_known(autoencoder: Autoencoder) -> None:
    """See that the VAE's configuration says how its latents are normalised for a model.

    Raises:
        ModelError: It does not: diffusers would take it for Stable Diffusion 1's.
    """
    if type(autoencoder.vae).__name__ == "AutoencoderKLFlux2":
        raise ModelError(
            f"the VAE {autoencoder.name} is FLUX.2's, whose network normalises its latents, and with them what a noise "
            "level means: measure a bundle of the model (lssgen calibrate sigma BUNDLE)"
        )
    config: Any = autoencoder.vae.config
    # A tiny autoencoder's latents are those of the model: its scaling is 1 whoever made it.
    left_out = config.get("_use_default_values") or ()
    assumed = type(autoencoder.vae).__name__ != "AutoencoderTiny" and "scaling_factor" in left_out
    if assumed and (config.get("latents_mean") is None or config.get("latents_std") is None):
        raise ModelError(
            f"config.json of the VAE {autoencoder.name} names no scaling_factor, and no latents_mean and latents_std: "
            "the space of its model is unknown, and with it what a noise level means; add those of the model"
        )


def _by_cosines(latent: Tensor) -> Tensor:
    return SIDES * enlarged(latent)


def _without_noise(transition: nn.Module) -> Callable[[Tensor], Tensor]:
    def enlarge(latent: Tensor) -> Tensor:
        batch, channels, height, width = latent.shape
        noise = latent.new_zeros(batch, channels, 2 * height, 2 * width)
        extra = (noise,) if isinstance(transition, PixelTransition) and _draws(transition) else ()
        return transition(latent, noise, torch.tensor(_CLEAN), *extra)

    return enlarge


def _draws(transition: PixelTransition) -> bool:
    return type(transition.vae).__name__ != "AutoencoderTiny"


def _in_numpy(way: Callable[[Tensor], Tensor]) -> Callable[[Array], Array]:
    def enlarge(latent: Array) -> Array:
        with torch.no_grad():
            return way(torch.from_numpy(latent)[None])[0].numpy()

    return enlarge
