"""Reference pictures: what an editing model sees beside the picture that it paints, each at its own size."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from PIL import Image

from lssgen.errors import PromptError
from lssgen.manifest import Manifest, References
from lssgen.ports import Array
from lssgen.runtime.origin import as_rgb
from lssgen.runtime.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Seen:
    """Reference pictures as the step takes them.

    Attributes:
        tokens: (n, C * patch * patch) float32 squares of latent cells, picture after picture, row by row.
        places: (n, 3) int64: number of the picture, from 1, and row and column of the token in it.
    """

    tokens: Array
    places: Array


def see_references(manifest: Manifest, given: Sequence[object]) -> tuple[Image.Image, ...]:
    """The reference pictures, at the sizes at which they are seen.

    Raises:
        PromptError: The model sees none, or not so many; or one is not a picture, is too small, or too long and thin.
    """
    if not given:
        return ()
    rules, name = manifest.references, manifest.facts.name
    if rules is None:
        raise PromptError(
            f"{name} sees no reference pictures; leave them out, or export a model that edits with --references"
        )
    if len(given) > rules.most:
        raise PromptError(f"{len(given)} reference pictures came; {name} sees up to {rules.most}")
    return tuple(_fitted(picture, rules, number) for number, picture in enumerate(given, start=1))


def read_references(workspace: Workspace, rules: References, pictures: Sequence[Image.Image]) -> Seen:
    """Encode reference pictures, which `see_references` has fitted."""
    tokens: list[Array] = []
    places: list[Array] = []
    for number, picture in enumerate(pictures, start=1):
        latent = workspace.encode_alone(np.asarray(picture))
        channels, rows, columns = latent.shape[0], latent.shape[1] // rules.patch, latent.shape[2] // rules.patch
        squares = latent.reshape(channels, rows, rules.patch, columns, rules.patch).transpose(1, 3, 0, 2, 4)
        tokens.append(squares.reshape(rows * columns, -1))
        grid = np.indices((rows, columns)).reshape(2, -1).T
        places.append(np.concatenate((np.full((len(grid), 1), number), grid), 1))
    return Seen(np.concatenate(tokens), np.concatenate(places).astype(np.int64))


def _fitted(picture: object, rules: References, number: int) -> Image.Image:
    """A picture made smaller where it is too large, and cut to whole tokens around its middle.

    Source: diffusers' Flux2ImageProcessor and the pipelines that call it.
    """
    if not isinstance(picture, Image.Image):
        raise PromptError(
            f"reference {number} is a {type(picture).__name__}; it must be a picture: PIL.Image.open(...)"
        )
    image, (width, height) = as_rgb(picture), picture.size
    if min(width, height) < rules.least_side_px:
        raise PromptError(
            f"reference {number} is {width} x {height} px; each side needs at least {rules.least_side_px}: enlarge it"
        )
    if max(width, height) > rules.most_aspect * min(width, height):
        raise PromptError(
            f"reference {number} is {width} x {height} px, longer than {rules.most_aspect:g} times its width: crop it"
        )
    if width * height > rules.most_px:
        scale = sqrt(rules.most_px / (width * height))
        width, height = int(width * scale), int(height * scale)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    whole = (width // rules.unit_px * rules.unit_px, height // rules.unit_px * rules.unit_px)
    left, top = (width - whole[0]) // 2, (height - whole[1]) // 2
    return image.crop((left, top, left + whole[0], top + whole[1]))
