"""One door for more and more: what is loaded when, in whose place, and whether it fits; on doubles."""

import gc
import logging
from pathlib import Path

import numpy as np
import pytest
from builder_double import Builder
from machine import Machine, Make, bound

from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.trt.backend import TensorRT
from lssgen.engines.trt.library import Flavour
from lssgen.errors import BackendError, BuildError, EngineError

WEIGHTS, SCRATCH = Builder._weights, Builder._scratch
CUDA = 500_000_000
SMALL, LARGE = {"height": 4, "width": 4}, {"height": 8, "width": 8}


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "lssgen")
    return caplog


def loaded(machine: Machine) -> list[str]:
    """Graphs whose weights came to the device since the last question."""
    names = [Path(name).stem for name in machine.faults.loads]
    machine.faults.loads.clear()
    return names


def test_only_what_is_demanded_is_loaded(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open("step", "decode", backend=backend)
    assert loaded(machine) == ["step", "decode"]
    engines.require(Demand(graphs=("step",)))
    assert loaded(machine) == []
    engines.require(Demand(graphs=("step", "text")))
    assert loaded(machine) == ["text"]


def test_memory_is_predicted_for_what_is_demanded_and_not_for_all_of_the_bundle(
    make: Make, told: pytest.LogCaptureFixture
) -> None:
    machine = make(memory=CUDA + 2 * WEIGHTS)
    told.clear()
    backend = machine.backend()
    machine.open("decode", backend=backend)
    assert not backend.low_memory
    (line,) = told.messages
    assert line.startswith("predicted device memory: 501 MB (501 MB with --low-memory); 502 MB of 502 MB are free")


def test_device_memory_is_predicted_before_anything_is_loaded(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    told.clear()
    used: list[int] = []
    told.handler.addFilter(lambda _: used.append(machine.cuda.used) is None)
    machine.open()
    (line,) = told.messages
    assert line == "predicted device memory: 505 MB (501 MB with --low-memory); 1074 MB of 1074 MB are free"
    assert used == [0]


def test_the_prediction_in_low_memory_mode_is_of_that_mode(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make()
    machine.open(backend=machine.backend(low_memory=True))
    assert "predicted device memory: 501 MB (one network at a time); " in told.text


def test_a_second_bundle_is_predicted_with_what_the_first_one_takes(make: Make, told: pytest.LogCaptureFixture) -> None:
    machine = make(memory=CUDA + 3 * WEIGHTS + WEIGHTS // 2)
    backend = machine.backend()
    first = machine.open("step", "decode", backend=backend)
    assert not backend.low_memory
    machine.cuda._total -= CUDA  # the context and the libraries have taken it
    second = machine.open("step", "decode", backend=backend)
    assert backend.low_memory
    assert "all networks need 4.1 MB of device memory, 3.5 MB are free: they take turns on the device" in told.text
    assert machine.cuda.used < 2 * WEIGHTS + SCRATCH
    for engines in (first, second):
        bound(backend, engines["decode"], **LARGE)()


def test_what_was_closed_is_not_predicted_any_more(make: Make) -> None:
    machine = make(memory=CUDA + 3 * WEIGHTS + WEIGHTS // 2)
    backend = machine.backend()
    for _ in range(3):
        machine.open("step", "decode", backend=backend).close()
    assert not backend.low_memory
    assert machine.cuda.used == SCRATCH


def test_too_little_device_memory_is_known_before_anything_is_loaded(make: Make) -> None:
    machine = make(memory=CUDA)
    with pytest.raises(BackendError, match=r"needs 50\d MB of device memory.*has 500 MB for it, 500 MB free of 500 MB"):
        machine.open("step")
    assert (machine.cuda.used, loaded(machine)) == (0, [])


def test_what_cannot_be_had_leaves_what_was_there_usable(make: Make) -> None:
    machine = make(memory=CUDA + 2 * WEIGHTS)
    backend = machine.backend()
    engines = machine.open("decode", backend=backend)
    before = engines["decode"]
    decode = bound(backend, before, **LARGE)
    decode()
    machine.cuda._total = machine.cuda.used + 1000
    with pytest.raises(BackendError, match=r"needs .* MB of device memory, with one network at a time"):
        engines.require(Demand(graphs=("step",), batches=(200,)))
    decode()
    assert engines["decode"] is before
    with pytest.raises(EngineError, match="toy/step was not demanded"):
        engines["step"]


def test_an_engine_that_holds_what_is_wanted_stays(make: Make) -> None:
    machine = make()
    engines = machine.open("step")
    before = engines["step"]
    engines.require(Demand(graphs=("step",), resolutions=((32, 32),)))
    assert engines["step"] is before


def test_a_larger_demand_is_met_by_an_engine_that_holds_all_demands_so_far(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open("step", backend=backend)
    before = engines["step"]
    old = bound(backend, before, branches=2, **SMALL)
    old()
    engines.require(Demand(graphs=("step",), batches=(4,), resolutions=((64, 64),)))
    after = engines["step"]
    batches = [(profile.axes["batch"].best, profile.axes["height"].best) for profile in after.report.profiles]
    assert batches == [(1, 4), (1, 8), (4, 8)]
    with pytest.raises(EngineError, match="was closed and cannot be run any more; take it from the engines again"):
        old()
    bound(backend, after, branches=2, batch=4, **LARGE)()
    assert machine.cuda.sizes.count(WEIGHTS) == 1


def test_sizes_in_whatever_order_are_one_engine(make: Make) -> None:
    machine = make()
    keys = []
    for first, second in (((1,), (2,)), ((2,), (1,))):
        engines = machine.open("step", batches=first)
        engines.require(Demand(graphs=("step",), batches=second))
        keys.append(engines.keys["step"])
    assert keys[0] == keys[1]


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_an_engine_that_cannot_take_anothers_place_gives_it_back(
    make: Make, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make(flavour)
    backend = machine.backend()
    engines = machine.open("step", backend=backend)
    step = bound(backend, engines["step"], branches=2, **LARGE)
    step()
    runtime = machine.library.module.Runtime
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "deserialize_cuda_engine", lambda *_: None)
        with pytest.raises(EngineError, match="refuses"):
            engines.require(Demand(graphs=("step",), batches=(2,)))
    step()  # its weights come back
    engines.require(Demand(graphs=("step",), batches=(2,)))
    assert len(engines["step"].report.profiles) == 4


def test_a_build_that_fails_leaves_what_was_there(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open("step", backend=backend)
    step = bound(backend, engines["step"], branches=2, **LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(Builder, "build_serialized_network", lambda *_: None)
        with pytest.raises(BuildError, match="cannot build step"):
            engines.require(Demand(graphs=("step",), batches=(2,)))
    step()


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_in_low_memory_mode_nothing_is_loaded_before_it_runs_and_then_once(make: Make, flavour: Flavour) -> None:
    machine = make(flavour)
    backend = machine.backend(low_memory=True)
    engines = machine.open(backend=backend)
    step, decode = bound(backend, engines["step"], branches=2, **LARGE), bound(backend, engines["decode"], **LARGE)
    assert loaded(machine) == []
    for _ in range(3):
        step()
    decode()
    assert loaded(machine) == ["step", "decode"]
    assert machine.cuda.sizes.count(WEIGHTS) == 1


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_a_picture_in_low_memory_mode_loads_every_engine_once(make: Make, flavour: Flavour) -> None:
    """But for the step network, which makes way for the transition between two stages."""
    machine = make(flavour)
    machine.paint(machine.backend(low_memory=True), num_images=1)
    assert loaded(machine) == ["text", "step", "transition_latent", "step", "decode"]


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_in_low_memory_mode_one_network_is_on_the_device_at_a_time(make: Make, flavour: Flavour) -> None:
    machine = make(flavour)
    peaks = {}
    for low_memory in (True, False):
        gc.collect()
        machine.cuda.peak = 0
        machine.paint(machine.backend(low_memory=low_memory))
        peaks[low_memory] = machine.cuda.peak
    contexts = 10 * machine.faults.context_bytes
    assert abs(peaks[False] - peaks[True] - 3 * WEIGHTS) <= contexts  # text, step, transition and decode; one in turn


def test_low_memory_mode_is_chosen_where_networks_do_not_fit_together(
    make: Make, told: pytest.LogCaptureFixture
) -> None:
    machine = make(memory=CUDA + 3 * WEIGHTS)
    backend = machine.backend()
    expected = machine.paint(OrtBackend(OrtOptions(threads=1)))
    np.testing.assert_array_equal(machine.paint(backend).latents, expected.latents)
    assert backend.low_memory
    assert "take turns on the device" in told.text


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_network_with_streamed_weights_runs_without_cuda_graphs(
    make: Make, flavour: Flavour, low_memory: bool
) -> None:
    machine = make(flavour, streaming=True)
    backend: TensorRT = machine.backend(low_memory=low_memory)
    decode = bound(backend, machine.open("decode", backend=backend)["decode"], **LARGE)
    for _ in range(3):
        decode()
    assert decode._buffers["picture"].read().shape == (1, 64, 64, 3)
    assert machine.cuda.launches == 0


def test_weights_that_can_be_streamed_need_no_room(make: Make) -> None:
    machine = make("tensorrt", streaming=True, memory=CUDA + 900_000)
    backend = machine.backend()
    bound(backend, machine.open("decode", backend=backend)["decode"], **LARGE)()
