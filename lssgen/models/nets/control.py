"""What a step takes besides what its family's does: a ControlNet with its picture, and what inpainting networks see.

A ControlNet is fused into the step's graph, see docs/control.md: its weights are the graph's, its picture an input like
any other, and its scale a column of the step's row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lssgen.errors import ModelError
from lssgen.manifest import Picture
from lssgen.models.controlnets import KINDS, PART
from lssgen.models.nets.recipe import Components
from lssgen.models.nets.step import Beside, Fed, per_picture
from lssgen.ports import Port

CONTROL, KEPT, MASK = "control", "kept", "mask"
"""Names of the pictures, and of their ports."""

Seen = Mapping[str, Tensor]
"""Pictures by name, (n, ...), n = branches * batch."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a step's row says to a ControlNet.

    Attributes:
        scale: (batch, 1, 1, 1) factor on what it adds.
        mode: (batch, modes) 1 for the kind of the control picture, else 0; no columns where it is told none.
    """

    scale: Tensor
    mode: Tensor


def control_columns(components: Components) -> int:
    """Columns of a step's row that are the ControlNet's; 0 where there is none."""
    if not components.has(PART):
        return 0
    config = components.config(PART)
    return 1 + KINDS[str(config["_class_name"])].modes(config)


def split_row(row: Tensor, columns: int) -> tuple[Tensor, Told | None]:
    """A row without the columns of the ControlNet, and what these say."""
    if not columns:
        return row, None
    own = row.shape[1] - columns
    return row[:, :own], Told(row[:, own].reshape(-1, 1, 1, 1), row[:, own + 1 :])


def beside(components: Components, inpainting: Sequence[Fed], reads: Literal["cells", "latent"], depth: int) -> Beside:
    """The pictures of a step, and the ControlNet that one of them is for.

    Args:
        components: The checkpoint.
        inpainting: Inputs of a network that inpaints; none where it does not.
        reads: Form in which the ControlNet takes its picture.
        depth: Number of channels of that form.
    """
    columns = control_columns(components)
    fed = [*inpainting, *([picture_fed(CONTROL, depth, reads)] if columns else [])]
    return Beside(components=(PART,) if columns else (), fed=tuple(fed), columns=columns)


def picture_fed(name: str, channels: int, reads: Literal["cells", "latent", "kept", "cell_mask"]) -> Fed:
    """A picture as an input of a step."""
    return Port(name, "float32", ("batch", channels, "height", "width")), Picture(name=name, read_as=reads)


def cell_px(components: Components) -> int:
    """Pixels along one side of a latent cell."""
    vae = components.config("vae")
    levels = vae.get("encoder_block_out_channels") or vae["block_out_channels"]
    return 2 ** (len(levels) - 1)


def control_of(components: Components) -> Any:
    """The ControlNet as diffusers builds it; None where there is none."""
    return components.module(PART) if components.has(PART) else None


def pictures_by_name(names: Sequence[str], given: Sequence[Tensor | None], branches: int) -> dict[str, Tensor]:
    """The pictures that a step was called with, for every branch."""
    return {
        name: per_picture(picture, branches) for name, picture in zip(names, given, strict=False) if picture is not None
    }


def from_cells(cells: Tensor) -> Tensor:
    """(n, 3 * p * p, height, width) pixels of cells as channels -> (n, 3, p * height, p * width), 0 to 1."""
    side = round((cells.shape[1] // 3) ** 0.5)
    return (F.pixel_shuffle(cells, side) + 1) / 2


def beside_unet(components: Components, net: Mapping[str, Any], channels: int) -> Beside:
    """What a UNet's step takes besides: see `beside`."""
    cell = cell_px(components)
    # In the order of its channels.
    inpainting = [picture_fed(MASK, cell * cell, "cell_mask"), picture_fed(KEPT, channels, "kept")]
    return beside(components, inpainting if int(net["in_channels"]) > channels else [], "cells", 3 * cell * cell)


def with_mask(x: Tensor, pictures: Seen) -> Tensor:
    """What a UNet sees: the latent, and for one that inpaints the mask and the picture that is kept beside it.

    Of a cell's mask, its first pixel counts.

    Source: diffusers' StableDiffusionInpaintPipeline, which scales the mask to the latent's size by the nearest pixel.
    """
    if MASK not in pictures:
        return x
    return torch.cat((x, pictures[MASK][:, :1], pictures[KEPT]), 1)


def refuse_unknown_channels(channels: int, latent: int) -> None:
    """Raise ModelError if a UNet takes neither a latent nor what an inpainting one does."""
    if channels not in (latent, 2 * latent + 1):
        raise ModelError(
            f"the unet takes {channels} channels; export knows {latent} and, for inpainting, {2 * latent + 1}: "
            "choose such a checkpoint"
        )
