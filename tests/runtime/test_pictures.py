import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lssgen.errors import PromptError
from lssgen.runtime.pictures import FORMATS, SOURCE_TYPE, refuse_unwritable, write_file, write_picture

PARAMETERS = {"prompt": 'a <red> & "blue" circle, \u4e09 \U0001f600 \x07', "seed": 3}


def picture() -> Image.Image:
    ramp = np.arange(32, dtype=np.uint8) * 8
    return Image.fromarray(np.stack(np.broadcast_arrays(ramp[:, None], ramp, ramp[::-1]), axis=-1))


def packet_of(path: Path) -> ElementTree.Element:
    with Image.open(path) as image:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info["xmp"]
    text = xmp if isinstance(xmp, str) else xmp.decode()
    return ElementTree.fromstring(text.strip("\x00"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_carries_the_mark_of_generated_pictures(tmp_path: Path, suffix: str) -> None:
    write_picture(picture(), tmp_path / f"x{suffix}", PARAMETERS)
    name = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert [e.text for e in packet_of(tmp_path / f"x{suffix}").iter(name)] == [SOURCE_TYPE]
    assert SOURCE_TYPE.endswith("/digitalsourcetype/trainedAlgorithmicMedia")


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_carries_its_parameters(tmp_path: Path, suffix: str) -> None:
    write_picture(picture(), tmp_path / f"x{suffix}", PARAMETERS)
    (found,) = packet_of(tmp_path / f"x{suffix}").iter("{urn:lssgen}parameters")
    assert json.loads(found.text or "") == PARAMETERS


def test_png_has_the_parameters_in_a_text_chunk_and_the_pixels_exactly(tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / "x.png", PARAMETERS)
    with Image.open(tmp_path / "x.png") as image:
        assert json.loads(image.info["parameters"]) == PARAMETERS
        assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_jpeg_keeps_the_mark_when_the_parameters_do_not_fit(tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / "x.jpg", {"prompt": "long " * 20000})
    (found,) = packet_of(tmp_path / "x.jpg").iter("{urn:lssgen}parameters")
    assert found.text == "{}"


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"pictures end in one of \.png, \.jpg, \.jpeg, \.webp"):
        write_picture(picture(), tmp_path / "x.gif", {})


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptError, match=r"file/x\.png cannot be written"):
        write_picture(picture(), tmp_path / "file" / "x.png", {})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "x.png", b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "x.png", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_jpeg_takes_parameters_up_to_the_last_byte_of_a_segment(tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / "x.jpg", {"prompt": ""})
    with Image.open(tmp_path / "x.jpg") as image:
        room = 65535 - 2 - 29 - len(image.info["xmp"])
    for length, fits in ((room, True), (room + 1, False)):
        write_picture(picture(), tmp_path / "x.jpg", {"prompt": "a" * length})
        (found,) = packet_of(tmp_path / "x.jpg").iter("{urn:lssgen}parameters")
        assert json.loads(found.text or "") == ({"prompt": "a" * length} if fits else {})


def test_a_place_is_found_writable_without_leaving_anything(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path / "new/x.png")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_is_no_place_for_a_picture(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="it is a folder; choose another place"):
        refuse_unwritable(tmp_path)
