"""Every file of a bundle, damaged in every way: refused in words when it is opened, and never painted with."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import copytree

import pytest
from hostile import Tally

import lssgen
from lssgen.bundle import MANIFEST, files, read_bundle
from lssgen.errors import LssgenError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PLACES = 24
"""Bits that are flipped in every file, spread over all of it."""


def _flip(share: float) -> Callable[[Path], object]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = min(int(share * len(data)), len(data) - 1)
        data[at] ^= 1 << at % 8
        path.write_bytes(bytes(data))

    return flip


def _cut(size: Callable[[int], int]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: size(path.stat().st_size)])


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGES: Mapping[str, Callable[[Path], object]] = {
    **{f"bit flipped at {place}/{PLACES - 1}": _flip(place / (PLACES - 1)) for place in range(PLACES)},
    "last byte lost": _cut(lambda size: size - 1),
    "half lost": _cut(lambda size: size // 2),
    "one byte left": _cut(lambda _: 1),
    "empty": _cut(lambda _: 0),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "all zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "another file of the bundle": lambda path: path.write_bytes(
        (path.parent / ("decode.onnx" if path.name != "decode.onnx" else "step.onnx")).read_bytes()
    ),
    "text": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "missing": lambda path: path.unlink(),
    "a folder": _replaced(lambda path: path.mkdir()),
    "a pipe": _replaced(os.mkfifo),
    "a device": _replaced(lambda path: path.symlink_to("/dev/zero")),
    "a link to nothing": _replaced(lambda path: path.symlink_to("nothing")),
    "a link to itself": _replaced(lambda path: path.symlink_to(path)),
}


def test_damaged_bundles(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    opened: list[str] = []
    for name in (MANIFEST, *files(read_bundle(toy).manifest)):
        for damage, inflict in DAMAGES.items():
            folder = copytree(toy, tmp_path / f"{name}-{damage}".replace("/", "-"))
            inflict(folder / name)
            with tally.expect(LssgenError):
                lssgen.load(folder, verify="always", threads=1)
                opened.append(f"{name}: {damage}")
    assert not opened
    assert tally.refusals.total() == len(DAMAGES) * (1 + len(files(read_bundle(toy).manifest)))
