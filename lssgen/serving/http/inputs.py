"""Pictures that come with a request: as data URLs in JSON, as files in a form."""

import base64
import binascii
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lssgen.images import PictureError, as_mask, as_rgb, picture_from_bytes
from lssgen.serving.http.fields import Reference
from lssgen.serving.http.refusals import HttpError

MOST_PIXELS = 2**25
"""Pixels of the largest picture that is decoded, 100 MB."""

_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file as it came.

    Attributes:
        name: Field that it came in.
        data: Contents.
    """

    name: str
    data: bytes


def upload_from_reference(reference: Reference, name: str) -> Upload:
    """The picture of a data URL.

    Raises:
        HttpError: It is somewhere else, or is not base64.
    """
    if reference.file_id is not None:
        raise HttpError("not_supported", f"{name}: there is no store of files here; send image_url", param=name)
    if reference.image_url is None:
        raise HttpError("missing_field", f"{name}: image_url is needed", param=name)
    head = _DATA.match(reference.image_url)
    if head is None:
        raise HttpError(
            "not_supported",
            f'{name}: this server fetches nothing; send the picture itself, as "data:image/png;base64,..."',
            param=name,
        )
    try:
        return Upload(name, base64.b64decode(reference.image_url[head.end() :], validate=True))
    except (binascii.Error, ValueError) as error:
        raise HttpError("invalid_picture", f"{name} is not base64: {error}", param=name) from error


def picture_of(upload: Upload) -> Image.Image:
    """The picture to start from, as RGB.

    Raises:
        HttpError: It cannot be read.
    """
    try:
        return as_rgb(_decoded(upload))
    except PictureError as error:
        raise HttpError("invalid_picture", str(error), param=upload.name) from error


def mask_of(upload: Upload, size: tuple[int, int]) -> Image.Image:
    """The mask as grey: white where to paint.

    OpenAI's masks say it by transparency: what is transparent is painted. One without transparency is white where to
    paint.

    Args:
        upload: The file.
        size: (width, height) of the picture that it belongs to.

    Raises:
        HttpError: It cannot be read, or has another size.
    """
    mask = _decoded(upload)
    if mask.size != size:
        _refuse(
            upload.name,
            f"the mask is {mask.width} x {mask.height} px, the picture {size[0]} x {size[1]} px; both must have the "
            "same size",
        )
    if mask.has_transparency_data:
        alpha = np.asarray(mask.convert("RGBA").getchannel("A"))
        if (alpha < 255).any():
            return Image.fromarray(255 - alpha)
    try:
        return as_mask(mask)
    except PictureError as error:
        raise HttpError("invalid_picture", str(error), param=upload.name) from error


def _decoded(upload: Upload) -> Image.Image:
    try:
        return picture_from_bytes(upload.data, upload.name, most=MOST_PIXELS)
    except PictureError as error:
        raise HttpError("invalid_picture", str(error), param=upload.name) from error


def _refuse(name: str, message: str) -> Image.Image:
    raise HttpError("invalid_picture", message, param=name)
