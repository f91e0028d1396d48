"""The executing half, on doubles that enforce the rules of CUDA and TensorRT and compute with ONNX Runtime."""

import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import trt_double
from cuda_double import CudaDouble

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines import cuda as cuda_module
from lssgen.engines import trt_library
from lssgen.engines.base import Port
from lssgen.engines.build import Order, needs_of
from lssgen.engines.cache import PLAN, Cache, Entry, key_of
from lssgen.engines.cuda import Device
from lssgen.engines.fit import Need
from lssgen.engines.registry import open_backend
from lssgen.engines.tensorrt import TensorRT
from lssgen.engines.trt_engine import TrtEngine
from lssgen.engines.trt_library import Flavour, Library
from lssgen.engines.trt_report import Report
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError, StaleEngineError
from lssgen.runtime import Pipeline
from lssgen.testing import FakeBackend

WEIGHTS, SCRATCH = 1_000_000, 70_000


@dataclass
class Machine:
    """A machine with one GPU, and a bundle whose engines are built."""

    cuda: CudaDouble
    bundle: Bundle
    order: Order
    library: Library
    entries: dict[str, Entry]

    def backend(self, **options: bool) -> TensorRT:
        return TensorRT(self.library, Device(), self.order, **options)

    def paint(self, backend: TensorRT) -> Any:
        with Pipeline(self.bundle, backend) as pipeline:
            return pipeline(
                "a star", seed=3, num_inference_steps=6, min_resolution=32, num_images=2, scaling_space="latent"
            )


Make = Callable[..., Machine]


@pytest.fixture
def make(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    devices: list[CudaDouble] = []

    def made(flavour: Flavour = "tensorrt-rtx", **device: Any) -> Machine:
        cuda = CudaDouble(**device)
        devices.append(cuda)
        monkeypatch.setattr(cuda_module, "bindings", lambda: cuda)
        library = Library(flavour, trt_double.module(cuda, rtx=flavour == "tensorrt-rtx"))
        monkeypatch.setitem(trt_library._libraries, flavour, library)
        bundle = read_bundle(copytree(toy, tmp_path / "bundle"))
        order = Order(flavour=flavour, targets=("sm89",), folder=tmp_path / "engines")
        needs = needs_of(bundle, library, order)
        entries = {need.graph: _store(bundle, need, Cache(order.folder)) for need in needs}
        return Machine(cuda, bundle, order, library, entries)

    yield made
    gc.collect()
    assert not [broken for cuda in devices for broken in cuda.broken]


def _store(bundle: Bundle, need: Need, cache: Cache) -> Entry:
    graph = bundle.manifest.graphs[need.graph]
    plan = trt_double.plan_of(bundle.path(graph.file), need, weights=WEIGHTS, scratch=SCRATCH)

    def report(plan_bytes: int, plan_sha256: str) -> Report:
        return Report(
            graph=need.graph, content=need.content, backend=need.backend, version=need.version, targets=need.targets,
            precision=graph.precision, options=need.options, profiles=need.profiles, inputs=graph.inputs,
            outputs=graph.outputs, seconds=0.0, plan_bytes=plan_bytes, plan_sha256=plan_sha256, weight_bytes=WEIGHTS,
            activation_bytes=(SCRATCH,) * len(need.profiles), attentions=0,
        )  # fmt: skip

    return cache.get_or_build(key_of(need), lambda: (plan, report))


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_whole_run_is_that_of_onnx_runtime(make: Make, flavour: Flavour, low_memory: bool) -> None:
    machine = make(flavour)
    expected = machine.paint(open_backend("onnxruntime", threads=1))
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


def bound(
    machine: Machine, backend: TensorRT, graph: str, engine: TrtEngine | None = None, **axes: int
) -> tuple[Any, TrtEngine]:
    """A binding of a graph of the bundle for one picture."""
    engine = engine or backend.load(machine.bundle.path(f"{graph}.onnx"), name=f"toy/{graph}")
    sizes = {"batch": 1, "picture_height": 8 * axes["height"], "picture_width": 8 * axes["width"], **axes}
    ports = (*engine.inputs, *engine.outputs)
    return engine.bind({port.name: backend.empty(shape(port, sizes), port.dtype) for port in ports}), engine


def shape(port: Port, sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.shape)
