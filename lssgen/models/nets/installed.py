"""Where upsamplers are: installed for a VAE, found by the content of its weights; or in this package, for a space."""

from pathlib import Path

from lssgen import paths
from lssgen.bundle import sha256_of
from lssgen.errors import ModelError

STEM = "diffusion_pytorch_model"

SHIPPED = Path(__file__).parents[1] / "upsamplers"
"""Folder of this package's own: one for every latent space that has one."""


def vae_weights_file(folder: Path) -> Path:
    """The weight file of a diffusers VAE folder: the plain one, else a variant such as fp16, else the old format.

    Raises:
        ModelError: The folder holds none.
    """
    for pattern in (f"{STEM}.safetensors", f"{STEM}.*.safetensors", f"{STEM}.bin", f"{STEM}.*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise ModelError(f"no {STEM}.safetensors in {folder}; give the folder of a diffusers VAE, or of its pipeline")


def vae_sha256(weights: Path) -> str:
    """Hash of a VAE's weight file: its identity."""
    return sha256_of(weights)


def installed_upsampler(vae_sha256: str) -> Path:
    """Folder in which `lssgen-train-upsampler` puts the upsampler for the VAE with these weights; it may not exist."""
    return paths.upsamplers() / vae_sha256[:16]


def shipped_upsampler(space: str) -> Path:
    """Folder of this package's own upsampler for a latent space of `lssgen.models.spaces`; it may not exist."""
    return SHIPPED / space
