"""Engines that a run finds missing, and what it is told before anything is loaded; on doubles."""

import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import Machine, Make

from lssgen.bundle import Bundle
from lssgen.commands.run import main
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.order import build_engines, targets_of
from lssgen.errors import BackendError, BuildError, EngineError, StaleEngineError

GRAPHS = ["text", "step", "transition_latent", "decode", "encode"]
PAINTED = GRAPHS[:4]
"""Graphs of a run that starts from noise, in the order of the bundle."""


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
    assert [line for line in told.messages if line.startswith("building")] == [
        f"building {graph} for sm89, once; it is kept in {where}" for graph in PAINTED
    ]
    told.clear()
    second = machine.paint(machine.backend())
    assert not [message for message in told.messages if message.startswith("building")]
    np.testing.assert_array_equal(first.latents, second.latents)


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
    machine = with_other_weights(make())
    told.clear()
    machine.open("step")
    assert [line.split(" for ")[0] for line in told.messages if "building" in line] == ["building step"]


def test_only_what_is_demanded_is_built(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make(built=False)
    machine.open("decode", "text")
    assert [line.split(" for ")[0] for line in told.messages if "building" in line] == [
        "building decode",
        "building text",
    ]


def test_engines_in_the_bundle_are_found(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    machine.order.folder.rename(machine.bundle.folder / "engines")
    told.clear()
    assert machine.open().keys == {graph: entry.key for graph, entry in machine.entries.items()}
    assert "building" not in told.text


def test_bounds_are_asked_of_engines_that_are_found(make: Make) -> None:
    machine = make()
    with pytest.raises(BuildError, match=r"text needs 0\.1 MB of scratch memory .* raise the bound with --max-scratch"):
        machine.open(backend=machine.backend(max_scratch=1e-5))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"capability": (8, 6)}, "was built for sm89, and not for sm86"),
        ({"version": "1.8.0.1"}, r"was built by tensorrt-rtx 1\.7\.1\.116, and this is tensorrt-rtx 1\.8\.0\.1"),
        ({"weights": "others"}, "was made from other weights"),
    ],
)
def test_where_nothing_can_be_built_the_misfits_are_explained(
    make: Make, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], why: str
) -> None:
    machine = make()
    machine.cuda.capability = change.get("capability", machine.cuda.capability)
    machine.library.version = change.get("version", machine.library.version)
    if "weights" in change:
        machine = with_other_weights(machine)
    monkeypatch.setitem(sys.modules, "onnx", None)
    said = f"no engine of 'step' fits: one {why}.*the Python package onnx"
    with pytest.raises(StaleEngineError, match=said):
        machine.open("step")


def test_no_engine_anywhere_and_no_way_to_build_says_what_is_missing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(built=False)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        BackendError, match=r"building this engine needs the Python package onnx; install it with pip install"
    ):
        machine.open("step")


def test_tensorrt_builds_for_the_gpu_at_hand_only(make: Make) -> None:
    machine = make("tensorrt")
    with pytest.raises(BuildError, match="TensorRT builds for the GPU of this machine, sm89, and not for sm90"):
        build_engines(machine.bundle, replace(machine.order, targets=("sm90",)))


def test_a_gpu_that_cannot_hold_the_precision_is_told_what_it_can(make: Make) -> None:
    machine = make("tensorrt", built=False, capability=(7, 5))
    step, order = machine.bundle.manifest.graphs["step"], replace(machine.order, targets=())
    assert targets_of(order, replace(step, precision="fp16"), "sm75") == ("sm75",)
    with pytest.raises(BuildError, match=r"sm75, cannot hold .* bf16, which sm80 \(Ampere\) and later can; export"):
        targets_of(order, replace(step, precision="bf16"), "sm75")


def test_a_truncated_engine_counts_as_none(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    plan = machine.entries["step"].plan
    plan.write_bytes(plan.read_bytes()[:-1])
    told.clear()
    machine.open()
    assert [line.split(" for ")[0] for line in told.messages if "building" in line] == ["building step"]


def test_an_engine_that_goes_between_being_found_and_loaded_is_said_in_words(make: Make) -> None:
    machine = make()
    shutil.rmtree(machine.entries["step"].folder)
    with pytest.raises(EngineError, match=r"engine\.plan is gone .*; run again, and it will be built"):
        machine.backend().load({"step": machine.entries["step"]}, "toy", ())


def with_other_weights(machine: Machine) -> Machine:
    """The bundle's step, exported anew: another hash in the manifest."""
    manifest = machine.bundle.manifest
    graphs = {**manifest.graphs, "step": replace(manifest.graphs["step"], sha256={"step.onnx": "0" * 64})}
    return replace(machine, bundle=Bundle(machine.bundle.folder, replace(manifest, graphs=graphs)))


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
        assert lines[len(PAINTED)].startswith("lssgen-run: predicted device memory: 504 MB (501 MB with --low-memory)")
    backend = json.loads((tmp_path / "x.run.json").read_text())["backend"]
    assert (backend["engine_folder"], backend["low_memory"]) == (str(machine.order.folder), False)
    assert backend["predicted_bytes"] > 5e8
