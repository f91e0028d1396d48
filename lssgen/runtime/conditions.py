"""Pictures that condition a network (a control picture, a mask to inpaint), as its step takes them in every stage."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from lssgen.errors import PlanError, PromptError
from lssgen.manifest import Manifest, Picture
from lssgen.plan import Plan
from lssgen.ports import Array
from lssgen.runtime.options import Request
from lssgen.runtime.origin import Start, as_mask, as_rgb, painted_pixels
from lssgen.runtime.workspace import Workspace

Pictures = Mapping[str, Image.Image]
"""Pictures by the name that the manifest gives them."""


CONTROL = "control"
"""Name of the picture that a ControlNet reads."""

OF_START = ("kept", "cell_mask")
"""Ways of reading that take the picture and the mask that a run starts from."""


def see_pictures(manifest: Manifest, request: Request, given: Pictures, *, masked: bool) -> None:
    """See that the pictures that the network takes are given, and no others, and that they fit the run.

    Args:
        manifest: Says which it takes.
        request: The run.
        given: Pictures beside the one that it starts from.
        masked: True where it starts from a picture and has a mask.

    Raises:
        PromptError: Says which are missing, unknown or of another shape.
        PlanError: The kind of the control picture is not said.
    """
    feeds = [feed for feed in manifest.feeds(Picture) if isinstance(feed, Picture)]
    wanted = {feed.name for feed in feeds if feed.read_as not in OF_START}
    model = manifest.facts.name
    if CONTROL in given and CONTROL not in wanted:
        raise PromptError(f"{model} has no ControlNet, so a control picture has no effect: export it with --controlnet")
    if manifest.facts.control is not None and CONTROL not in given and _uncontrolled(request.plan):
        wanted.discard(CONTROL)
    if set(given) != wanted:
        takes = f"takes the pictures {', '.join(sorted(wanted))}" if wanted else "takes no pictures besides init_image"
        came = ", ".join(sorted(given)) or "none"
        raise PromptError(f"{model} {takes}; {came} came in conditions")
    if not masked and any(feed.read_as in OF_START for feed in feeds):
        raise PromptError(
            f"{model} is made for inpainting and paints where a mask is white: give a picture and its mask, init_image "
            "and mask_image"
        )
    if CONTROL in given:
        _see_control(manifest, request, given[CONTROL])


def _uncontrolled(plan: Plan) -> bool:
    """Whether the control picture is off in every step."""
    return not any(step.control[0] for stage in plan.stages for step in stage.steps if step.control)


def _see_control(manifest: Manifest, request: Request, picture: Image.Image) -> None:
    plan, known = request.plan, manifest.facts.control
    if known is not None and known.modes and request.plan_options.control_mode is None:
        raise PlanError(
            f"{manifest.facts.name} has a union ControlNet, which must know what the control picture shows: give "
            f"control_mode, 0 to {known.modes - 1} (--control-mode)"
        )
    # As one pixel of the picture counts: other shapes would be cut off or stretched, and steer to the wrong places.
    if abs(picture.width * plan.height_px - picture.height * plan.width_px) > plan.width_px:
        raise PromptError(
            f"the control picture is {picture.width} x {picture.height} px, of another shape than the run's "
            f"{plan.width_px} x {plan.height_px} px: cut it to that shape, or paint at its own"
        )


def condition_values(
    workspace: Workspace, plan: Plan, given: Pictures, start: Start | None = None
) -> dict[Picture, tuple[Array, ...]]:
    """What every picture feed of the step holds, stage by stage, each (1, ...); of those only that have a picture."""
    return {
        feed: tuple(_read(workspace, plan, stage, feed, given, start) for stage in range(len(plan.stages)))
        for feed in workspace.picture_feeds
        if (start is not None if feed.read_as in OF_START else feed.name in given)
    }


def _read(workspace: Workspace, plan: Plan, stage: int, feed: Picture, given: Pictures, start: Start | None) -> Array:
    height, width = plan.stages[stage].height, plan.stages[stage].width
    size = (width * plan.cell_px, height * plan.cell_px)
    if feed.read_as in OF_START:
        assert start is not None, "condition_values has left it out"
        painted = painted_pixels(start, size)
        if feed.read_as == "cell_mask":
            return as_cells(painted[None].astype(np.float32), plan.cell_px)[None]
        picture = np.asarray(start.picture.resize(size, Image.Resampling.LANCZOS))
        return workspace.encode(stage, picture, kept=~painted)[None]
    picture = given[feed.name]
    if feed.read_as == "mask":
        # Cells average their pixels, so that a cell is 1 only where all of it is white.
        cells = ImageOps.fit(as_mask(picture), (width, height), Image.Resampling.BOX)
        return np.asarray(cells, np.float32)[None, None] / np.float32(255)
    # Scaled anew for every stage, from the picture as given: what a smaller stage saw is never enlarged.
    fitted = np.asarray(ImageOps.fit(as_rgb(picture), size, Image.Resampling.LANCZOS))
    if feed.read_as == "latent":
        return workspace.encode(stage, fitted)[None]
    pixels = (fitted.astype(np.float32) / np.float32(127.5) - 1).transpose(2, 0, 1)
    return (as_cells(pixels, plan.cell_px) if feed.read_as == "cells" else pixels)[None]


def as_cells(pixels: Array, side: int) -> Array:
    """(c, height, width) pixels -> (c * side * side, height / side, width / side), as torch's pixel_unshuffle."""
    channels, height, width = pixels.shape
    cut = pixels.reshape(channels, height // side, side, width // side, side)
    return cut.transpose(0, 2, 4, 1, 3).reshape(-1, height // side, width // side)
