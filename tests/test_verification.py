"""Damage is noticed: every file of a bundle, once on every machine."""

import os
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest

import lssgen
from lssgen import verification
from lssgen.bundle import MANIFEST, manifest_json, read_bundle
from lssgen.errors import BundleError
from lssgen.verification import see_whole

FILES = ("step.onnx", "text.onnx", "decode.onnx", "tokenizer.json")


@pytest.fixture
def folder(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    return copytree(toy, tmp_path / "toy")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose files were hashed."""
    seen: list[Path] = []
    real = verification.sha256_of

    def noted(path: Path) -> str:
        if path.name == "step.onnx":
            seen.append(path.parent)
        return real(path)

    monkeypatch.setattr(verification, "sha256_of", noted)
    return seen


def flip(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_found_when_the_bundle_is_opened(folder: Path, name: str) -> None:
    flip(folder / name)
    with pytest.raises(BundleError, match=f"{name} has changed since the export"):
        lssgen.load(folder)


def test_a_bundle_is_hashed_once_on_a_machine(folder: Path, hashed: list[Path]) -> None:
    for _ in range(3):
        lssgen.load(folder)
    assert hashed == [folder]


def test_what_has_changed_is_hashed_again(folder: Path, hashed: list[Path]) -> None:
    lssgen.load(folder)
    os.utime(folder / "step.onnx", (1, 1))
    lssgen.load(folder)
    assert len(hashed) == 2
    flip(folder / "step.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx has changed"):
        lssgen.load(folder)
    with pytest.raises(BundleError, match=r"step\.onnx has changed"):
        lssgen.load(folder)


def test_always_hashes_always_and_never_never(folder: Path, hashed: list[Path]) -> None:
    for _ in range(2):
        lssgen.load(folder, verify="always")
    assert len(hashed) == 2
    flip(folder / "step.onnx")
    lssgen.load(folder, verify="never")
    assert len(hashed) == 2


def test_another_bundle_in_the_same_place_is_hashed(folder: Path, hashed: list[Path]) -> None:
    lssgen.load(folder)
    manifest = read_bundle(folder).manifest
    step = replace(manifest.graphs["step"], sha256={"step.onnx": "0" * 64})
    other = replace(manifest, graphs={**manifest.graphs, "step": step})
    (folder / MANIFEST).write_bytes(manifest_json(other))
    with pytest.raises(BundleError, match=r"step\.onnx has changed"):
        lssgen.load(folder)
    assert len(hashed) == 2


@pytest.mark.parametrize("note", [b"", b"nonsense", b"[]"])
def test_a_note_that_cannot_be_read_costs_a_comparison_and_nothing_else(
    folder: Path, hashed: list[Path], note: bytes
) -> None:
    lssgen.load(folder)
    (path,) = (Path(os.environ["LSSGEN_HOME"]) / "verified").iterdir()
    path.write_bytes(note)
    lssgen.load(folder)
    assert len(hashed) == 2


def test_a_home_that_cannot_be_written_costs_a_comparison_a_start(
    folder: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "file" / "home"))
    for _ in range(2):
        see_whole(read_bundle(folder))
    assert len(hashed) == 2


def test_large_bundles_say_what_takes_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verification, "SILENT_BYTES", 0)
    with caplog.at_level("INFO", "lssgen"):
        see_whole(read_bundle(folder))
    assert "once on this machine" in caplog.text


def test_a_bundle_whose_tokenizers_have_no_hash_is_read(folder: Path) -> None:
    """Hand-made bundles may leave hashes out; what has one is compared."""
    assert read_bundle(folder).manifest.tokenizers[0].sha256
    assert np.isfinite(lssgen.load(folder)("a", scaling_space="latent").latents).all()


def test_a_latent_that_is_not_finite_makes_the_files_suspect_first(folder: Path) -> None:
    """Weights that were damaged behind the note: all zero, and so a division by nothing, or what flipped bits make."""
    pipeline = lssgen.load(folder, verify="never")
    model = onnx.load(folder / "step.onnx")
    for node in model.graph.node:
        if node.op_type == "Tanh":
            node.op_type = "Log"
    onnx.save(model, folder / "step.onnx")
    with pytest.raises(BundleError, match=r"step\.onnx has changed since the export"):
        pipeline("a", scaling_space="latent")
