"""A frozen diffusers autoencoder, seen from the model's own latent space."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lssgen.errors import FetchError, ModelError
from lssgen.files import open_regular
from lssgen.models.configs import POINTER, read_json, refuse_pointer
from lssgen.models.nets.installed import vae_sha256, vae_weights_file
from lssgen.models.nets.vae import TINY, LatentSpace, latents_said, normalisation, per_channel, same_latents
from lssgen.models.spaces import SPACES, space_of_tiny
from lssgen.training.machine import first_line
from lssgen.training.taesd import TaesdAutoencoder, is_taesd_file, load_taesd

CLASSES: Mapping[str, str] = {
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "AutoencoderKLFlux2": "diffusers.models.autoencoders.autoencoder_kl_flux2",
    "AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny",
}
"""Classes of diffusers, with their modules, which take seconds to load and are of no use to files in TAESD's naming."""

PROBE_PX = 64
"""Side of the picture that is encoded and decoded once to learn channels and cell size."""


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
        name: Name that the user gave it.
        channels: Number of channels of its latents.
        cell_px: Pixels along one side of a latent cell.
        sha256: Hash of its weight file.
        normalisation: Fields of a VAE's config.json that say how the latents of the model are normalised.
        of: Name of the latent space, a key in `SPACES`; empty: none that has a name.
    """

    name: str
    vae: nn.Module
    space: LatentSpace
    channels: int
    cell_px: int
    sha256: str
    normalisation: Mapping[str, Any]
    of: str = ""

    def encode(self, pictures: Tensor) -> Posterior:
        """Args: pictures, (batch, 3, height, width) in [-1, 1]."""
        encoded: Any = cast(Any, self.vae).encode(pictures)
        if hasattr(encoded, "latents"):  # AutoencoderTiny
            mean = self.space.from_vae(encoded.latents)
            return Posterior(mean, torch.zeros_like(mean))
        spread = encoded.latent_dist
        # A deviation is scaled like the latent, and not shifted.
        gain = self.space.scaling / per_channel(self.space.spread, spread.std)
        return Posterior(self.space.from_vae(spread.mean), spread.std * gain)

    def decode(self, latents: Tensor) -> Tensor:
        """Args: latents in model space. Returns: (batch, 3, height, width), about [-1, 1], not clamped."""
        return cast(Any, self.vae).decode(self.space.to_vae(latents)).sample


def load_autoencoder(source: str, device: torch.device) -> Autoencoder:
    """Load an AutoencoderKL or AutoencoderTiny in float32.

    Args:
        source: A VAE's folder, a pipeline's folder with a "vae" inside, a hub id of either, or one of the two files of
            an autoencoder in TAESD's own naming.

    Raises:
        ModelError: There is no VAE, it is of another class, or damaged.
        FetchError: The hub cannot be reached, does not know it, or wants a licence accepted.
    """
    if is_taesd_file(Path(source)):
        vae, weights = load_taesd(Path(source))
        return _probed(source, vae, weights, device)
    folder = _vae_folder(Path(source) if Path(source).is_dir() else _download(source))
    weights = vae_weights_file(folder)
    try:
        with open_regular(weights) as file:
            refuse_pointer(weights, file.read(len(POINTER)))
    except OSError as error:
        raise ModelError(f"{weights} cannot be read: {error}; fetch the VAE again") from error
    kind: object = read_json(folder / "config.json").get("_class_name")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ModelError(f"the VAE in {folder} is {kind!r}, but upsamplers are trained for {' and '.join(CLASSES)}")
    vae = _loaded(getattr(import_module(CLASSES[kind]), kind), folder, weights.name.split("."))
    return _probed(source, vae, weights, device)


def _probed(name: str, vae: Any, weights: Path, device: torch.device) -> Autoencoder:
    """An autoencoder that has been tried on one picture, on the device.

    Raises:
        ModelError: It does not work, or not as it should.
    """
    folder = weights.parent
    vae = vae.to(device).eval().requires_grad_(False)
    if device.type == "cuda":  # whose tensor cores want it
        vae = vae.to(memory_format=torch.channels_last)
    try:
        space = LatentSpace(vae.config)
        unprobed = Autoencoder(
            name=name,
            vae=vae,
            space=space,
            channels=0,
            cell_px=0,
            sha256=vae_sha256(weights),
            normalisation=normalisation(vae.config),
        )
        with torch.no_grad():
            latent = unprobed.encode(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=device)).mean
            picture = unprobed.decode(latent)
    except (RuntimeError, TypeError, ValueError, ArithmeticError) as error:  # numbers that do not fit each other
        raise ModelError(f"the VAE in {folder} cannot be used: {first_line(error)}; fetch it again") from error
    # The first would divide to a cell of 0 px.
    if latent.shape[2] > PROBE_PX or picture.shape != (1, 3, PROBE_PX, PROBE_PX):
        raise ModelError(
            f"the VAE in {folder} makes {tuple(picture.shape)} of a (1, 3, {PROBE_PX}, {PROBE_PX}) picture; upsamplers "
            "are trained for those that give back the size that they are given"
        )
    if not (latent.isfinite().all() and picture.isfinite().all()):
        raise ModelError(f"the VAE in {folder} makes NaN or infinity of a grey picture; its weights are damaged")
    return replace(unprobed, channels=latent.shape[1], cell_px=PROBE_PX // latent.shape[2])


def in_space(autoencoder: Autoencoder, name: str, source: str) -> Autoencoder:
    """An autoencoder of which it is known whose latents it makes.

    Args:
        name: Key in `SPACES`, "own" for none of them, or "auto".
        source: What the user gave, for messages.

    Raises:
        ModelError: Nothing says whose latents they are, or they are not those of `name`.
    """
    vae: Any = autoencoder.vae
    tiny = vae.config["_class_name"] == TINY if "_class_name" in vae.config else type(vae).__name__ == TINY
    known = space_of_tiny(autoencoder.sha256)
    if name == "own" or (name == "auto" and known is None and not isinstance(vae, TaesdAutoencoder)):
        return autoencoder
    if name == "auto" and known is None:
        raise ModelError(
            f"nothing says whose latents {source} makes: it is none of the small autoencoders that are known; give "
            f"--space with one of {', '.join(SPACES)}, or own for those of another model"
        )
    space = SPACES[name] if name != "auto" else known
    assert space is not None, "seen above"
    if space.channels != autoencoder.channels or known not in (None, space):
        raise ModelError(
            f"{source} makes latents of {known.title if known else f'{autoencoder.channels} channels'}, not those of "
            f"{space.title} (--space {space.name}, {space.channels} channels)"
        )
    if not tiny and not same_latents(space.normalisation, autoencoder.normalisation):
        raise ModelError(
            f"{source} says {latents_said(autoencoder.normalisation)} of its latents, but those of {space.title} have "
            f"{latents_said(space.normalisation)}; leave --space out"
        )
    return replace(autoencoder, normalisation=space.normalisation, of=space.name)


def _loaded(kind: Any, folder: Path, parts: list[str]) -> Any:
    """The module with all of its weights.

    Args:
        parts: Parts of the weight file's name; a variant is in the middle: diffusion_pytorch_model.fp16.safetensors.
    """
    try:
        vae, said = kind.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=parts[-1] == "safetensors",
            variant=parts[1] if len(parts) == 3 else None,
            output_loading_info=True,
        )
    except Exception as error:  # a configuration with odd values fails wherever the value is used first
        raise ModelError(f"the VAE in {folder} cannot be loaded: {first_line(error)}; fetch it again") from error
    # Diffusers warns of both, and goes on with random weights for what is missing.
    # Others, as of a loss or of an average, are remains of the VAE's training.
    surplus = [key for key in said["unexpected_keys"] if key.startswith(("encoder.", "decoder."))]
    for keys, what in ((said["missing_keys"], "are missing"), (surplus, "have no place in it")):
        if keys:
            raise ModelError(
                f"the weights of the VAE in {folder} do not fit its config.json: {len(keys)} {what}, {keys[0]} for "
                "one; fetch both again"
            )
    return vae


def _vae_folder(folder: Path) -> Path:
    inside = folder / "vae"
    return inside if inside.is_dir() else folder


def _download(source: str) -> Path:
    # A second to load, and of no use to folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        files = ["vae/config.json", "vae/diffusion_pytorch_model*", "config.json", "diffusion_pytorch_model*"]
        return Path(snapshot_download(source, allow_patterns=files))
    except HFValidationError as error:
        raise ModelError(f"no folder {source!r}, and it is not a hub id either; give one of the two") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FetchError(
            f"{source!r} is not a folder here, and the hub did not give it: {error}; check the name and the network, "
            "accept the model's licence on its hub page and log in with `hf auth login`, or give a local folder"
        ) from error
