"""The one reader of pictures that somebody else made."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lssgen import images
from lssgen.images import PictureError, as_mask, read_mask, read_picture, upright_size

RAMP = np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def photo(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_five_formats_are_read(tmp_path: Path, suffix: str) -> None:
    photo().save(tmp_path / f"x.{suffix}")
    assert read_picture(tmp_path / f"x.{suffix}").size == (32, 24)


@pytest.mark.parametrize("suffix", ["gif", "ppm", "dds", "eps", "ico", "pcx"])
def test_no_other_format_is_read_whatever_its_name(tmp_path: Path, suffix: str) -> None:
    photo().save(tmp_path / f"x.{suffix}")
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")
    with pytest.raises(PictureError, match=r"x\.png cannot be read: it is not one of PNG, JPEG, WEBP, BMP, TIFF"):
        read_picture(tmp_path / "x.png")


@pytest.mark.parametrize(("suffix", "kind"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_sixteen_bits_of_grey_keep_their_levels(tmp_path: Path, suffix: str, kind: str) -> None:
    Image.fromarray((RAMP.astype(np.uint16) * 257).astype(kind)).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(np.asarray(read_picture(tmp_path / f"x.{suffix}"))[..., 0], RAMP)
    assert np.array_equal(np.asarray(read_mask(tmp_path / f"x.{suffix}")), RAMP)


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    photo().save(tmp_path / "x.jpg", exif=exif)
    assert read_picture(tmp_path / "x.jpg").size == upright_size(tmp_path / "x.jpg") == (24, 32)


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "x.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 32 * 24 - 1)
    with pytest.raises(PictureError, match=r"x\.png is 32 x 24 px; up to 89 million pixels are read"):
        read_picture(tmp_path / "x.png")


def test_a_bomb_is_refused_in_our_words(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "x.png")  # 50 kB on the disk, 1.2 GB as RGB
    with pytest.raises(PictureError, match=r"x\.png has too many pixels; up to 89 million are read"):
        read_picture(tmp_path / "x.png")


def test_a_bomb_in_the_text_of_a_picture_is_refused(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 2**26, zip=True)
    photo().save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(PictureError, match="cannot be read: "):
        read_picture(tmp_path / "x.png")


def test_an_error_without_words_is_told_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError

    photo().save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(PictureError, match="cannot be read: ValueError"):
        read_picture(tmp_path / "x.png")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [pipe, device, folder])
def test_what_is_not_a_file_is_not_read(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.png")
    with pytest.raises(PictureError, match=r"it is a .* and not a file"):
        read_picture(tmp_path / "x.png")


def test_a_picture_whose_name_cannot_be_one_is_refused() -> None:
    with pytest.raises(PictureError, match="its name cannot be one"):
        read_picture(Path("x\0.png"))


def holed(mode: str) -> Image.Image:
    """A picture of one colour whose middle is transparent."""
    picture = Image.new("RGBA", (32, 32), (255, 255, 255, 255))
    picture.paste((255, 255, 255, 0), (8, 8, 24, 24))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_a_mask_drawn_in_its_transparency_is_refused_with_what_to_do(tmp_path: Path, mode: str) -> None:
    """As luminance it would be white all over: the whole picture would be painted anew without a word."""
    with pytest.raises(PictureError, match=r"transparent in places.*white where to paint.*flatten it"):
        as_mask(holed(mode))
    if mode != "PA":
        holed(mode).save(tmp_path / "x.png")
        with pytest.raises(PictureError, match="transparent in places"):
            read_mask(tmp_path / "x.png")


def test_a_mask_whose_palette_has_a_transparent_colour_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.eye(16, dtype=np.uint8)).convert("P").save(tmp_path / "x.png", transparency=0)
    with pytest.raises(PictureError, match="transparent in places"):
        read_mask(tmp_path / "x.png")


def test_a_mask_with_an_opaque_alpha_channel_is_a_mask() -> None:
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 32))
    assert np.asarray(as_mask(mask)).mean() == 127.5


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    file = BytesIO()
    photo().save(file, "PNG")
    (tmp_path / "x.png").write_bytes(file.getvalue()[:-200])
    with pytest.raises(PictureError, match=r"x\.png cannot be read: "):
        read_picture(tmp_path / "x.png")
