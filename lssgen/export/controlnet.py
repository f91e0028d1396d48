"""A ControlNet beside a checkpoint: a folder, or what the hub has."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from lssgen.errors import ModelError, UnknownModelError
from lssgen.export.hub import Model, fetched_part
from lssgen.export.remote import REPOSITORY, near
from lssgen.models.configs import read_json
from lssgen.models.controlnets import PART, see_fit


def with_controlnet(model: Model, name: str) -> Model:
    """The model with a ControlNet.

    Args:
        model: The checkpoint that it was made for.
        name: A folder with the config.json of a ControlNet of diffusers, or with such a folder "controlnet"; or a hub
            id of either.

    Raises:
        UnknownModelError, FetchError: It is not there.
        ModelError: It was made for another model, or is damaged.
    """
    folder, commit = _folder(name)
    said = f"the ControlNet {name}"
    if read_json(folder / "config.json").get("_class_name") is None:
        raise ModelError(f"{said} has a config.json that does not say its class; give one that diffusers has written")
    checkpoint = model.checkpoint.with_part(PART, folder)
    own = checkpoint.config("vae")
    see_fit(
        checkpoint.config(PART),
        checkpoint.config(model.family.network),
        family=model.family.name,
        channels=int(own["latent_channels"]),
        cell_px=model.family.cell_px(own),
        said=said,
    )
    skeleton = nn.ModuleDict({PART: checkpoint.skeleton(PART, torch.float32)})
    checkpoint.weights((PART,)).fit(skeleton)
    note = f"The ControlNet is {name}{f' at {commit}' if commit else ''}."
    return replace(model, checkpoint=checkpoint, notes=(*model.notes, note))


def _folder(name: str) -> tuple[Path, str | None]:
    path = Path(name)
    if path.is_dir():
        for folder in (path / PART, path):
            if (folder / "config.json").is_file():
                return folder, None
        raise UnknownModelError(
            f"{path} has no config.json, and no {PART}/config.json, so it is not a ControlNet of diffusers"
        )
    remote = REPOSITORY.fullmatch(name)
    if path.is_file() or remote is None:
        raise UnknownModelError(
            f"there is no ControlNet {name}{near(name)}; give a folder in diffusers' layout, or a hub id (owner/name); "
            "single files are not read"
        )
    folder, commit = fetched_part(remote["repository"], PART, remote["revision"])
    if not (folder / "config.json").is_file():
        raise UnknownModelError(
            f"{name} has no config.json, and no {PART}/config.json; choose one in diffusers' layout"
        )
    return folder, commit
