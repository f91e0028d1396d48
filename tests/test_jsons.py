"""The one reader of JSON files."""

import codecs
import os
from pathlib import Path

import msgspec
import pytest

from lssgen.jsons import DEEPEST, JsonError, NoFileError, convert_json, decode_json, read_json, read_object


class Point(msgspec.Struct):
    x: int
    y: int = 0


def test_a_file_is_read_as_what_it_should_be(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"x": 3}')
    assert read_json(tmp_path / "x.json", Point) == Point(3)
    assert read_object(tmp_path / "x.json") == {"x": 3}


@pytest.mark.parametrize("text", ['{"x": "3"}', "[]", "", "{", '{"x": 1e400}', '{"x": NaN}', '{"x": 1} 2'])
def test_what_is_something_else_is_refused(text: str) -> None:
    with pytest.raises(JsonError, match=r"^is not what it should be: "):
        decode_json(text.encode(), Point)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert decode_json(codecs.BOM_UTF8 + b'{"x": 3}', Point) == Point(3)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_another_encoding_is_named(encoding: str) -> None:
    with pytest.raises(JsonError, match="it is in UTF-16; save it as UTF-8"):
        decode_json('\ufeff{"x": 3}'.encode(encoding), Point)


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(JsonError, match="can't decode byte"):
        decode_json(b'{"x": "\xff"}', dict)


@pytest.mark.parametrize("text", [b"[" * DEEPEST + b"]" * DEEPEST, b'["' + b"[" * 5000 + b'"]'])
def test_brackets_count_where_they_are_brackets(text: bytes) -> None:
    decode_json(text, object)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["[", ', b'["\\"[", '])
def test_what_is_nested_too_deeply_is_refused_before_anything_recurses(opening: bytes) -> None:
    for depth in (DEEPEST + 1, 100_000):
        with pytest.raises(JsonError, match=f"nested more than {DEEPEST} deep"):
            decode_json(opening * depth, object)


def test_a_text_that_never_ends_takes_no_longer_than_its_size_suggests() -> None:
    with pytest.raises(JsonError):
        decode_json(b"[" * 100 + b'"' + b'\\"' * 1_000_000, object)


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(NoFileError, match=rf"^cannot be read \(it is {words} and not a file\)"):
            read_json(path, Point)


def test_a_missing_file_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoFileError, match=r"^cannot be read \(No such file or directory\)"):
        read_json(tmp_path / "none.json", Point)


def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b" " * 1001)
    with pytest.raises(NoFileError, match="larger than the 1,000 bytes that such a file may have"):
        read_json(tmp_path / "x.json", Point, most=1000)


def test_a_value_that_does_not_convert_is_refused() -> None:
    with pytest.raises(JsonError, match="Expected `int`"):
        convert_json({"x": "a"}, Point)
