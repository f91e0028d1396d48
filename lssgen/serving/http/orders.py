"""Requests as they are carried out: fields and pictures of HTTP become what the engine room is asked."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, cast

import msgspec
from PIL import Image

from lssgen.runtime.conditions import CONTROL
from lssgen.runtime.options import Options
from lssgen.serving.api import ImageRequest
from lssgen.serving.http.fields import RUN_WORDS, Common, Edit, EditForm, Form, Format, Generation, VariationForm
from lssgen.serving.http.inputs import Upload, mask_of, picture_of, upload_from_reference
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.qualities import QUALITIES, words_of
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.http.sizes import side_lengths
from lssgen.serving.status import ModelInfo

Route = Literal["generations", "edits", "variations"]

FIDELITY: Mapping[str, float] = {"high": 0.5, "low": 0.85}
"""`strength` of an edit without a mask, by OpenAI's `input_fidelity`; neither is given: the runtime's own."""

VARIATION_STRENGTH = 0.85
"""`strength` of a variation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it came, whole: what a journal keeps.

    Attributes:
        route: Place that it was sent to.
        fields: Its fields.
        images, mask: Its pictures; a control picture among them, by the name of its field.
        draft: True where only the first stage is painted, for the caller to choose from.
        keep: Numbers of the pictures of that draft that are finished; empty: it is the draft itself, or none.
    """

    route: Route
    fields: Generation | EditForm | VariationForm
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None
    draft: bool = False
    keep: tuple[int, ...] = ()

    def digest(self) -> str:
        """SHA-256 of all of it: two requests of one digest ask for the same."""
        whole = sha256(f"{self.route} {self.draft} {self.keep} ".encode() + msgspec.json.encode(self.fields))
        for upload in (*self.images, *([self.mask] if self.mask else [])):
            whole.update(f" {upload.name} {len(upload.data)} ".encode() + upload.data)
        return whole.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request, understood.

    Attributes:
        asked: Request as it came, with the seed that was drawn where it had none.
        room: Request to the engine room; of one that finishes a draft, the draft.
        size: (width, height) in pixels that were asked for; None: the model's own.
        pixels: Pixels of all pictures.
        quality: Name of the schedule.
        form, compression: File format, and quality of jpeg and webp.
        respond: Way of the pictures to the client.
        partials: Most previews of a picture.
    """

    asked: Asked
    room: ImageRequest
    size: tuple[int, int] | None
    pixels: int
    quality: str
    form: Format
    compression: int | None
    respond: Form
    partials: int

    def without_pictures(self) -> "Order":
        """What is remembered of it once the room has it: a decoded picture is a hundred times its file."""
        asked = replace(self.asked, images=(), mask=None)
        return replace(self, asked=asked, room=self.room.without_pictures())


CONTROL_IMAGE = "control_image"
"""Field of the control picture."""


def asked_generation(fields: Generation, *, draft: bool = False) -> Asked:
    """A generation whose control picture, if any, is in its JSON.

    Raises:
        HttpError: It is not a picture.
    """
    given = fields.control_image
    images = () if given is None else (upload_from_reference(given, CONTROL_IMAGE),)
    # Out of the fields: these are what is noted and told of a job.
    plain = fields if given is None else msgspec.structs.replace(fields, control_image=None)
    return Asked(route="generations", fields=plain, images=images, draft=draft)


def asked_edit(fields: Edit) -> Asked:
    """An edit whose pictures are in its JSON.

    Raises:
        HttpError: They are not pictures.
    """
    images = tuple(upload_from_reference(one, f"images[{index}]") for index, one in enumerate(fields.images))
    mask = upload_from_reference(fields.mask, "mask") if fields.mask else None
    plain = {name: getattr(fields, name) for name in EditForm.__struct_fields__}
    return Asked(route="edits", fields=EditForm(**plain), images=images, mask=mask)


def order_from(asked: Asked, model: ModelInfo, steps: int, limits: Limits) -> Order:
    """Understand a request. Decodes its pictures, so it takes its time.

    Args:
        asked: As it came.
        model: The one that it names.
        steps: Number of steps that the model takes of itself.
        limits: What is taken.

    Raises:
        HttpError: It makes no sense, or cannot be done.
    """
    fields = asked.fields
    _refuse_unsupported(asked, model)
    for name in ("prompt", "negative_prompt"):
        if len(text := getattr(fields, name) or "") > limits.max_prompt:
            raise HttpError(
                "invalid_value",
                f"{name} has {len(text):,} characters; up to {limits.max_prompt:,} are taken",
                param=name,
            )
    if fields.seed is None:
        asked = replace(asked, fields=msgspec.structs.replace(fields, seed=secrets.randbelow(2**32)))
        fields = asked.fields
    start, mask = _pictures(asked)
    steering = [picture_of(one) for one in asked.images if one.name == CONTROL_IMAGE]
    size = side_lengths(fields.size, model)
    width, height = size or (model.width, model.height)
    n, schedule = fields.n or 1, QUALITIES[fields.quality or "auto"]
    options = words_of(schedule, steps, _options(fields, asked, mask is not None))
    if size:
        options.update(width=width, height=height)
    form = fields.output_format or "png"
    partials = fields.partial_images or 0
    room = ImageRequest(
        prompt=fields.prompt or "",
        model=fields.model or "",
        n=n,
        options=options,
        init_image=start,
        mask_image=mask,
        conditions=dict(zip([CONTROL], steering, strict=False)),
        deadline_ms=None if asked.keep else fields.deadline_ms,
        max_latency_ms=None if asked.keep else fields.max_latency_ms,
        previews=partials > 0,
        draft=asked.draft,
    )
    return Order(
        asked=asked,
        room=room,
        size=size,
        pixels=(len(asked.keep) or n) * width * height,
        quality=schedule.name,
        form=form,
        compression=fields.output_compression,
        respond=fields.response_format or "b64_json",
        partials=partials,
    )


def at_size_of_its_picture(order: Order, model: ModelInfo) -> Order | None:
    """The order at the size of the picture that it starts from, where no size was asked for and sides fit the model.

    Whether every stage fits is for the engine room to say.
    """
    start = order.room.init_image
    if start is None or order.size or start.width % model.multiple or start.height % model.multiple:
        return None
    options = cast(Options, {**order.room.options, "width": start.width, "height": start.height})
    pixels = order.room.n * start.width * start.height
    return replace(order, room=replace(order.room, options=options), size=start.size, pixels=pixels)


def _refuse_unsupported(asked: Asked, model: ModelInfo) -> None:
    """Refuse what is in OpenAI's interface and cannot be done here, instead of passing over it."""
    fields = asked.fields
    if fields.background == "transparent":
        raise HttpError("not_supported", "pictures have no transparency here; leave background out", param="background")
    if fields.style is not None:
        raise HttpError("not_supported", "style belongs to dall-e-3; say it in the prompt", param="style")
    if fields.output_compression not in (None, 100) and (fields.output_format or "png") == "png":
        message = "png loses nothing, so it has no output_compression; choose jpeg or webp for output_format"
        raise HttpError("invalid_value", message, param="output_compression")
    if asked.route != "generations" and not model.starts:
        raise HttpError("not_supported", f"model {model.name} cannot start from a picture", param="model")
    if len(starts := _starts(asked)) > 1:
        message = f"{len(starts)} pictures were sent; a run starts from one"
        raise HttpError("not_supported", message, param="image")
    if asked.route != "generations" and not starts:
        raise HttpError("missing_field", "image is needed", param="image")


def _starts(asked: Asked) -> list[Upload]:
    """Pictures to start from."""
    return [one for one in asked.images if one.name != CONTROL_IMAGE]


def _pictures(asked: Asked) -> tuple[Image.Image | None, Image.Image | None]:
    if not (starts := _starts(asked)):
        return None, None
    picture = picture_of(starts[0])
    return picture, mask_of(asked.mask, picture.size) if asked.mask else None


def _options(fields: Common, asked: Asked, masked: bool) -> Options:
    """The words of a run that the request gives."""
    given: dict[str, Any] = {name: value for name in RUN_WORDS if (value := getattr(fields, name, None)) is not None}
    given["seed"] = fields.seed
    fidelity = getattr(fields, "input_fidelity", None)
    if "strength" not in given and fidelity and not masked:
        given["strength"] = FIDELITY[fidelity]
    if "strength" not in given and asked.route == "variations":
        given["strength"] = VARIATION_STRENGTH
    return cast(Options, given)
