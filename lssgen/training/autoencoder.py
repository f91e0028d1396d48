"""A frozen diffusers autoencoder, seen from the model's own latent space."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from lssgen.errors import FetchError, ModelError
from lssgen.models.nets.installed import vae_sha256, vae_weights_file
from lssgen.models.nets.vae import LatentSpace, per_channel

CLASSES: Mapping[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
PROBE_PX = 64
"""Side of the picture that is encoded once to learn channels and cell size."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """What an encoder says of a batch of pictures, in model space: (batch, C, h, w) each.

    The standard deviation is 0 where the autoencoder has none (AutoencoderTiny).
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """A frozen VAE in evaluation mode.

    Attributes:
        name: What the user called it.
        channels: Of its latents.
        cell_px: Pixels along one side of a latent cell.
        sha256: Of its weight file.
    """

    name: str
    vae: nn.Module
    space: LatentSpace
    channels: int
    cell_px: int
    sha256: str

    def encode(self, pictures: Tensor) -> Posterior:
        """Args: pictures, (batch, 3, height, width) in [-1, 1]."""
        encoded: Any = cast(Any, self.vae).encode(pictures)
        if hasattr(encoded, "latents"):  # AutoencoderTiny
            mean = self.space.from_vae(encoded.latents)
            return Posterior(mean, torch.zeros_like(mean))
        spread = encoded.latent_dist
        gain = self.space.scaling / per_channel(self.space.spread, spread.std)
        return Posterior(self.space.from_vae(spread.mean), spread.std * gain)

    def decode(self, latents: Tensor) -> Tensor:
        """Args: latents in model space. Returns: (batch, 3, height, width), about [-1, 1], not clamped."""
        return cast(Any, self.vae).decode(self.space.to_vae(latents)).sample


def load_autoencoder(source: str, device: torch.device) -> Autoencoder:
    """Load an AutoencoderKL or AutoencoderTiny in float32.

    Args:
        source: A VAE's folder, a pipeline's folder with a "vae" inside, or a hub id of either.

    Raises:
        ModelError: There is no VAE, it is of another class, or damaged.
        FetchError: The hub cannot be reached, does not know it, or wants a licence accepted.
    """
    folder = _vae_folder(Path(source)) if Path(source).is_dir() else _vae_folder(_download(source))
    weights = vae_weights_file(folder)
    try:
        kind = json.loads((folder / "config.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}; fetch the VAE again") from error
    if kind not in CLASSES:
        raise ModelError(f"the VAE in {folder} is {kind!r}, but upsamplers are trained for {' and '.join(CLASSES)}")
    parts = weights.name.split(".")
    try:
        vae = CLASSES[kind].from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=parts[-1] == "safetensors",
            variant=parts[1] if len(parts) == 3 else None,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the VAE in {folder} cannot be loaded: {error}; fetch it again") from error
    vae = vae.to(device).eval().requires_grad_(False)
    space = LatentSpace(vae.config)
    unprobed = Autoencoder(name=source, vae=vae, space=space, channels=0, cell_px=0, sha256=vae_sha256(folder))
    with torch.no_grad():
        latent = unprobed.encode(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=device)).mean
    return Autoencoder(
        name=source,
        vae=vae,
        space=space,
        channels=latent.shape[1],
        cell_px=PROBE_PX // latent.shape[2],
        sha256=unprobed.sha256,
    )


def _vae_folder(folder: Path) -> Path:
    inside = folder / "vae"
    return inside if inside.is_dir() else folder


def _download(source: str) -> Path:
    try:
        files = ["vae/config.json", "vae/diffusion_pytorch_model*", "config.json", "diffusion_pytorch_model*"]
        return Path(snapshot_download(source, allow_patterns=files))
    except HFValidationError as error:
        raise ModelError(f"no folder {source!r}, and it is no hub id either; give one of the two") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(
            f"{source!r} is no folder here, and the hub did not give it: {error}; check the name and the network, "
            "accept the model's licence on its hub page and log in with `hf auth login`, or give a local folder"
        ) from error
