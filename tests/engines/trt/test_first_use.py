"""Engines that a run finds missing, and what it is told before anything is loaded; on doubles."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine import Machine, Make, bound

from lssgen.bundle import MANIFEST, manifest_json
from lssgen.commands.run import main
from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.order import build_engines
from lssgen.errors import BackendError, StaleEngineError

GRAPHS = ["text", "step", "transition_latent", "decode", "encode"]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "lssgen")
    return caplog


def timings(machine: Machine) -> Path:
    (file,) = machine.order.folder.glob("timings-*.cache")
    return file


def build_again(machine: Machine) -> int:
    """Forget the engines, build them again, and count what the GPU had to measure."""
    for entry in machine.order.folder.glob("*/"):
        shutil.rmtree(entry)
    machine.cuda.measured.clear()
    build_engines(machine.bundle, machine.order)
    return len(machine.cuda.measured)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_what_is_missing_is_built_by_the_first_run_and_found_by_the_second(
    make: Make, told: pytest.LogCaptureFixture, flavour: Flavour
) -> None:
    machine = make(flavour, built=False)
    first = machine.paint(machine.backend())
    where = machine.order.folder
    assert told.messages[:5] == [f"building {graph} for sm89, once; it is kept in {where}" for graph in GRAPHS]
    told.clear()
    second = machine.paint(machine.backend())
    assert not [message for message in told.messages if message.startswith("building")]
    np.testing.assert_array_equal(first.latents, second.latents)


def test_device_memory_is_predicted_before_anything_is_loaded(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    told.clear()
    used: list[int] = []
    told.handler.addFilter(lambda _: used.append(machine.cuda.used) is None)
    machine.paint(machine.backend())
    (line,) = told.messages
    assert line == "predicted device memory: 505 MB (501 MB with --low-memory); 1074 MB of 1074 MB are free"
    assert used == [0]


def test_the_prediction_in_low_memory_mode_is_of_that_mode(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    machine.paint(machine.backend(low_memory=True))
    assert "predicted device memory: 501 MB (one network at a time); " in told.text


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_run_with_streamed_weights_is_that_of_onnx_runtime(make: Make, low_memory: bool) -> None:
    machine = make("tensorrt", streaming=True)
    expected = machine.paint(open_backend("onnxruntime", EngineOptions(threads=1)))
    painted = machine.paint(machine.backend(low_memory=low_memory))
    # The double computes with the same ONNX Runtime, so nothing but the way of the tensors can differ.
    np.testing.assert_array_equal(painted.latents, expected.latents)
    assert machine.cuda.launches == 0  # streamed weights and CUDA graphs exclude each other


def test_weights_that_can_be_streamed_need_no_room(make: Make) -> None:
    machine = make("tensorrt", streaming=True, memory=500_900_000)
    bound(machine, machine.backend(), "decode", height=8, width=8)[0]()


def test_tensorrt_measures_once_on_a_gpu(make: Make) -> None:
    machine = make("tensorrt")
    assert len(machine.cuda.measured) == len(GRAPHS)
    assert timings(machine).name == "timings-1.7.1.116-Double.cache"
    assert build_again(machine) == 0


def test_tensorrt_rtx_keeps_no_timings(make: Make) -> None:
    assert not list(make("tensorrt-rtx").order.folder.glob("timings-*"))


def test_what_another_process_measured_meanwhile_is_kept(make: Make) -> None:
    machine = make("tensorrt", built=False)

    def another(*_: object) -> None:
        file = next(machine.order.folder.glob("timings-*.cache"), None)
        if file is not None and b"other.onnx" not in file.read_bytes():
            file.write_bytes(file.read_bytes().replace(b"{", b'{"other.onnx": 7, ', 1))

    build_engines(machine.bundle, machine.order, another)
    stored = timings(machine).read_text()
    assert "other.onnx" in stored
    assert all(f"{graph}.onnx" in stored for graph in GRAPHS)


def test_timings_of_another_gpu_are_not_used(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make("tensorrt")
    timings(machine).write_bytes(timings(machine).read_bytes().replace(b"(8, 9)", b"(9, 0)"))
    assert build_again(machine) == len(GRAPHS)
    assert "are of another GPU or library, and are measured again" in told.text
    assert build_again(machine) == 0


def test_timings_that_cannot_be_read_cost_no_build(make: Make) -> None:
    machine = make("tensorrt")
    timings(machine).write_bytes(b"nonsense")
    assert build_again(machine) == len(GRAPHS)
    assert build_again(machine) == 0


def test_an_engine_of_other_weights_is_built_again(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    told.clear()
    machine.backend().load(other_weights(machine), name="toy/step")
    assert [line.split(" for ")[0] for line in told.messages if "building" in line] == ["building step"]


def test_an_engine_of_other_weights_is_stale_where_none_can_be_built(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    step = other_weights(machine)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        StaleEngineError, match=r"'step' fits: one was made from other weights.*the Python package onnx"
    ):
        machine.backend().load(step, name="toy/step")


def test_no_engine_anywhere_and_no_way_to_build_says_what_is_missing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(built=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        BackendError, match=r"building engines needs the Python package onnx; install it with pip install"
    ):
        machine.backend().load(machine.bundle.path("step.onnx"), name="toy/step")


def other_weights(machine: Machine) -> Path:
    """Export the bundle's step anew: another hash in the manifest."""
    manifest = machine.bundle.manifest
    graphs = {**manifest.graphs, "step": replace(manifest.graphs["step"], sha256={"step.onnx": "0" * 64})}
    (machine.bundle.folder / MANIFEST).write_bytes(manifest_json(replace(manifest, graphs=graphs)))
    return machine.bundle.path("step.onnx")


@pytest.mark.parametrize("quiet", [False, True])
def test_lssgen_run_says_what_it_builds_and_what_memory_it_takes(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    machine = make("tensorrt", built=False)
    flags = ["--bundle", str(machine.bundle.folder), "--scaling-space", "latent", "--engine", "tensorrt"]
    places = ["--engines", str(machine.order.folder), "-o", str(tmp_path / "x.png")]
    assert main(["a star", *flags, *places, *(["--quiet"] if quiet else [])]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lssgen-run: ")]
    if quiet:
        assert lines == []
    else:
        assert lines[0] == f"lssgen-run: building text for sm89, once; it is kept in {machine.order.folder}"
        assert lines[len(GRAPHS)].startswith("lssgen-run: predicted device memory: 505 MB (501 MB with --low-memory)")
    backend = json.loads((tmp_path / "x.run.json").read_text())["backend"]
    assert (backend["engine_folder"], backend["low_memory"]) == (str(machine.order.folder), False)
    assert backend["predicted_bytes"] > 5e8
