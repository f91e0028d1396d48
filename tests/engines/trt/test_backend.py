"""The executing half, on doubles that enforce the rules of CUDA and TensorRT and compute with ONNX Runtime."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from builder_double import Builder
from machine import Machine, Make, bound, buffers

from lssgen.engines.base import Buffer
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.trt.backend import TensorRT
from lssgen.engines.trt.engine import TrtEngine
from lssgen.engines.trt.library import Flavour
from lssgen.errors import BundleError, EngineError, ShapeError, StaleEngineError
from lssgen.testing import FakeBackend

SCRATCH = Builder._scratch
SMALL = {"height": 8, "width": 8}


def decoding(machine: Machine, backend: TensorRT | None = None) -> tuple[TensorRT, TrtEngine, Any]:
    """A backend, the decode engine, and a binding of it."""
    backend = backend or machine.backend()
    engines = machine.open("decode", backend=backend)
    return backend, engines["decode"], bound(backend, engines["decode"], **SMALL)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_whole_run_is_that_of_onnx_runtime(make: Make, flavour: Flavour, low_memory: bool) -> None:
    machine = make(flavour)
    expected = machine.paint(OrtBackend(OrtOptions(threads=1)))
    painted = machine.paint(machine.backend(low_memory=low_memory))
    # The double computes with the same ONNX Runtime, so nothing but the way of the tensors can differ.
    np.testing.assert_array_equal(painted.latents, expected.latents)
    np.testing.assert_array_equal(np.asarray(painted.images), np.asarray(expected.images))
    assert machine.cuda.launches > 10


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_every_graph_computes_what_onnx_runtime_does(make: Make, flavour: Flavour) -> None:
    machine = make(flavour)
    for backend in (ours := machine.backend()), OrtBackend(OrtOptions(threads=1)):
        engines = backend.open(machine.bundle, Demand())
        inputs = ran(backend, engines["decode"], call=False)
        inputs["latent"].write(np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32))
        call = engines["decode"].bind(inputs)
        results = []
        for _ in range(3):
            call()
            results.append(inputs["picture"].read())
        assert all((result == results[0]).all() for result in results)
        if backend is ours:
            wanted = results[0]
    np.testing.assert_array_equal(results[0], wanted)


def ran(backend: Any, engine: Any, *, call: bool = True) -> dict[str, Buffer]:
    made = buffers(backend, engine, **SMALL)
    if call:
        engine.bind(made)()
    return made


def test_a_binding_runs_plainly_once_and_then_is_one_graph_launch(make: Make) -> None:
    machine = make()
    backend, _, decode = decoding(machine)
    counts = []
    for _ in range(4):
        decode()
        backend.mark().wait()
        counts.append(machine.cuda.launches)
    assert counts == [0, 1, 2, 3]


def test_a_capture_that_fails_is_said_once_and_the_network_runs_all_the_same(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    machine = make()
    backend, engine, decode = decoding(machine)
    machine.cuda.capture_fails = "the driver does not like it"
    assert results_of(backend, engine, decode, 4) == 1
    assert machine.cuda.launches == 0
    (message,) = caplog.messages
    assert message.startswith("toy/decode runs without a CUDA graph, some microseconds slower: cudaStreamEndCapture")
    machine.cuda.capture_fails = ""
    decode()
    assert machine.cuda.launches == 0  # never again, for this binding


def test_a_graph_that_has_no_room_is_done_without(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    machine = make()
    backend, engine, decode = decoding(machine)
    machine.cuda.graphs_left = 0
    assert results_of(backend, engine, decode, 3) == 1
    assert "runs without a CUDA graph" in caplog.text
    assert "no room for what cudaGraphInstantiate needs" in caplog.text


def test_a_stream_that_cannot_be_captured_is_not(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    machine = make()
    machine.faults.capturable = False
    backend, engine, decode = decoding(machine)
    assert results_of(backend, engine, decode, 3) == 1
    assert (machine.cuda.launches, caplog.messages) == (0, [])


def results_of(backend: TensorRT, engine: TrtEngine, binding: Any, calls: int) -> int:
    """How many different results a binding gives."""
    found = set()
    for _ in range(calls):
        binding._buffers["latent"].write(np.ones((1, 4, 8, 8), np.float32))
        binding()
        found.add(binding._buffers["picture"].read().tobytes())
    assert backend.name == engine.library.flavour
    return len(found)


def test_shapes_that_contradict_each_other_are_said_in_words(make: Make) -> None:
    machine = make()
    machine.faults.shapes_contradict = True
    _, _, decode = decoding(machine)
    with pytest.raises(ShapeError, match=r"toy/decode does not know the shapes of its outputs: Shape inference failed"):
        decode()


def test_a_worker_thread_runs_on_the_gpu_that_was_asked_for(make: Make) -> None:
    machine = make(gpus=2)
    with ThreadPoolExecutor() as worker:
        backend = worker.submit(machine.backend, device=1).result()
        _, _, decode = worker.submit(decoding, machine, backend).result()
    for _ in range(3):  # from this thread, which has chosen no GPU
        decode()
    decode._buffers["picture"].read()
    assert (machine.cuda.used_on(0), machine.cuda.used_on(1) > 1_000_000) == (0, True)


def test_two_backends_on_two_gpus_take_turns_in_one_thread(make: Make) -> None:
    machine = make(gpus=2)
    bindings = [decoding(machine, machine.backend(device=gpu))[2] for gpu in (0, 1)]
    for _ in range(3):
        for binding in bindings:
            binding()
    assert all(binding._buffers["picture"].read().shape == (1, 64, 64, 3) for binding in bindings)
    assert machine.cuda.used_on(0) == machine.cuda.used_on(1)


@pytest.mark.parametrize("low_memory", [False, True])
def test_threads_may_share_a_backend(make: Make, low_memory: bool) -> None:
    """Each has engines of its own; they share the stream, the scratch memory and, in turn, the device."""
    machine = make()
    backend = machine.backend(low_memory=low_memory)

    def work(number: int) -> bool:
        engines = machine.open("decode", "text", backend=backend)
        engine = engines["decode"]
        mine = buffers(backend, engine, **SMALL)
        call = engine.bind(mine)
        for turn in range(10):
            mine["latent"].write(np.full((1, 4, 8, 8), (number + turn) / 10, np.float32))
            call()
            if not (mine["picture"].read() == int(128 + 32 * np.float32((number + turn) / 10))).all():
                return False
        engines.close()
        return True

    with ThreadPoolExecutor(3) as threads:
        assert all(threads.map(work, range(3)))


def test_a_collection_of_garbage_during_a_capture_does_no_harm(make: Make) -> None:
    machine = make()
    backend, engine, decode = decoding(machine)
    decode()
    before, after = machine.cuda.used, gc.get_threshold()
    garbage: Any = {"buffer": backend.empty((1000,), np.float32), "binding": bound(backend, engine, **SMALL)}
    garbage["binding"]()
    garbage["self"] = garbage
    del garbage
    gc.set_threshold(1)  # at the first object that is made
    decode()
    gc.set_threshold(*after)
    gc.collect()
    assert machine.cuda.launches == 1
    assert machine.cuda.used == before + machine.faults.context_bytes  # the binding's context serves the next
    engine.close()


def test_all_engines_share_one_scratch_block(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open(backend=backend)
    for graph in ("decode", "encode"):
        bound(backend, engines[graph], **SMALL)()
    assert machine.cuda.sizes.count(SCRATCH) == 1


def test_everything_on_the_device_is_freed_with_the_engines(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open(backend=backend)
    binding = bound(backend, engines["decode"], **SMALL)
    for _ in range(3):
        binding()
    engines.close()
    del binding, engines, backend
    gc.collect()
    assert machine.cuda.used == 0


def test_sizes_that_no_profile_holds_are_refused_with_those_that_are_built(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    with pytest.raises(ShapeError, match=r"asked for batch 1, height 6, .* but was built for batch 1, height 8"):
        bound(backend, machine.open("decode", backend=backend)["decode"], height=6, width=6)


def test_buffers_of_another_backend_are_refused(make: Make) -> None:
    machine = make()
    engine = machine.open("decode")["decode"]
    with pytest.raises(ShapeError, match="its own buffers, not a FakeBuffer"):
        engine.bind(buffers(FakeBackend({}), engine, **SMALL))


def test_a_closed_engine_is_not_bound_and_not_run(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open("decode", backend=backend)
    engine = engines["decode"]
    binding = bound(backend, engine, **SMALL)
    engines.close()
    with pytest.raises(EngineError, match="was closed"):
        binding()
    with pytest.raises(EngineError, match="was closed"):
        engine.bind({})
    with pytest.raises(EngineError, match="toy/decode was not demanded"):
        engines["decode"]


def test_a_graph_that_the_bundle_lacks_is_said_in_words(make: Make) -> None:
    with pytest.raises(BundleError, match="has no graph 'transition_pixel'"):
        make().open("transition_pixel")


@pytest.mark.parametrize("built_before", [False, True])
def test_a_damaged_engine_is_said_to_be_and_built_again(
    make: Make, caplog: pytest.LogCaptureFixture, built_before: bool
) -> None:
    """One flipped bit might load, and paint wrong pictures."""
    machine = make()
    if built_before:
        machine.open("step")  # found whole once, and damaged afterwards
    plan = machine.entries["step"].plan
    whole = plan.read_bytes()
    plan.write_bytes(whole.replace(b"onnx", b"onny", 1))
    machine.open("step")
    assert "engine.plan is damaged: it is not what was built, and is not used" in caplog.text
    assert plan.read_bytes() == whole


def test_an_engine_that_was_damaged_while_it_was_open_is_named(make: Make) -> None:
    machine = make("tensorrt")
    entry = machine.entries["step"]
    entry.plan.write_bytes(b"x" * entry.plan.stat().st_size)
    with pytest.raises(EngineError, match=r"engine\.plan is damaged: it is not what was built"):
        machine.backend().load({"step": entry}, "toy", ())


def test_a_plan_that_is_not_its_reports_is_stale(make: Make) -> None:
    machine = make()
    step, decode = machine.entries["step"], machine.entries["decode"]
    swapped = replace(decode, report=replace(step.report, plan_bytes=decode.report.plan_bytes))
    with pytest.raises(StaleEngineError, match="its report says"):
        machine.backend().load({"step": swapped}, "toy", ())


def test_a_context_serves_the_next_binding_of_its_profile(make: Make) -> None:
    machine = make()
    backend, engine, decode = decoding(machine)
    decode()
    context = decode._context
    del decode
    again = bound(backend, engine, **SMALL)
    again()
    assert again._context is context


def test_contexts_that_serve_nobody_make_room_for_one_that_is_needed(make: Make) -> None:
    machine = make()
    machine.faults.context_bytes = 10_000_000
    backend = machine.backend()
    engine = machine.open("step", backend=backend)["step"]
    idle = bound(backend, engine, branches=2, height=4, width=4)
    idle()
    idle._buffers["next_latent"].read()
    del idle
    needed = bound(backend, engine, branches=2, height=8, width=8)
    machine.cuda._total = machine.cuda.used + 5_000_000
    needed()
    assert machine.cuda.sizes.count(10_000_000) == 1


def test_a_context_that_has_no_room_is_said_in_words(make: Make) -> None:
    machine = make()
    _, _, decode = decoding(machine)
    machine.cuda._total = machine.cuda.used
    with pytest.raises(EngineError, match="toy/decode cannot prepare its profile 0 on Double: no room for a context"):
        decode()


def test_kernels_compiled_for_the_device_are_kept_beside_the_engine(make: Make) -> None:
    machine = make()
    for expected in ("Double 2", "Double 4"):
        _, _, decode = decoding(machine)
        decode()  # some when the context is made, and some when it first runs
        (kept,) = machine.entries["decode"].folder.glob("kernels-*.cache")
        assert kept.read_text() == expected  # the second process began with what the first had kept


def test_a_run_tells_what_it_ran_on(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    engines = machine.open(backend=backend)
    said = backend.describe()
    assert (said["backend"], said["target"], said["driver_cuda"]) == ("tensorrt-rtx", "sm89", "13.5")
    assert said["engines"] == {name: entry.key for name, entry in machine.entries.items()} == engines.keys


def test_inference_does_not_wait_for_who_listens_in_another_thread(make: Make) -> None:
    """A build in this process listens for minutes."""
    machine = make()
    _, _, decode = decoding(machine)
    listening, done = threading.Event(), threading.Event()

    def listen() -> list[str]:
        with machine.library.listen() as log:
            listening.set()
            assert done.wait(10)
            return log.errors

    with ThreadPoolExecutor() as other:
        heard = other.submit(listen)
        assert listening.wait(10)
        decode()
        with machine.library.listen() as mine:
            machine.library.logger.log(1, "mine")
            threading.Thread(target=machine.library.logger.log, args=(1, "of a thread of the library's")).start()
            while len(mine.errors) < 2:
                pass
        done.set()
        assert heard.result() == ["of a thread of the library's"]
    assert mine.errors == ["mine", "of a thread of the library's"]
