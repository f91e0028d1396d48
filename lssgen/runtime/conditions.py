"""Pictures that condition a network (a control picture, a mask to inpaint), as its step takes them in every stage."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from lssgen.errors import PromptError
from lssgen.manifest import Manifest, Picture
from lssgen.plan import Plan
from lssgen.ports import Array
from lssgen.runtime.origin import as_mask, as_rgb
from lssgen.runtime.workspace import Workspace

Pictures = Mapping[str, Image.Image]
"""Pictures by the name that the manifest gives them."""


def see_pictures(manifest: Manifest, given: Pictures) -> None:
    """See that the pictures that the network takes are given, and no others.

    Raises:
        PromptError: Says which are missing or unknown.
    """
    wanted = {feed.name for feed in manifest.feeds(Picture) if isinstance(feed, Picture)}
    if set(given) != wanted:
        takes = f"takes the pictures {', '.join(sorted(wanted))}" if wanted else "takes no pictures besides init_image"
        came = ", ".join(sorted(given)) or "none"
        raise PromptError(f"{manifest.facts.name} {takes}; {came} came in conditions")


def condition_values(workspace: Workspace, plan: Plan, given: Pictures) -> dict[Picture, tuple[Array, ...]]:
    """What every picture feed of the step holds, stage by stage, each (1, ...)."""
    return {
        feed: tuple(_read(workspace, plan, stage, feed, given[feed.name]) for stage in range(len(plan.stages)))
        for feed in workspace.picture_feeds
    }


def _read(workspace: Workspace, plan: Plan, stage: int, feed: Picture, picture: Image.Image) -> Array:
    height, width = plan.stages[stage].height, plan.stages[stage].width
    if feed.read_as == "mask":
        # Cells average their pixels, so that a cell is 1 only where all of it is white.
        cells = ImageOps.fit(as_mask(picture), (width, height), Image.Resampling.BOX)
        return np.asarray(cells, np.float32)[None, None] / np.float32(255)
    size = (width * plan.cell_px, height * plan.cell_px)
    # Scaled anew for every stage, from the picture as given: what a smaller stage saw is never enlarged.
    fitted = np.asarray(ImageOps.fit(as_rgb(picture), size, Image.Resampling.LANCZOS))
    if feed.read_as == "latent":
        return workspace.encode(stage, fitted)[None]
    return (fitted.astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)[None]
