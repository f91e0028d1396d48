"""The executing half, on doubles that enforce the rules of CUDA and TensorRT and compute with ONNX Runtime."""

import gc
import sys
from dataclasses import replace

import numpy as np
import pytest
from builder_double import Builder
from machine import Make, bound, shape

from lssgen.engines.options import EngineOptions
from lssgen.engines.registry import open_backend
from lssgen.engines.trt.cache import PLAN
from lssgen.engines.trt.compiler import BuildOptions
from lssgen.engines.trt.engine import TrtEngine
from lssgen.engines.trt.library import Flavour
from lssgen.engines.trt.order import needs_of, targets_of
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError, StaleEngineError
from lssgen.testing import FakeBackend

WEIGHTS, SCRATCH = Builder._weights, Builder._scratch


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_whole_run_is_that_of_onnx_runtime(make: Make, flavour: Flavour, low_memory: bool) -> None:
    machine = make(flavour)
    expected = machine.paint(open_backend("onnxruntime", EngineOptions(threads=1)))
    painted = machine.paint(machine.backend(low_memory=low_memory))
    # The double computes with the same ONNX Runtime, so nothing but the way of the tensors can differ.
    np.testing.assert_array_equal(painted.latents, expected.latents)
    np.testing.assert_array_equal(np.asarray(painted.images), np.asarray(expected.images))
    assert machine.cuda.launches > 10


def test_a_binding_runs_plainly_once_and_then_is_one_graph_launch(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    step, _ = bound(machine, backend, "decode", height=8, width=8)
    counts = []
    for _ in range(4):
        step()
        backend.device.synchronize()
        counts.append(machine.cuda.launches)
    assert counts == [0, 1, 2, 3]


def test_all_engines_share_one_scratch_block(make: Make) -> None:
    machine = make()
    machine.paint(machine.backend())
    assert machine.cuda.sizes.count(SCRATCH) == 1


def test_everything_on_the_device_is_freed_with_the_pipeline(make: Make) -> None:
    machine = make()
    machine.paint(machine.backend())
    gc.collect()
    assert machine.cuda.used == 0


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
def test_in_low_memory_mode_one_network_is_on_the_device_at_a_time(make: Make, flavour: Flavour) -> None:
    machine = make(flavour)
    machine.paint(machine.backend(low_memory=True))
    low, machine.cuda.peak = machine.cuda.peak, 0
    gc.collect()
    machine.paint(machine.backend())
    assert machine.cuda.peak - low == 3 * WEIGHTS  # text, step, transition, decode: four together, one in turn


def test_low_memory_mode_is_chosen_where_networks_do_not_fit_together(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    machine = make(memory=500_000_000 + 3 * WEIGHTS)
    backend = machine.backend()
    machine.paint(backend)
    assert backend.low_memory
    assert "take turns on the device" in caplog.text


def test_too_little_device_memory_is_known_before_anything_is_loaded(make: Make) -> None:
    machine = make(memory=500_000_000)
    backend = machine.backend()
    with pytest.raises(BackendError, match=r"needs 50\d MB of device memory.*has 500 MB free of 500 MB"):
        backend.load(machine.bundle.path("step.onnx"), name="toy/step")
    assert machine.cuda.used == 0


def test_sizes_that_no_profile_holds_are_refused_with_those_that_are_built(make: Make) -> None:
    machine = make()
    with pytest.raises(ShapeError, match=r"asked for batch 1, height 6, .* but was built for batch 1, height 8"):
        bound(machine, machine.backend(), "decode", height=6, width=6)


def test_buffers_of_another_backend_are_refused(make: Make) -> None:
    machine = make()
    engine = machine.backend().load(machine.bundle.path("decode.onnx"), name="toy/decode")
    foreign = FakeBackend({})
    sizes = {"batch": 1, "height": 8, "width": 8, "picture_height": 64, "picture_width": 64}
    with pytest.raises(ShapeError, match="its own buffers, not a FakeBuffer"):
        engine.bind({p.name: foreign.empty(shape(p, sizes), p.dtype) for p in (*engine.inputs, *engine.outputs)})


def test_a_closed_engine_is_not_bound_and_not_run(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    binding, engine = bound(machine, backend, "decode", height=8, width=8)
    engine.close()
    with pytest.raises(EngineError, match="was closed"):
        binding()
    with pytest.raises(EngineError, match="was closed"):
        engine.bind({})


def test_an_engine_for_another_gpu_is_stale(make: Make) -> None:
    machine = make()
    machine.cuda.capability = (12, 0)
    with pytest.raises(StaleEngineError, match=r"was built for sm89, and not for sm120; .*--target sm120"):
        machine.backend().load(machine.entries["step"].folder, name="toy/step")


def test_an_engine_of_another_version_is_stale(make: Make) -> None:
    machine = make()
    machine.library.version = "1.8.0.1"
    with pytest.raises(StaleEngineError, match=r"was built by tensorrt-rtx 1\.7\.1\.116, and this is .* 1\.8\.0\.1"):
        machine.backend().load(machine.entries["step"].folder, name="toy/step")


def test_where_nothing_can_be_built_the_misfits_are_explained(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make()
    machine.cuda.capability = (8, 6)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(StaleEngineError, match=r"was built for sm89, and not for sm86.*needs the Python package onnx"):
        machine.backend().load(machine.bundle.path("step.onnx"), name="toy/step")


def test_tensorrt_builds_for_the_gpu_at_hand_only(make: Make) -> None:
    machine = make("tensorrt")
    with pytest.raises(BuildError, match="TensorRT builds for the GPU of this machine, sm89, and not for sm90"):
        needs_of(machine.bundle, machine.library, replace(machine.order, targets=("sm90",)))


def test_a_gpu_that_cannot_hold_the_precision_is_told_what_it_can(make: Make) -> None:
    machine = make("tensorrt", built=False, capability=(7, 5))
    step, order = machine.bundle.manifest.graphs["step"], replace(machine.order, targets=())
    assert targets_of(order, replace(step, precision="fp16"), "sm75") == ("sm75",)
    with pytest.raises(BuildError, match=r"sm75, cannot hold .* bf16, which sm80 \(Ampere\) and later can; export"):
        targets_of(order, replace(step, precision="bf16"), "sm75")


def test_tensorrt_rtx_has_no_weight_streaming(make: Make) -> None:
    machine = make(built=False)
    order = replace(machine.order, options=BuildOptions(weight_streaming=True))
    with pytest.raises(BuildError, match=r"does not stream weights during a run; .* run with --low-memory"):
        needs_of(machine.bundle, machine.library, order)


def test_a_truncated_engine_counts_as_none(make: Make) -> None:
    machine = make()
    folder = machine.entries["step"].folder
    (folder / PLAN).write_bytes((folder / PLAN).read_bytes()[:-1])
    with pytest.raises(EngineError, match="holds no whole engine"):
        machine.backend().load(folder, name="toy/step")


def test_a_damaged_engine_is_named(make: Make) -> None:
    machine = make()
    plan = machine.entries["step"].plan
    plan.write_bytes(b"x" * plan.stat().st_size)
    with pytest.raises(EngineError, match=r"engine\.plan is damaged: it is not what was built"):
        machine.backend().load(machine.bundle.path("step.onnx"), name="toy/step")


def test_a_plan_that_is_not_its_reports_is_stale(make: Make) -> None:
    machine = make()
    step, decode = machine.entries["step"], machine.entries["decode"]
    swapped = replace(decode, report=replace(step.report, plan_bytes=decode.report.plan_bytes))
    with pytest.raises(StaleEngineError, match="its report says"):
        TrtEngine(machine.backend(), "toy/step", swapped)


def test_a_context_serves_the_next_binding_of_its_profile(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    binding, engine = bound(machine, backend, "decode", height=8, width=8)
    binding()
    context = binding._context
    del binding
    again, _ = bound(machine, backend, "decode", engine, height=8, width=8)
    again()
    assert again._context is context


def test_kernels_compiled_for_the_device_are_kept_beside_the_engine(make: Make) -> None:
    machine = make()
    for _ in range(2):
        bound(machine, machine.backend(), "decode", height=8, width=8)[0]()
    (kept,) = machine.entries["decode"].folder.glob("kernels-*.cache")
    assert kept.read_text() == "Double 2"  # the second process began with what the first had kept


def test_a_run_tells_what_it_ran_on(make: Make) -> None:
    machine = make()
    backend = machine.backend()
    machine.paint(backend)
    said = backend.describe()
    assert (said["backend"], said["target"], said["driver_cuda"]) == ("tensorrt-rtx", "sm89", "13.5")
    assert said["engines"] == {name: entry.key for name, entry in machine.entries.items()}
