"""Pictures that somebody else made, read with care: the one reader of the runtime and of training.

Read are PNG, JPEG, WebP, BMP and TIFF, up to `MOST_PIXELS`. Sixteen bits of grey keep their levels, and a picture is
turned as its camera says.
"""

from collections.abc import Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageOps

from lssgen.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
"""Formats that are read. Pillow knows forty more, whose decoders nobody needs here."""

MOST_PIXELS = 89 * 10**6
"""Pixels of the largest picture that is decoded, 0.3 GB; above it Pillow itself warns of a bomb."""

_MILLIONS = MOST_PIXELS // 10**6

ORIENTATION, TURNED = 0x0112, 5
"""The EXIF tag for how a camera was held; values from 5 on exchange width and height."""


class PictureError(Exception):
    """A picture that cannot be used. The message says which and why."""


@contextmanager
def open_picture(path: Path) -> Generator[Image.Image]:
    """Open a picture; only its header is read yet.

    Raises:
        PictureError: It is not an ordinary file, not a picture of a format that is read, damaged, or too large. What is
            found damaged within the block raises this too.
    """
    with _read_with_care(str(path)), open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        _see_size(image, str(path), MOST_PIXELS)
        yield image


def picture_from_bytes(data: bytes, name: str, *, most: int = MOST_PIXELS) -> Image.Image:
    """A picture out of memory, decoded, turned as its camera says; its transparency is still there.

    Args:
        data: Contents of a file.
        name: Name for messages, after the word "picture".
        most: Largest number of pixels.

    Raises:
        PictureError: It is not a picture of a format that is read, damaged, or too large.
    """
    with _read_with_care(name), Image.open(BytesIO(data), formats=FORMATS) as image:
        _see_size(image, name, most)
        image.load()
        return ImageOps.exif_transpose(image)


@contextmanager
def _read_with_care(name: str) -> Generator[None]:
    """Whatever is raised within it while a picture is read, as `PictureError`."""
    try:
        yield
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"picture {name} has too many pixels; up to {_MILLIONS} million are read") from error
    except OSError as error:
        reason = error.strerror or _plainly(error)
        raise PictureError(f"picture {name} cannot be read: {reason}") from error
    except Exception as error:  # of a damaged file, Pillow's formats raise SyntaxError, ValueError and more
        raise PictureError(f"picture {name} cannot be read: {str(error) or type(error).__name__}") from error


def read_picture(path: Path) -> Image.Image:
    """Read a picture as RGB, turned as its camera says. What is transparent has the colour that is under it.

    Raises:
        PictureError: It cannot be read, or its pixels are not levels of grey or colour.
    """
    with open_picture(path) as image:
        return as_rgb(ImageOps.exif_transpose(image))


def read_mask(path: Path) -> Image.Image:
    """Read a mask as grey, turned as its camera says.

    Raises:
        PictureError: It cannot be read, or is drawn in the transparency; see `as_mask`.
    """
    with open_picture(path) as image:
        return as_mask(ImageOps.exif_transpose(image))


def upright_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture, turned as its camera says; reads its header only.

    Raises:
        PictureError: It cannot be read.
    """
    with open_picture(path) as image:
        width, height = image.size
        # 1, upright, where a picture says nothing.
        return (height, width) if image.getexif().get(ORIENTATION, 1) >= TURNED else (width, height)


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any kind as RGB.

    Raises:
        PictureError: Its pixels are not levels of grey or colour.
    """
    return _eight_bits(picture).convert("RGB")


def as_mask(picture: Image.Image) -> Image.Image:
    """A mask of any kind as grey: white is where to paint.

    Raises:
        PictureError: Its pixels are not levels of grey or colour; or a part of it is transparent, and whether that part
            or the other is meant cannot be told: editors draw masks both ways.
    """
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        # Many programs write an alpha channel that is opaque all over: such a mask is as good as one without.
        if cast(tuple[int, int], alpha.getextrema())[0] < 255:
            raise PictureError(
                "the mask is transparent in places, which may mean either side; give one without transparency, white "
                "where to paint and black elsewhere (flatten it onto black if white is what you drew)"
            )
    return _eight_bits(picture).convert("L")


def _see_size(image: Image.Image, name: str, most: int) -> None:
    if image.width * image.height > most:
        allowed = f"{_MILLIONS} million" if most == MOST_PIXELS else f"{most:,}"
        raise PictureError(f"picture {name} is {image.width} x {image.height} px; up to {allowed} pixels are read")


def _plainly(error: OSError) -> str:
    """Pillow's word for what is none of its formats names an object in memory."""
    if "cannot identify" in str(error):
        return f"it is not one of {', '.join(FORMATS)}, or is damaged"
    return str(error) or type(error).__name__


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale a picture of 16 bits, which Pillow would cut off at 255."""
    if picture.mode == "F":
        raise PictureError("a picture of floating-point pixels has no known white; give one of 8 or 16 bits a channel")
    # "I", and "I;16" with its byte orders.
    if not picture.mode.startswith("I"):
        return picture
    # 65535 / 255 = 257, so that white stays white; mode "I" holds 32 bits, of which PNGs use 16.
    return Image.fromarray(np.rint(np.clip(np.asarray(picture), 0, 65535) / 257).astype(np.uint8))
