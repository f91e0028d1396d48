"""Which latent upsampler goes into a bundle, and whether it belongs to the model's latents."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lssgen.bundle import Upsampler, sha256_of
from lssgen.errors import UpsamplerError
from lssgen.export.hub import Model
from lssgen.models.configs import read_json
from lssgen.models.nets.installed import installed_upsampler, vae_weights_file
from lssgen.models.nets.latent_upsampler import WEIGHTS_FILE, LatentUpSampler

INFO = "lssgen.json"
"""What lssgen-train-upsampler writes beside config.json: which latents it is for, and the licence."""

PACKAGED = "upsampler"
"""Folder of a checkpoint that brings its own."""

MISSING = (
    "WARNING: no latent upsampler for this VAE. The bundle goes from stage to stage by bicubic interpolation of the "
    "latent, which blurs and costs quality that the later stages repair only in part. Train one with "
    "`lssgen-train-upsampler --vae {vae} --images FOLDER` (later exports find it), or give one with --upsampler FOLDER."
)
UNKNOWN_LICENCE = "unknown; the upsamplers published with LSSGen are for research only"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An upsampler that fits.

    Attributes:
        folder: Its checkpoint.
        record: For the manifest.
    """

    folder: Path
    record: Upsampler


def choose_upsampler(model: Model, channels: int, given: Path | None) -> Chosen | None:
    """The upsampler the user gave, the checkpoint's own, or the one installed for this VAE; None where there is none.

    Raises:
        UpsamplerError: It has other channels, or was trained for another latent space.
    """
    vae = model.checkpoint.path("vae")
    vae_sha256 = sha256_of(vae_weights_file(vae))
    if given is not None:
        return _checked(given, model, channels, vae_sha256)
    for folder in (model.checkpoint.folder / PACKAGED, installed_upsampler(vae_sha256)):
        if (folder / WEIGHTS_FILE).is_file():
            return _checked(folder, model, channels, vae_sha256)
    return None


def _checked(folder: Path, model: Model, channels: int, vae_sha256: str) -> Chosen:
    network = LatentUpSampler.from_pretrained(folder)
    network.check_fits(channels, model=model.name)
    info: Mapping[str, Any] = read_json(folder / INFO) if (folder / INFO).is_file() else {}
    _check_space(folder, info, model.checkpoint.config("vae"), model.name, vae_sha256)
    record = Upsampler(
        source=str(folder),
        sha256=sha256_of(folder / WEIGHTS_FILE),
        licence=str(info.get("licence") or UNKNOWN_LICENCE),
        config=asdict(network.config),
    )
    return Chosen(folder, record)


def _check_space(folder: Path, info: Mapping[str, Any], vae: Mapping[str, Any], model: str, vae_sha256: str) -> None:
    """Equal weights mean an equal space; else the scaling and shift must at least be the same."""
    if info.get("vae_sha256") == vae_sha256:
        return
    for name, neutral in (("scaling_factor", 1.0), ("shift_factor", 0.0)):
        if name not in info:
            continue
        trained, wanted = (float(config.get(name) or neutral) for config in (info, vae))
        if abs(trained - wanted) > 1e-6 * abs(wanted):
            raise UpsamplerError(
                f"the upsampler in {folder} was trained for latents with {name} {trained:g}, but those of {model} have "
                f"{wanted:g}; train one for this VAE with lssgen-train-upsampler"
            )
