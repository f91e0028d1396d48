"""A new bundle takes the place of nothing but a quantised bundle."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lssgen.bundle import MANIFEST, Bundle, manifest_json
from lssgen.calibration.alone import bundle_in_place_of
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.errors import CalibrationError
from lssgen.manifest import Quantisation


def written(folder: Path, source: Bundle) -> None:
    with bundle_in_place_of(folder, source) as draft:
        (draft / "new").touch()


def test_a_folder_with_something_else_in_it_stays_as_it_is(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("three years")
    (tmp_path / "notes").write_text("a file")
    job = QuantiseJob(bundle=demo, output=tmp_path / "thesis", format="int8-weights", engine="tensorrt")
    calls: list[Callable[[], object]] = [
        lambda: quantise(job),
        lambda: written(tmp_path / "thesis", demo),
        lambda: written(tmp_path / "notes", demo),
    ]
    for call in calls:
        with pytest.raises(CalibrationError, match=r"is there and is not a quantised bundle, .*choose a new"):
            call()
    assert {path.name for path in tmp_path.rglob("*")} == {"thesis", "chapter.txt", "notes"}


def test_the_bundle_that_it_is_made_from_stays_as_it_is(demo: Bundle) -> None:
    for folder in (demo.folder, demo.folder.parent):
        with pytest.raises(CalibrationError, match=r"holds the bundle that it would be made from.*choose another"):
            written(folder, demo)
    assert (demo.folder / MANIFEST).exists()


def test_a_bundle_that_is_not_quantised_stays_as_it_is(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / MANIFEST).write_bytes(manifest_json(demo.manifest))
    with pytest.raises(CalibrationError, match="is there and is not a quantised bundle"):
        written(tmp_path / "other", demo)


def test_a_quantised_bundle_is_made_anew_but_not_with_what_somebody_put_there(demo: Bundle, tmp_path: Path) -> None:
    step = replace(
        demo.manifest.graphs["step"], quantisation=Quantisation(format="int8", engine="onnxruntime", products=1)
    )
    manifest = replace(demo.manifest, graphs={**demo.manifest.graphs, "step": step})
    old = tmp_path / "old"
    old.mkdir()
    (old / MANIFEST).write_bytes(manifest_json(manifest))
    (old / "lighthouse.png").touch()
    with pytest.raises(CalibrationError, match="is there and is not a quantised bundle"):
        written(old, demo)
    (old / "lighthouse.png").unlink()
    (old / "measured.json").touch()
    written(old, demo)
    assert [path.name for path in old.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_folder_where_one_is_does_as_well(demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    written(Path(), demo)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_is_one_line(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CalibrationError, match=r"file/made cannot be written .*; choose another --output"):
        written(tmp_path / "file" / "made", demo)
    with pytest.raises(CalibrationError, match=r"there is no room for .*made .No space left on device.; make some, or"):
        _on_a_full_disk(tmp_path / "made", demo)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _on_a_full_disk(folder: Path, source: Bundle) -> None:
    with bundle_in_place_of(folder, source) as draft:
        (draft / "half").touch()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_empty_folder_is_as_good_as_none(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty", demo)
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["new"]
