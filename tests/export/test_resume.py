"""An export can be stopped anywhere and run again; what is there is used if and only if it is what is wanted."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
import torch
from factory import tiny_upsampler

from lssgen.bundle import read_bundle, verify
from lssgen.errors import ExportError
from lssgen.export import store
from lssgen.export import workshop as graphs
from lssgen.export.config import ExportConfig
from lssgen.export.export import export

ALL = ["text", "step", "decode", "encode"]
ALL += [f"transition_{space}" for space in ("resnet", "latent", "pixel", "dct")]


def test_second_export_writes_nothing(config: ExportConfig, written: list[str]) -> None:
    first = export(config)
    assert written == ALL
    assert export(config).manifest == first.manifest
    assert written == ALL


@pytest.mark.parametrize("graph", [0, 1, 6])
@pytest.mark.parametrize("moment", ["write_graph", "keep", "finish"])
def test_killed_export_finishes_when_run_again(
    config: ExportConfig, written: list[str], monkeypatch: pytest.MonkeyPatch, graph: int, moment: str
) -> None:
    with monkeypatch.context() as patch:
        holder = {"write_graph": graphs, "keep": store.Store, "finish": store.Store}[moment]
        patch.setattr(holder, moment, _deadly(getattr(holder, moment), 0 if moment == "finish" else graph))
        process = multiprocessing.get_context("fork").Process(target=_export_in_fork, args=(config,))
        process.start()
        process.join(timeout=300)
        assert process.exitcode == -signal.SIGKILL
    bundle = export(config)
    verify(read_bundle(bundle.folder))
    done = {"write_graph": graph, "keep": graph, "finish": len(ALL)}[moment]
    assert written == ALL[done:]
    assert not list(bundle.folder.glob(".*"))


def _export_in_fork(config: ExportConfig) -> None:
    """A fork has none of its parent's OpenMP threads, and would wait for them for ever."""
    torch.set_num_threads(1)
    export(config)


def _deadly(function: object, calls: int) -> object:
    """The function, until it has been called so often; then it dies half-way, leaving what it did."""
    count = 0

    def call(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count > calls:
            if isinstance(args[0], store.Store):
                (args[0].folder / "step-0123456789ab.data").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)  # type: ignore[operator]

    return call


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"precision": "fp16"}, ["text", "step", "decode", "encode", "transition_pixel"]),
        ({"skip_layers": True, "layers_to_skip": (1,)}, ["step"]),
        ({"t5": False}, ["text"]),
        ({"resolutions": ((64, 128),)}, []),
    ],
    ids=lambda value: str(value)[:30],
)
def test_changed_option_remakes_what_it_changes(
    config: ExportConfig, written: list[str], change: dict[str, object], anew: list[str]
) -> None:
    before = export(config)
    written.clear()
    after = export(replace(config, **change))  # type: ignore[arg-type]
    assert written == anew
    verify(read_bundle(after.folder))
    replaced = {name for name in ALL if after.manifest.graphs[name].key != before.manifest.graphs[name].key}
    assert replaced == set(anew)
    assert not any(after.path(before.manifest.graphs[name].file).exists() for name in anew)


def test_other_upsampler_remakes_only_its_transition(config: ExportConfig, written: list[str], tmp_path: Path) -> None:
    export(config)
    written.clear()
    export(replace(config, upsampler=tiny_upsampler(tmp_path / "other", seed=1)))
    assert written == ["transition_resnet"]


@pytest.mark.usefixtures("written")
def test_new_resolution_is_probed_with_the_old_graph_whose_proofs_stay(config: ExportConfig) -> None:
    export(config)
    probes = export(replace(config, resolutions=((64, 64), (96, 96)))).manifest.graphs["step"].probes
    assert [probe.axes["height"] for probe in probes] == [16, 32, 24]


def test_damaged_file_is_made_again(config: ExportConfig, written: list[str]) -> None:
    bundle = export(config)
    bundle.path(bundle.manifest.graphs["decode"].data[0]).write_bytes(b"cut off")
    written.clear()
    verify(export(config))
    assert written == ["decode"]


def test_old_bundle_stays_whole_until_the_new_one_is(
    config: ExportConfig, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = export(config)
    monkeypatch.setattr(store.Store, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(replace(config, precision="fp16"))
    assert len(written) > len(ALL)
    verify(read_bundle(bundle.folder))


def test_folder_with_other_things_is_left_alone(config: ExportConfig, written: list[str]) -> None:
    config.output.mkdir()
    (config.output / "holiday.jpg").write_bytes(b"picture")
    with pytest.raises(ExportError, match="holds files and is not a bundle; choose a new or an empty folder"):
        export(config)
    assert written == []
    assert [path.name for path in config.output.iterdir()] == ["holiday.jpg"]


def test_unwritable_output_is_refused_in_words(config: ExportConfig, written: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExportError, match=r"cannot be written \(Not a directory\); choose another folder for --output"):
        export(replace(config, output=tmp_path / "file" / "bundle"))
    assert written == []


def test_two_exports_into_one_folder_are_refused(config: ExportConfig, written: list[str]) -> None:
    (config.output / store.WORK).mkdir(parents=True)
    with (
        filelock.FileLock(config.output / store.WORK / "lock"),
        pytest.raises(ExportError, match="another lssgen-export"),
    ):
        export(config)
    assert written == []
