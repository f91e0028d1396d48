"""The demo model's bundle as the package ships it: made without torch, and byte for byte what an export gives."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from lssgen import demo
from lssgen.bundle import MANIFEST, files, read_bundle, verify
from lssgen.demo import CHECKPOINT, SHIPPED, is_current, write_demo_bundle
from lssgen.errors import BundleError
from lssgen.manifest import FORMAT

ROOT = Path(__file__).parents[1]
REFRESH = "what decides the demo model's graphs has changed: run python examples/demo_model/make_bundle.py"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the package ships, to be damaged."""
    for name, folder in (("CHECKPOINT", CHECKPOINT), ("SHIPPED", SHIPPED)):
        shutil.copytree(folder, tmp_path / "models" / folder.name)
        monkeypatch.setattr(demo, name, tmp_path / "models" / folder.name)
    return tmp_path / "models"


def test_the_bundle_is_whole_and_has_no_file_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    write_demo_bundle(tmp_path / "demo")
    bundle = read_bundle(tmp_path / "demo")
    verify(bundle)
    assert {path.name for path in bundle.folder.iterdir()} == {MANIFEST, *files(bundle.manifest)}
    assert list(tmp_path.iterdir()) == [bundle.folder]


def test_it_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "old.onnx").touch()
    write_demo_bundle(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old.onnx").exists()


def test_it_is_current_until_another_version_ships_another_one(package: Path, tmp_path: Path) -> None:
    assert not is_current(tmp_path / "demo")
    write_demo_bundle(tmp_path / "demo")
    assert is_current(tmp_path / "demo")
    manifest = package / "demo_bundle" / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"lssgen": "', b'"lssgen": "9.'))
    assert not is_current(tmp_path / "demo")


@pytest.mark.parametrize(
    ("manifest", "current"),
    [
        (b'{"format": %d, "source": {"model": "/home/me/demo"}}' % FORMAT, True),  # the user's own export
        (b'{"format": 1, "source": {"model": "/home/me/demo"}}', False),
        (b"not JSON", False),
    ],
)
def test_a_bundle_of_the_users_own_is_left_where_it_can_be_read(tmp_path: Path, manifest: bytes, current: bool) -> None:
    (tmp_path / MANIFEST).write_bytes(manifest)
    assert is_current(tmp_path) == current


def test_the_manifest_says_nothing_of_the_machine_that_made_it() -> None:
    text = (SHIPPED / MANIFEST).read_text()
    assert not re.findall(r'"[^"]*(?:/tmp|/home|/root|/work|C:)[^"]*"', text)


SHIPPED_FILES = (
    "demo/vae/diffusion_pytorch_model.safetensors",
    *sorted(f"demo_bundle/{path.name}" for path in SHIPPED.iterdir()),
)
DAMAGES = [(name, damage) for name in SHIPPED_FILES for damage in ("flipped", "cut", "gone")]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_package_is_noticed_and_leaves_nothing(package: Path, tmp_path: Path, name: str, damage: str) -> None:
    path, data = package / name, bytearray((package / name).read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    if damage == "gone":
        path.unlink()
    with pytest.raises(BundleError, match="install lssgen again"):
        write_demo_bundle(tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@pytest.mark.slow  # a whole export
def test_an_export_gives_what_is_shipped_and_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "demo_model"))
    from make_bundle import shipped

    from lssgen.export.config import ExportConfig
    from lssgen.export.export import export

    config = ExportConfig(model="demo", output=tmp_path / "exported", probe="none", threads=1)
    exported = export(config)
    expected = shipped(exported)
    found = {path.name: path.read_bytes() for path in SHIPPED.iterdir()}
    assert set(found) == set(expected), REFRESH
    for name in expected:
        same = found[name] == expected[name] if name != MANIFEST else _lasting(found[name]) == _lasting(expected[name])
        assert same, f"{name} is not that of an export; {REFRESH}"
    write_demo_bundle(tmp_path / "made")
    for name, graph in exported.manifest.graphs.items():
        for file in graph.data:
            assert (tmp_path / "made" / f"{name}.data").read_bytes() == exported.path(file).read_bytes()


def _lasting(manifest: bytes) -> Mapping[str, object]:
    """A manifest without what changes from machine to machine and from one wording of the source to the next."""
    said = msgspec.json.decode(manifest, type=dict[str, object])
    graphs = msgspec.convert(said["graphs"], dict[str, dict[str, object]])
    return {**said, "seal": "", "graphs": {name: {**graph, "key": "", "probes": []} for name, graph in graphs.items()}}
