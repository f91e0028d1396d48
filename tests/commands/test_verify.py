"""lssgen-verify: every file of a bundle, damaged in every way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lssgen import verification
from lssgen.bundle import MANIFEST, files, read_bundle
from lssgen.commands.verify import main
from lssgen.verification import see_whole


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (flip, "damaged"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\n"), "damaged"),
    "emptied": (lambda path: path.write_bytes(b""), "damaged"),
    "missing": (Path.unlink, "missing"),
    "a folder": (as_folder, "unreadable"),
}


@pytest.fixture
def folder(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    return shutil.copytree(toy, tmp_path / "home" / "bundles" / "b")


def test_a_whole_bundle_is_told_file_by_file_and_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder)]) == main(["b"]) == 0
    names = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == sorted(2 * [["whole", name] for name in files(read_bundle(folder).manifest)])
    monkeypatch.setattr(verification, "sha256_of", lambda _: pytest.fail("it was hashed already"))
    see_whole(read_bundle(folder))


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_named_with_what_to_do(
    folder: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hurt, state = DAMAGES[damage]
    for name in files(read_bundle(folder).manifest):
        kept = shutil.copyfile(folder / name, folder.parent / "kept")
        hurt(folder / name)
        assert main([str(folder)]) == 1
        out, err = capsys.readouterr()
        told = dict(reversed(line.split()) for line in out.splitlines())
        assert told.pop(name) == state
        assert set(told.values()) == {"whole"}
        (line,) = err.splitlines()
        assert f"{name} is {state}: run the same lssgen-export again" in line
        if (folder / name).is_dir():
            (folder / name).rmdir()
        shutil.move(kept, folder / name)


@pytest.mark.parametrize("damage", ["truncated", "emptied", "missing", "a folder"])
def test_a_damaged_manifest_is_one_line(folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    hurt, _ = DAMAGES[damage]
    hurt(folder / MANIFEST)
    assert main([str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lssgen-verify: BundleError: ")


def test_a_changed_manifest_is_found_by_its_seal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(text.replace(b'"lssgen": "test"', b'"lssgen": "tent"'))
    assert main([str(folder)]) == 1
    assert "manifest.json has changed since the export" in capsys.readouterr().err


def test_the_engines_in_a_bundle_are_looked_at_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "engines" / "step-0123").mkdir(parents=True)
    assert main([str(folder)]) == 1
    out, err = capsys.readouterr()
    assert "damaged     engines/step-0123" in out
    assert "engines/step-0123 is not whole" in err
    assert "remove these folders, and what needs them builds them again" in err
