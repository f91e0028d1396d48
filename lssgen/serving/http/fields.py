"""Fields of the requests: OpenAI's Images API, and beside it what a run of ours may be asked, in diffusers' words.

A field that is not known is refused by its name. null counts as not given, as it does for OpenAI.
"""

import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from lssgen.jsons import JsonError, convert_json, decode_json
from lssgen.plan.facts import ScalingSpace
from lssgen.serving.http.refusals import HttpError

MOST_PROMPT = 32_000
"""Characters of a prompt that OpenAI takes. The engine room takes fewer, and says so itself."""

MOST_PICTURES, MOST_PREVIEWS, MOST_INPUTS = 10, 3, 16
"""Pictures of a request, previews of each, and pictures that an edit may be given."""

LONGEST_WAIT_MS = 86_400_000
"""Milliseconds of the longest deadline, a day."""

Text = Annotated[str, Meta(min_length=1, max_length=MOST_PROMPT)]
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
Format = Literal["png", "jpeg", "webp"]
Form = Literal["url", "b64_json"]
Milliseconds = Annotated[int, Meta(ge=1, le=LONGEST_WAIT_MS)]
Number = Annotated[float, Meta(ge=-10_000, le=10_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Side = Annotated[int, Meta(ge=1, le=65_536)]


class Common(Struct, kw_only=True, forbid_unknown_fields=True):
    """What every request may say.

    The first block is OpenAI's, the second ours. `seed`, `num_inference_steps` and so on are explained by
    `lssgen.runtime.options.Options`.

    Attributes:
        model: Name of a bundle, or of one with a style: "sd3@style". None: the first that the server has.
        n: Number of pictures; picture i is painted with seed + i.
        size: "WIDTHxHEIGHT" in pixels, or "auto" for the bundle's own.
        quality: Name of a schedule, see `lssgen.serving.http.qualities`.
        response_format: Way of the pictures to the client.
        output_format: File format of the pictures.
        output_compression: Quality of jpeg and webp in percent.
        background: "opaque" or "auto"; "transparent" cannot be painted.
        moderation: Accepted and without effect: what is looked at is the owner's choice (`--checker`).
        stream: Answer with server-sent events.
        partial_images: Number of previews that a stream sends before the picture.
        style: Accepted as null only; it belongs to dall-e-3.
        user: Name of the end user; noted in the log, as a hash.
        deadline_ms: Time from now by which the pictures must be there; the request is refused at once where they cannot
            be.
        max_latency_ms: Time that the run may take; the best schedule that fits is chosen.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_PICTURES)] | None = None
    size: Annotated[str, Meta(min_length=1, max_length=32)] | None = None
    quality: Quality | None = None
    response_format: Form | None = None
    output_format: Format | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    moderation: Literal["low", "auto"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Meta(ge=0, le=MOST_PREVIEWS)] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None

    negative_prompt: Annotated[str, Meta(max_length=MOST_PROMPT)] | None = None
    prompt_weighting: Literal["none", "a1111", "comfyui"] | None = None
    seed: Annotated[int, Meta(ge=0)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    guidance_scale: Number | None = None
    true_cfg_scale: Number | None = None
    cfg_truncation: Share | None = None
    guidance_rescale: Share | None = None
    start_sigma: Annotated[float, Meta(gt=0, le=1)] | Literal["auto"] | None = None
    hand_off: Annotated[float, Meta(ge=0, lt=1)] | Literal["own", "auto"] | None = None
    noise_field: Literal["stage", "picture"] | None = None
    min_resolution: Side | None = None
    shorten: bool | None = None
    scaling_space: ScalingSpace | None = None
    solver: Annotated[str, Meta(max_length=64)] | None = None
    timestep_spacing: Literal["own", "leading", "trailing", "linspace"] | None = None
    sigma_schedule: Literal["own", "default", "karras", "exponential", "beta"] | None = None
    eta: Share | None = None
    cached_steps: Annotated[str, Meta(max_length=10_000)] | None = None
    cache_order: Literal[0, 1] | None = None
    controlnet_conditioning_scale: Number | None = None
    control_guidance_start: Share | None = None
    control_guidance_end: Share | None = None
    control_mode: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    deadline_ms: Milliseconds | None = None
    max_latency_ms: Milliseconds | None = None


RUN_WORDS = (
    "negative_prompt",
    "prompt_weighting",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "cfg_truncation",
    "guidance_rescale",
    "start_sigma",
    "hand_off",
    "noise_field",
    "min_resolution",
    "shorten",
    "scaling_space",
    "solver",
    "timestep_spacing",
    "sigma_schedule",
    "eta",
    "cached_steps",
    "cache_order",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "control_mode",
    "strength",
)
"""Fields that are handed to the run as they are, by the same name."""


class Reference(Struct, kw_only=True, forbid_unknown_fields=True):
    """A picture within a JSON body.

    Attributes:
        image_url: The picture itself, as "data:image/png;base64,...". Other addresses are not fetched.
        file_id: Not supported; there is no store of files.
    """

    image_url: str | None = None
    file_id: str | None = None


class Generation(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/images/generations, and /v1/jobs.

    Attributes:
        control_image: Picture that steers the run, for bundles with a ControlNet.
    """

    prompt: Text
    control_image: Reference | None = None


class JobFields(Generation, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/jobs.

    Attributes:
        draft: Paint the first stage only, for the caller to choose from; /v1/jobs/ID/refine finishes what is liked.
    """

    draft: bool | None = None


class Refinement(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/jobs/ID/refine.

    Attributes:
        keep: Numbers of the draft's pictures that are finished, counted from 0.
    """

    keep: Annotated[list[Annotated[int, Meta(ge=0, lt=MOST_PICTURES)]], Meta(min_length=1, max_length=MOST_PICTURES)]


class Edit(Common, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/images/edits, as JSON.

    Attributes:
        images: The picture to start from; one.
        mask: Picture of the same size; what is transparent in it is painted, or what is white where it has no
            transparency.
        input_fidelity: "high" stays nearer to the picture than "low"; `strength` says it exactly.
        strength: Distance to go from the picture, in (0, 1].
    """

    prompt: Text
    images: Annotated[list[Reference], Meta(min_length=1, max_length=MOST_INPUTS)]
    mask: Reference | None = None
    input_fidelity: Literal["high", "low"] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None


class EditForm(Common, kw_only=True, forbid_unknown_fields=True):
    """The fields of POST /v1/images/edits as a form, without its pictures."""

    prompt: Text
    input_fidelity: Literal["high", "low"] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None


class VariationForm(Common, kw_only=True, forbid_unknown_fields=True):
    """The fields of POST /v1/images/variations, without its picture."""

    prompt: Annotated[str, Meta(max_length=MOST_PROMPT)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None


T = TypeVar("T", bound=Struct)

_AT = re.compile(r" - at `\$\.?([^`\[.]*)[^`]*`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`")


def fields_from_json(body: bytes, kind: type[T]) -> T:
    """The fields of a JSON body.

    Raises:
        HttpError: It is not JSON, or not these fields.
    """
    return _decoded(lambda: decode_json(body, kind), kind)


def fields_from_form(values: dict[str, str], kind: type[T]) -> T:
    """The fields of a form, whose values are text: "4" where a number is wanted is one.

    Raises:
        HttpError: They are not these fields.
    """
    given = {name: value for name, value in values.items() if value != ""}
    return _decoded(lambda: _from_text(given, kind), kind)


def _from_text(values: dict[str, str], kind: type[T]) -> T:
    try:
        return msgspec.convert(values, kind, strict=False)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise JsonError(str(error)) from error


def restored(values: dict[str, Any], kind: type[T]) -> T:
    """Fields that were written down by `msgspec.to_builtins`.

    Raises:
        JsonError: They are not these fields.
    """
    return convert_json(values, kind)


def _decoded(read: Any, kind: type[Struct]) -> Any:
    try:
        return read()
    except JsonError as error:
        raise _refusal(error, kind) from error


def _refusal(error: JsonError, kind: type[Struct]) -> HttpError:
    """What the decoder says, with the name of the field in a place of its own."""
    said = str(error.__cause__ or error)
    at = _AT.search(said)
    if found := _UNKNOWN.search(said):
        return _unknown(found[1], at[1] if at else "", kind)
    if found := _MISSING.search(said):
        inside = f" of {at[1]}" if at and at[1] else ""
        return HttpError("missing_field", f"{found[1]}{inside} is needed", param=at[1] if at and at[1] else found[1])
    if at is None or not isinstance(error.__cause__, msgspec.ValidationError):
        if said.startswith("Expected `object`"):
            return HttpError("wrong_type", 'send a JSON object, as in {"prompt": "a lighthouse at dusk"}')
        return HttpError("invalid_json", f"the body {_short(str(error))}")
    what = _short(_AT.sub("", said))
    code = "wrong_type" if re.match(r"Expected `[^`]*`, got", what) else "invalid_value"
    return HttpError(code, f"{at[1]}: {what[0].lower()}{what[1:]}", param=at[1])


def _unknown(name: str, inside: str, kind: type[Struct]) -> HttpError:
    known = kind.__struct_fields__
    near = get_close_matches(name, known, 1)
    advice = f"did you mean {near[0]}?" if near and not inside else f"there are {', '.join(known)}"
    if inside:
        advice = f"it stands in {inside}"
    return HttpError("unknown_field", f"{_short(repr(name))} is not a field; {advice}", param=name[:64])


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."
