"""Compiled models on disk: one writer at a time, nothing used that was changed, and runs without a place for them."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.cpu import kept as kept_module
from lssgen.engines.cpu.kept import SEAL, is_whole, kept, seal
from lssgen.engines.cpu.openvino import OvBackend
from lssgen.engines.options import OvOptions
from lssgen.runtime import Pipeline


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(toy: Path) -> Bundle:
    return read_bundle(toy)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one compiled model, sealed."""
    place = tmp_path / "models" / "one"
    with kept(place, pytest.fail) as given:
        assert given == place
        place.mkdir()
        (place / "1.blob").write_bytes(b"weights" * 100)
    assert is_whole(place)
    return place


def painted(bundle: Bundle) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    with Pipeline(bundle, OvBackend(OvOptions(threads=1))) as pipeline:
        return pipeline("a red circle", scaling_space="latent", seed=3).latents


def blobs(home: Path) -> list[Path]:
    return sorted((home / "engines" / "openvino").glob("*/*.blob"))


def test_what_is_whole_is_used_and_nothing_waits_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "locked", lambda _: pytest.fail("it was locked"))
    with kept(folder, pytest.fail) as given:
        assert given == folder
    assert (folder / "1.blob").exists()


@pytest.mark.parametrize(
    "hurt",
    [
        lambda folder: (folder / "1.blob").write_bytes(b"weightz" * 100),
        lambda folder: (folder / "1.blob").write_bytes(b"weights" * 50),
        lambda folder: (folder / "1.blob").unlink(),
        lambda folder: (folder / SEAL).unlink(),  # its writer was killed before it was done
        lambda folder: (folder / SEAL).write_text("["),
        lambda folder: (folder / SEAL).write_text("[]"),
    ],
)
def test_what_was_changed_or_is_half_written_is_removed_before_it_is_read(
    folder: Path, hurt: Callable[[Path], object]
) -> None:
    hurt(folder)
    assert not is_whole(folder)
    with kept(folder, pytest.fail) as given:
        assert given == folder
        assert not list(folder.glob("*.blob"))


def test_a_copy_is_as_good(folder: Path, tmp_path: Path) -> None:
    again = copytree(folder, tmp_path / "again")
    (again / "1.blob").touch()
    assert is_whole(again)


def test_nothing_is_sealed_where_compiling_has_failed(tmp_path: Path) -> None:
    place = tmp_path / "one"

    def fail(folder: Path | None) -> None:
        assert folder is not None
        folder.mkdir()
        (folder / "1.blob").write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), kept(place, pytest.fail) as given:
        fail(given)
    assert not is_whole(place)
    seal(tmp_path / "none")  # nothing to seal


def test_numbers_that_were_changed_in_a_kept_model_change_no_picture(bundle: Bundle, home: Path) -> None:
    first = painted(bundle)
    assert blobs(home)
    for path in blobs(home):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.chmod(0o644)
        path.write_bytes(bytes(data))
    np.testing.assert_array_equal(painted(bundle), first)
    assert any(is_whole(path.parent) for path in blobs(home))  # those that ran are kept anew


def test_a_home_that_cannot_be_written_costs_time_and_is_told_once(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = painted(bundle)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "file"))  # nothing can be made below a file, not even by root
    with caplog.at_level(logging.WARNING, "lssgen"):
        np.testing.assert_array_equal(painted(bundle), first)
    (record,) = caplog.records
    assert "compiled models cannot be kept in" in record.getMessage()
    assert "Not a directory), so every start compiles them" in record.getMessage()


TOGETHER = """
import sys
from lssgen.bundle import read_bundle
from lssgen.engines.cpu.openvino import OvBackend
from lssgen.engines.options import OvOptions
from lssgen.runtime import Pipeline
bundle = read_bundle(__import__("pathlib").Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
with Pipeline(bundle, OvBackend(OvOptions(threads=1))) as pipeline:
    print(pipeline("a red circle", scaling_space="latent", seed=3).latents.sum())
"""


def test_processes_that_compile_at_once_do_not_disturb_each_other(bundle: Bundle, home: Path) -> None:
    words = [sys.executable, "-c", TOGETHER, str(bundle.folder)]
    crowd = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for one in crowd:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    ends = [one.communicate("go\n") for one in crowd]
    assert [one.returncode for one in crowd] == [0, 0, 0], ends
    assert len({said for said, _ in ends}) == 1
    assert all(is_whole(path.parent) for path in blobs(home))
