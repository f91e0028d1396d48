"""Another autoencoder in the place of a checkpoint's own: a folder, a file, or what the hub has."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen import durable, paths
from lssgen.errors import ExportError, ModelError, UnknownModelError
from lssgen.export.hub import Model, fetched_part
from lssgen.export.inspection import see_classes, see_weights
from lssgen.export.remote import REPOSITORY, file_here, hub_file, near
from lssgen.export.single_file import SUFFIXES, SingleFile, open_single_file, renamed
from lssgen.export.stored import STEMS, file_sha256
from lssgen.export.weights import open_weights
from lssgen.export.writer import weightless
from lssgen.models.nets.vae import TINY, latents_said, same_latents

FORMAT = 1
"""Counts the changes of what is written here; older folders are not found again."""

HALVES = ("encoder", "decoder")
"""Words in the names of the two files that a tiny autoencoder is published as."""

TINY_CONFIG: Mapping[str, object] = {"_class_name": TINY, "act_fn": "relu"}

MADE_FOR = "taesd for SD, taesdxl for SDXL, taesd3 for SD3, taef1 for FLUX.1"


def with_vae(model: Model, name: str) -> Model:
    """The model with another autoencoder.

    Args:
        model: Its own VAE's configuration is there; it says how the model's latents are normalised.
        name: A folder with the config.json of an AutoencoderKL or AutoencoderTiny, or with such a folder "vae"; a
            safetensors file, also one half of a tiny autoencoder whose other half lies beside it; or a hub id of
            either.

    Raises:
        UnknownModelError, FetchError: It is not there.
        ModelError: It is not an autoencoder for these latents.
        ExportError: A file cannot be converted for want of room.
    """
    folder, commit = _folder(name, model)
    checkpoint = model.checkpoint.with_part("vae", folder)
    swapped = replace(model, checkpoint=checkpoint, own_vae=model.checkpoint.path("vae"))
    see_classes(checkpoint, model.family, ("vae",))
    came, own = checkpoint.config("vae"), swapped.latents
    channels = int(own.get("latent_channels") or 0)
    if came["latent_channels"] != channels:
        raise ModelError(
            f"the VAE {name} has latents of {came['latent_channels']} channels, those of {model.name} have {channels}; "
            "choose one that was made for this model"
        )
    cell, own_cell = (model.family.cell_px(config) for config in (came, own))
    if cell != own_cell:
        raise ModelError(f"a latent cell of the VAE {name} is {cell} px wide, one of {model.name} is {own_cell} px")
    see_weights(checkpoint, model.family, ("vae",))
    notes = [f"The VAE is {name}{f' at {commit}' if commit else ''}, in the place of the checkpoint's own."]
    if came["_class_name"] == TINY:
        notes.append(f"Nothing in a tiny autoencoder says which model it was made for ({MADE_FOR}).")
    elif not same_latents(came, own):
        notes.append(
            f"WARNING: the VAE {name} normalises latents with {latents_said(came)}, the one that {model.name} was "
            f"trained with has {latents_said(own)}; if it was not made for this model, colours will be wrong."
        )
    return replace(swapped, notes=(*model.notes, *notes))


def _folder(name: str, model: Model) -> tuple[Path, str | None]:
    """Folder of an autoencoder, and the commit that it comes from."""
    path = Path(name)
    if path.is_dir():
        for folder in (path / "vae", path):
            if (folder / "config.json").is_file():
                return folder, None
        raise UnknownModelError(f"{path} has no config.json, and no vae/config.json, so it is not a VAE of diffusers")
    if name.endswith(SUFFIXES) or hub_file(name) is not None:
        return _converted(name, model), None
    remote = REPOSITORY.fullmatch(name)
    if remote is None:
        raise UnknownModelError(
            f"there is no VAE {name}{near(name)}; give a folder, a safetensors file, or a hub id (owner/name)"
        )
    folder, commit = fetched_part(remote["repository"], "vae", remote["revision"])
    if not (folder / "config.json").is_file():
        raise UnknownModelError(
            f"{name} has no config.json, and no vae/config.json; name the file that is meant: {name}/FILE.safetensors"
        )
    return folder, commit


def _converted(name: str, model: Model) -> Path:
    """A folder with the autoencoder of a file, made now or found from an earlier time."""
    files = [open_single_file(file_here(half)) for half in _halves(name)]
    shape = _tiny_config(files) or _large_config(files[0], model)
    made_of = {"format": FORMAT, "files": [file_sha256(file.path) for file in files], "config": shape}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()
    folder = paths.checkpoints() / f"{files[0].path.stem}-vae-{key[:12]}"
    try:
        with durable.locked(folder.with_name(f".{folder.name}.lock")):
            durable.clear_partial(folder)
            if not folder.is_dir():
                tensors = _tiny(files) if shape["_class_name"] == TINY else _large(files[0], shape)
                with durable.whole_folder(folder) as draft:
                    (draft / "config.json").write_text(json.dumps(shape, indent=2, default=list) + "\n")
                    save_file(tensors, draft / f"{STEMS[0]}.safetensors", {"format": "pt"})
                    _see_whole(name, draft, shape)
    except (OSError, SafetensorError) as error:
        raise ExportError(
            f"{name} cannot be converted to {folder}: {error}; LSSGEN_HOME moves it to where there is room"
        ) from error
    return folder


def _halves(name: str) -> list[str]:
    """The files that a name stands for: of a tiny autoencoder's half, both."""
    start, _, last = name.rpartition("/")
    for half, other in (HALVES, HALVES[::-1]):
        if re.search(rf"(^|[_-]){half}\b", last):
            found = [f"{start}/{file}" if start else file for file in (last, last.replace(half, other))]
            # A path is tried as it is where there is nothing beside it; what the hub has, it will say.
            # Sorted: either half names the same pair, and so the same folder.
            return sorted(found, reverse=True) if Path(found[1]).exists() or not Path(name).exists() else [name]
    return [name]


_NUMBERED = re.compile(r"(?:(?:taesd_)?(encoder|decoder)\.)?(\d+\..+)")


def _sides(files: list[SingleFile]) -> dict[str, dict[str, tuple[SingleFile, str]]]:
    """Where the numbered layers of a tiny autoencoder are, by side and name; empty where they are not all there."""
    found: dict[str, dict[str, tuple[SingleFile, str]]] = {half: {} for half in HALVES}
    for file in files:
        named = next((half for half in HALVES if half in file.path.stem), "")
        for key in file.stored:
            match = _NUMBERED.fullmatch(key)
            if match is not None and (match[1] or named):
                found[match[1] or named][match[2]] = (file, key)
    return found if all(found.values()) else {}


def _tiny_config(files: list[SingleFile]) -> dict[str, Any] | None:
    """Configuration of a tiny autoencoder; None where the files hold none."""
    stored = files[0].stored
    first = stored.get("decoder.layers.0.weight")
    if first is None:
        sides = _sides(files)
        if not sides or "1.weight" not in sides["decoder"]:
            return None
        file, key = sides["decoder"]["1.weight"]
        first = file.stored[key]
    return {**TINY_CONFIG, "latent_channels": first.shape[1]}


def _tiny(files: list[SingleFile]) -> dict[str, Tensor]:
    """Its tensors by diffusers' names. The authors' decoder has a layer in front that clamps, and no weights."""
    sides = _sides(files)
    if not sides:
        return {key: files[0].tensor(key) for key in files[0].stored}
    found: dict[str, Tensor] = {}
    for half, names in sides.items():
        for name, (file, key) in names.items():
            number, _, rest = name.partition(".")
            found[f"{half}.layers.{int(number) - (half == 'decoder')}.{rest}"] = file.tensor(key)
    return found


def _skeleton(config: Mapping[str, Any]) -> nn.Module:
    cls = AutoencoderTiny if config["_class_name"] == TINY else AutoencoderKL
    with weightless(torch.float32):
        return cast(nn.Module, cls.from_config({key: config[key] for key in config if key != "_class_name"}))


def _see_whole(name: str, folder: Path, config: Mapping[str, Any]) -> None:
    """See that a converted autoencoder has all its tensors.

    Raises:
        ModelError: It does not.
    """
    try:
        open_weights({"vae": folder}).fit(nn.ModuleDict({"vae": _skeleton(config)}))
    except ModelError as error:
        raise _no_vae(Path(name), str(error)) from error


def _no_vae(path: Path, reason: str) -> ModelError:
    return ModelError(
        f"{path} is not a VAE of this model; give an AutoencoderKL, or both halves of a tiny autoencoder, in files "
        f"named ..._encoder.safetensors and ..._decoder.safetensors ({reason})"
    )


def _large_config(file: SingleFile, model: Model) -> dict[str, Any]:
    """Configuration of an AutoencoderKL: a file has none, so it is the one of the VAE whose place it takes."""
    own = dict(model.latents)
    if own.get("_class_name") != "AutoencoderKL":
        raise ModelError(f"nothing says how the VAE in {file.path} is built; give its folder with a config.json")
    return own


def _large(file: SingleFile, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of an AutoencoderKL by diffusers' names; of a whole checkpoint, those of its VAE.

    Raises:
        ModelError: They have names that nobody knows.
    """
    skeleton = _skeleton(config)
    keys = file.keys("first_stage_model.", "vae.") or list(file.stored)
    # diffusers' own names already.
    if any(key.startswith(("decoder.up_blocks.", "encoder.down_blocks.")) for key in keys):
        return {key: file.tensor(key) for key in keys}
    try:
        found, _ = renamed("AutoencoderKL", skeleton, {key: file.tensor(key) for key in keys})
    except (KeyError, IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise _no_vae(file.path, f"{type(error).__name__}: {error}") from error
    return {key: tensor.contiguous() for key, tensor in found.items()}
