"""Which latent upsampler goes into a bundle, and whether it belongs to the model's latents."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, cast

from lssgen.bundle import sha256_of
from lssgen.errors import UpsamplerError
from lssgen.export.hub import Model
from lssgen.manifest import Upsampler
from lssgen.models.configs import read_json
from lssgen.models.families import Family
from lssgen.models.nets.installed import installed_upsampler, shipped_upsampler, vae_weights_file
from lssgen.models.nets.upsampler import WEIGHTS_FILE
from lssgen.models.nets.upsamplers import load_upsampler
from lssgen.models.nets.vae import joint, latents_said, normalisation, same_latents
from lssgen.models.published import LICENCE, NORMALISATION, PUBLISHED, PublishedUpsampler
from lssgen.models.spaces import CELL_PX, SPACES, Space

INFO = "lssgen.json"
"""File that lssgen-train-upsampler writes beside config.json: which latents it is for, and the licence."""

PACKAGED = "upsampler"
"""Folder of a checkpoint that brings its own."""

MISSING = (
    "WARNING: no latent upsampler for this VAE. The bundle goes from stage to stage by bicubic interpolation of the "
    "latent, which blurs and costs quality that the later stages repair only in part. Train one with "
    "`lssgen-train-upsampler --vae {vae} --images FOLDER` (later exports find it), or give one with --upsampler FOLDER."
)
CONVERTED = (
    " If its VAE is that of {title}, normalised otherwise, --convert-latents takes the upsampler shipped for it."
)
UNKNOWN_LICENCE = "unknown; the upsamplers published with LSSGen are for research only"


@dataclass(frozen=True, slots=True)
class Chosen:
    """An upsampler that fits.

    Attributes:
        folder: Folder of its checkpoint.
        record: Entry in the manifest.
        note: Sentence about it that the user should read.
    """

    folder: Path
    record: Upsampler
    note: str


def choose_upsampler(model: Model, channels: int, given: Path | None, *, convert: bool) -> Chosen | None:
    """The upsampler the user gave, the checkpoint's own, the one installed for this VAE, or this package's own.

    None where there is none of them.

    Args:
        model: What it is for.
        channels: Of a latent.
        given: By the user.
        convert: Take latents to the normalisation that it was trained with, and back.

    Raises:
        UpsamplerError: It has other channels, was trained for another latent space, or nothing says for which.
    """
    if given is not None:
        return _checked(given, model, channels, convert=convert)
    # The checkpoint's own before the user's: it was put there for this one. Ours last: it knows the space, not the VAE.
    own = (model.checkpoint.folder / PACKAGED, *map(installed_upsampler, _vaes(model)))
    for folder in (*own, *_shipped(model, channels, convert=convert)):
        if (folder / WEIGHTS_FILE).is_file():
            return _checked(folder, model, channels, convert=convert)
    return None


def missing_note(model: Model, channels: int) -> str:
    """What a user should read where there is no upsampler."""
    vae = model.checkpoint.path("vae") if Path(model.source).is_file() else model.source
    others = (CONVERTED.format(title=space.title) for space in spaces_of(model.family, model.latents, channels))
    return MISSING.format(vae=vae) + next(others, "")


def _vaes(model: Model) -> Iterator[str]:
    """Hash of the model's VAE, and of its own one where another stands in: both have the model's latents."""
    for folder in (model.checkpoint.path("vae"), model.own_vae):
        if folder is not None and any(folder.glob("*.safetensors")):
            yield sha256_of(vae_weights_file(folder))


def _shipped(model: Model, channels: int, *, convert: bool) -> Iterator[Path]:
    """This package's own upsamplers for latents like the model's."""
    convert = convert or joint(model.latents)
    for space in spaces_of(model.family, model.latents, channels):
        if convert or same_latents(space.normalisation, model.latents):
            yield shipped_upsampler(space.name)


def spaces_of(family: Family, vae: Mapping[str, Any], channels: int) -> Iterator[Space]:
    """The known spaces that a model's latents may be of, normalised as they are there or otherwise.

    Args:
        family: The model's.
        vae: config.json of the VAE that it was trained with.
        channels: Of a latent.
    """
    for name in family.latent_spaces:
        if SPACES[name].channels == channels and family.cell_px(vae) == CELL_PX:
            yield SPACES[name]


def _checked(folder: Path, model: Model, channels: int, *, convert: bool) -> Chosen:
    network = load_upsampler(folder)
    network.check_fits(channels, model=model.name)
    sha256 = sha256_of(folder / WEIGHTS_FILE)
    info: Mapping[str, Any] = read_json(folder / INFO) if (folder / INFO).is_file() else {}
    published = PUBLISHED.get(sha256)
    vae = model.latents
    trained = _trained_for(folder, info, published, channels)
    if joint(vae):
        # Such a normalisation is the network's and not the VAE's, among whose latents upsamplers are trained.
        trained, convert = trained or {}, True
    other = trained if trained is not None and not same_latents(trained, vae) else None
    # As published: Playground's stages go through the upsampler of SDXL, whose latents are normalised otherwise.
    lent = published is not None and any(same_latents(vae, known) for known in published.lent_to)
    if other is not None and not (convert or lent):
        raise UpsamplerError(
            f"the upsampler in {folder} was trained for latents with {latents_said(other)}, but those of {model.name} "
            f"have {latents_said(vae)}; train one for this VAE with lssgen-train-upsampler, or, if both are the same "
            "VAE with two normalisations, export with --convert-latents"
        )
    if trained is None and convert:
        raise UpsamplerError(
            f"nothing says which latents the upsampler in {folder} was trained for, so they cannot be converted; write "
            f"{', '.join(NORMALISATION)} of its VAE into {folder / INFO}, those that its config.json has"
        )
    record = Upsampler(
        source=str(folder),
        sha256=sha256,
        licence=str(info.get("licence") or (LICENCE if published else UNKNOWN_LICENCE)),
        config=asdict(network.config),
        converted_to=other if convert else None,
    )
    note = f"Latent upsampler from {folder}; licence: {record.licence}."
    if origin := info.get("origin"):
        note += f" {origin}"
    if other is not None:
        note += f" It was trained for latents with {latents_said(other)}; those of this model are " + (
            "converted for it, and back." if convert else "not converted, as published: --convert-latents does that."
        )
    return Chosen(folder, record, note)


def _trained_for(
    folder: Path, info: Mapping[str, Any], published: PublishedUpsampler | None, channels: int
) -> Mapping[str, Any] | None:
    """Normalisation of the latents that an upsampler was trained with; None where nothing says it.

    Raises:
        UpsamplerError: What its lssgen.json says is not a normalisation.
    """
    said = normalisation(info)
    for name, value in said.items():
        each = name.startswith("latents_")
        numbers: Sequence[object] = cast(Sequence[object], value) if each and isinstance(value, list) else (value,)
        fits = all(isinstance(one, int | float) and isfinite(one) for one in numbers)
        if not fits or len(numbers) != (channels if each else 1) or (name == "scaling_factor" and not value):
            wanted = f"a list of {channels} numbers" if each else "a number"
            raise UpsamplerError(f"{name} in {folder / INFO} is {value!r}; it must be {wanted}, as in its VAE's config")
    return said or (normalisation(published.vae) if published else None)
