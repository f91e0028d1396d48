"""From what a caller gives to a run that is known to be possible: the words, and the pictures beside them."""

from collections.abc import Sequence

from PIL import Image

from lssgen.bundle import Bundle
from lssgen.errors import PromptError
from lssgen.plan import make_plan
from lssgen.runtime.conditions import Pictures, see_pictures
from lssgen.runtime.options import STRENGTH, MakePlan, Options, Request, request_from_options
from lssgen.runtime.origin import Start, start_from
from lssgen.runtime.weighting import read_literally


def asked_run(
    bundle: Bundle,
    options: Options,
    init_image: Image.Image | None,
    mask_image: Image.Image | None,
    conditions: Pictures,
    make: MakePlan = make_plan,
) -> tuple[Request, Start | None]:
    """A run and the picture that it starts from, if any; `make` as for `request_from_options`.

    Raises:
        PlanError: The run cannot be carried out as asked.
        PromptError: A picture is missing, unknown, or cannot be used.
    """
    if init_image is not None and mask_image is None and options.get("strength") is None:
        options = {**options, "strength": STRENGTH}
    request = request_from_options(bundle, options, make)
    start = _start(bundle, request, init_image, mask_image)
    see_pictures(bundle.manifest, request, conditions, masked=start is not None and mask_image is not None)
    return request, start


def unheard(request: Request, prompts: Sequence[str]) -> list[str]:
    """Sentences about words of a run that have no effect."""
    said: list[str] = []
    if request.negative_prompt and "negative" not in request.branches:
        said.append("the negative prompt has no effect: guidance is off in this run")
    if literal := read_literally([*prompts, request.negative_prompt or ""], request.prompt_weighting):
        said.append(literal)
    return said


def _start(bundle: Bundle, request: Request, picture: Image.Image | None, mask: Image.Image | None) -> Start | None:
    if picture is None and (mask is not None or request.plan_options.strength < 1):
        raise PromptError("strength and mask_image belong to a picture to start from; give init_image")
    if picture is not None and "encode" not in bundle.manifest.graphs:
        raise PromptError(f"bundle {bundle.folder} has no graph 'encode', so no run can start from a picture")
    return None if picture is None else start_from(request.plan, picture, mask)
