"""Pictures to start from: reading, fitting to the run's size, masks, and putting the untouched part back."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lssgen import images
from lssgen.errors import PromptError
from lssgen.plan import Plan
from lssgen.runtime.sampler import Origin
from lssgen.runtime.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Start:
    """A picture to start from, at the size of the run.

    Attributes:
        picture: RGB.
        repaint: (height_px, width_px) in [0, 1]: 1 where the picture may change, 0 where it stays. Between the two, the
            painted and the given pixels are mixed at the end.
    """

    picture: Image.Image
    repaint: NDArray[np.float32]


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, turned as its camera says; see `lssgen.images`.

    Raises:
        PromptError: The file cannot be read as a picture.
    """
    with _as_prompt_errors():
        return images.read_picture(path)


def read_mask(path: Path) -> Image.Image:
    """Read a mask as grey, white where to paint.

    Raises:
        PromptError: The file cannot be read as a picture, or is drawn in its transparency.
    """
    with _as_prompt_errors():
        return images.read_mask(path)


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any kind as RGB.

    Raises:
        PromptError: Its pixels are not levels of grey or colour.
    """
    with _as_prompt_errors():
        return images.as_rgb(picture)


def as_mask(picture: Image.Image) -> Image.Image:
    """A mask of any kind as grey.

    Raises:
        PromptError: Its pixels are not levels of grey or colour, or it is drawn in its transparency.
    """
    with _as_prompt_errors():
        return images.as_mask(picture)


@contextmanager
def _as_prompt_errors() -> Generator[None]:
    try:
        yield
    except images.PictureError as error:
        raise PromptError(str(error)) from error


def start_from(plan: Plan, picture: Image.Image, mask: Image.Image | None) -> Start:
    """Fit a picture and its mask to the run: scaled to cover the size, the same amount cut off both ends.

    Args:
        plan: Says the size.
        picture: What to start from.
        mask: White where it may change, black where it stays; None: all of it may change.

    Raises:
        PromptError: The mask has another size than the picture, or is black all over, or is drawn in its
            transparency; or one of them has pixels that are not levels of grey or colour.
    """
    size = (plan.width_px, plan.height_px)
    fitted = ImageOps.fit(as_rgb(picture), size, Image.Resampling.LANCZOS)
    if mask is None:
        return Start(fitted, np.ones((plan.height_px, plan.width_px), np.float32))
    if mask.size != picture.size:
        raise PromptError(
            f"the mask is {mask.width} x {mask.height} px, the picture it belongs to {picture.width} x "
            f"{picture.height} px; both must have the same size"
        )
    # BOX and not LANCZOS, which rings: pixels that should stay, next to the mask's edge, would get shares above 0.
    repaint = np.asarray(ImageOps.fit(as_mask(mask), size, Image.Resampling.BOX), np.float32)
    repaint /= np.float32(255)
    if not repaint.any():
        raise PromptError("the mask is black all over, so nothing would be painted; white is where to paint")
    return Start(fitted, repaint)


def painted_pixels(start: Start, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(height, width) of a stage of that (width, height): True where a network that inpaints is told to paint.

    At the run's size that is where the mask is at least half white, as in diffusers. In a smaller stage a pixel is
    painted if any of those that it stands for is: what is thin does not vanish.
    """
    at_full = start.repaint >= 0.5
    rows, columns = at_full.shape[0] // size[1], at_full.shape[1] // size[0]
    painted: NDArray[np.bool_] = np.any(at_full.reshape(size[1], rows, size[0], columns), axis=(1, 3))
    return painted


def origin_of(workspace: Workspace, plan: Plan, start: Start) -> Origin:
    """Encode the picture at every stage's size. A cell stays only if all of its pixels stay.

    Networks that inpaint see the mask themselves, as in diffusers: nothing is put back into their latents.
    """
    latents: list[NDArray[np.float32]] = []
    kept: list[NDArray[np.float32]] = []
    for index, stage in enumerate(plan.stages):
        size = (stage.width * plan.cell_px, stage.height * plan.cell_px)
        picture = start.picture.resize(size, Image.Resampling.LANCZOS)
        latents.append(workspace.encode(index, np.asarray(picture)))
        # Blocks of the mask itself and not a smaller mask, whose averages would round a few painted pixels to 0.
        cells = start.repaint.reshape(stage.height, plan.height_px // stage.height, stage.width, -1)
        stays = (cells.max((1, 3)) == 0) & (not workspace.inpaints)
        kept.append(stays.astype(np.float32))
    return Origin(latents=tuple(latents), kept=tuple(kept))


def pasted(painted: NDArray[np.uint8], start: Start) -> NDArray[np.uint8]:
    """(height, width, 3) painted pixels where the picture may change, given ones where it stays."""
    share = start.repaint[..., None]
    mixed = share * painted.astype(np.float32) + (1 - share) * np.asarray(start.picture, np.float32)
    # astype alone would cut off, which darkens what is mixed by half a level.
    return np.rint(mixed).astype(np.uint8)
