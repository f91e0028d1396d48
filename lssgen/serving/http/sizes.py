"""Sizes as OpenAI writes them, "1536x1024", and the nearest that a model can paint."""

import re

from lssgen.plan.options import MOST_SIDE_PX
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.status import ModelInfo

_SIZE = re.compile(r"([0-9]{1,6})[xX]([0-9]{1,6})")


def side_lengths(size: str | None, model: ModelInfo) -> tuple[int, int] | None:
    """(width, height) in pixels; None where the model's own is meant.

    Raises:
        HttpError: The text is not a size, or the sides are not multiples of the model's; says the nearest that are.
    """
    if size is None or size == "auto":
        return None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise _refusal(
            f"{size!r} is not a size; write WIDTHxHEIGHT in pixels, as in {model.width}x{model.height}, or auto"
        )
    width, height = int(found[1]), int(found[2])
    if not 1 <= min(width, height) <= max(width, height) <= MOST_SIDE_PX:
        raise _refusal(f"sides of {size} are not between 1 and {MOST_SIDE_PX:,} px")
    near = (_nearest(width, model.multiple), _nearest(height, model.multiple))
    if near != (width, height):
        raise other_size(width, height, *near, f"sides that are multiples of {model.multiple} px")
    return width, height


def other_size(width: int, height: int, near_width: int, near_height: int, wanted: str) -> HttpError:
    """A refusal that names a size that can be painted."""
    return _refusal(
        f"{width}x{height} cannot be painted, which needs {wanted}; the nearest is {near_width}x{near_height}"
    )


def _refusal(message: str) -> HttpError:
    return HttpError("invalid_size", message, param="size")


def _nearest(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple
