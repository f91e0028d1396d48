"""The doubles forbid what they must; that they have nothing the real libraries lack is in `test_real_api`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refit_double
import trt_double
from cuda_double import STREAMS, CopyKind, CudaDouble, RuleBrokenError, Status

from lssgen.bundle import read_bundle
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.trt.need import Need

STREAM = STREAMS


class Rig:
    """A decode engine on the double, and every call that running it takes."""

    def __init__(self, toy: Path, *, streamed: bool = False, gpus: int = 1) -> None:
        self.cuda = CudaDouble(gpus=gpus)
        self.trt = trt_double.module(self.cuda)
        bundle = read_bundle(toy)
        profiles = profiles_of(bundle.manifest, Demand())["decode"]
        need = Need(
            graph="decode",
            content="",
            backend="",
            version="",
            targets=(),
            options={"weight_streaming": streamed},
            profiles=profiles,
        )
        self.plan = trt_double.plan_of(toy / "decode.onnx", need, weights=1000, scratch=4096)
        self.runtime = self.trt.Runtime(trt_double.ILogger())
        self.engine: Any = self.runtime.deserialize_cuda_engine(self.plan)
        strategy = trt_double.ExecutionContextAllocationStrategy.USER_MANAGED
        self.context: Any = self.engine.create_execution_context(strategy)
        self.scratch = self.cuda.cudaMalloc(4096)[1]
        self.latent = self.cuda.cudaMalloc(4 * 8 * 8 * 4)[1]
        self.picture = self.cuda.cudaMalloc(64 * 64 * 3)[1]

    def profile(self) -> None:
        self.context.set_optimization_profile_async(0, STREAM)
        self.cuda.drain()

    def memory(self) -> None:
        self.context.set_device_memory(self.scratch, 4096)

    def shapes(self) -> None:
        assert self.context.set_input_shape("latent", (1, 4, 8, 8))
        assert self.context.infer_shapes() == []

    def addresses(self) -> None:
        self.context.set_tensor_address("latent", self.latent)
        self.context.set_tensor_address("picture", self.picture)

    def execute(self) -> None:
        self.context.execute_async_v3(STREAM)
        self.cuda.drain()

    def capture(self) -> Any:
        self.cuda.cudaStreamBeginCapture(STREAM, None)  # type: ignore[arg-type]
        self.context.execute_async_v3(STREAM)
        return self.cuda.cudaGraphInstantiate(self.cuda.cudaStreamEndCapture(STREAM)[1], 0)[1]

    def replay(self, graph: Any) -> None:
        self.cuda.cudaGraphLaunch(graph, STREAM)
        self.cuda.drain()

    def ready(self) -> "Rig":
        for step in (self.profile, self.memory, self.shapes, self.addresses, self.execute):
            step()
        return self


@pytest.fixture
def rig(toy: Path) -> Rig:
    return Rig(toy)


def test_the_documented_order_runs_and_replays(rig: Rig) -> None:
    rig.ready()
    rig.cuda.view(rig.latent, (256,), np.float32)[:] = 0
    rig.replay(rig.capture())
    assert rig.cuda.view(rig.picture, (64, 64, 3), np.uint8).max() == 128


@pytest.mark.parametrize("missing", ["profile", "memory", "shapes", "addresses"])
def test_nothing_may_be_left_out(rig: Rig, missing: str) -> None:
    steps = [step for step in ("profile", "memory", "shapes", "addresses", "execute") if step != missing]
    with pytest.raises(RuleBrokenError):
        [getattr(rig, step)() for step in steps]


def test_a_profile_switch_is_waited_for(rig: Rig) -> None:
    rig.context.set_optimization_profile_async(0, STREAM)
    rig.memory(), rig.shapes(), rig.addresses()
    with pytest.raises(RuleBrokenError, match="before the profile had been switched"):
        rig.context.execute_async_v3(STREAM)


def test_a_shape_outside_the_profile_is_refused(rig: Rig) -> None:
    rig.profile()
    assert not rig.context.set_input_shape("latent", (1, 4, 8, 16))


def test_scratch_must_be_large_enough_and_allocated(rig: Rig) -> None:
    with pytest.raises(RuleBrokenError, match="too small"):
        rig.context.set_device_memory(rig.scratch, 100)
    with pytest.raises(RuleBrokenError, match="not allocated"):
        rig.context.set_device_memory(rig.scratch + 256, 4096)


def test_freed_memory_must_not_be_used(rig: Rig) -> None:
    rig.ready()
    rig.cuda.cudaFree(rig.latent)
    with pytest.raises(RuleBrokenError, match="not allocated"):
        rig.execute()


def test_a_capture_needs_a_plain_run_first(rig: Rig) -> None:
    rig.profile(), rig.memory(), rig.shapes(), rig.addresses()
    with pytest.raises(RuleBrokenError, match="before a plain execution"):
        rig.capture()


@pytest.mark.parametrize("change", ["addresses", "shapes", "memory"])
def test_a_graph_is_not_replayed_after_its_context_changed(rig: Rig, change: str) -> None:
    graph = rig.ready().capture()
    getattr(rig, change)()
    with pytest.raises(RuleBrokenError, match="had changed"):
        rig.replay(graph)


def test_a_graph_is_not_replayed_after_its_context_is_gone(rig: Rig) -> None:
    graph = rig.ready().capture()
    rig.context = None
    with pytest.raises(RuleBrokenError, match="was gone"):
        rig.replay(graph)


def test_a_graph_is_not_replayed_with_weights_that_have_moved(rig: Rig) -> None:
    rig.runtime.defer_weights_loading = True
    rig.engine = rig.runtime.deserialize_cuda_engine(rig.plan)
    assert rig.engine.load_weights(rig.plan)
    rig.context = rig.engine.create_execution_context(trt_double.ExecutionContextAllocationStrategy.USER_MANAGED)
    graph = rig.ready().capture()
    assert rig.engine.unload_weights()
    assert rig.engine.load_weights(rig.plan)
    with pytest.raises(RuleBrokenError, match="had changed"):
        rig.replay(graph)


@pytest.mark.parametrize("what", ["cudaMalloc", "cudaFree"])
def test_memory_that_comes_or_goes_in_the_capturing_thread_makes_a_capture_invalid(rig: Rig, what: str) -> None:
    rig.ready()
    rig.cuda.cudaStreamBeginCapture(STREAM, None)  # type: ignore[arg-type]
    rig.context.execute_async_v3(STREAM)
    argument = 16 if what == "cudaMalloc" else rig.latent
    assert getattr(rig.cuda, what)(argument)[0] == Status.cudaErrorStreamCaptureUnsupported
    assert rig.cuda.cudaStreamEndCapture(STREAM)[0] == Status.cudaErrorStreamCaptureInvalidated


def test_another_thread_may_allocate_during_a_capture_but_its_work_must_not_get_in(rig: Rig) -> None:
    rig.ready()
    rig.cuda.cudaStreamBeginCapture(STREAM, None)  # type: ignore[arg-type]
    with ThreadPoolExecutor() as other:
        assert other.submit(rig.cuda.cudaMalloc, 16).result()[0] == Status.cudaSuccess
        with pytest.raises(RuleBrokenError, match="work of another thread"):
            other.submit(rig.context.execute_async_v3, STREAM).result()


def test_every_thread_begins_with_the_first_gpu() -> None:
    cuda = CudaDouble(gpus=2)
    cuda.cudaSetDevice(1)
    with ThreadPoolExecutor() as other:
        address = other.submit(cuda.cudaMalloc, 512).result()[1]
    assert (cuda.used_on(0), cuda.used_on(1)) == (512, 0)
    with pytest.raises(RuleBrokenError, match="for stream 7 from a thread that has chosen GPU 1"):
        cuda.cudaMemcpyAsync(address, address, 8, CopyKind.cudaMemcpyHostToDevice, STREAMS)


def test_an_engine_is_used_on_its_gpu(toy: Path) -> None:
    rig = Rig(toy, gpus=2)
    rig.ready()
    rig.cuda.cudaSetDevice(1)
    with pytest.raises(RuleBrokenError, match="an engine of GPU 0"):
        rig.execute()


def test_kernels_that_stand_in_for_others_are_not_captured(toy: Path) -> None:
    rig = Rig(toy)
    config = rig.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(trt_double.ExecutionContextAllocationStrategy.USER_MANAGED)
    rig.context = rig.engine.create_execution_context(config)
    with pytest.raises(RuleBrokenError, match="captured for ever"):
        rig.ready().capture()


def test_a_context_takes_memory_of_its_own(rig: Rig) -> None:
    before = rig.cuda.used
    rig.context = None
    assert before - rig.cuda.used == rig.trt.faults.context_bytes


def test_a_weight_budget_comes_before_any_context(toy: Path) -> None:
    rig = Rig(toy, streamed=True)
    with pytest.raises(RuleBrokenError, match="set while a context exists"):
        rig.engine.weight_streaming_budget_v2 = 500
    rig.context = None
    rig.engine.weight_streaming_budget_v2 = 500


def test_streamed_weights_forbid_a_capture(toy: Path) -> None:
    with pytest.raises(RuleBrokenError, match="captured while weights are streamed"):
        Rig(toy, streamed=True).ready().capture()


def test_only_weights_that_were_deferred_come_and_go(rig: Rig) -> None:
    assert not rig.engine.unload_weights()
    assert not rig.engine.load_weights(rig.plan)


def test_deferred_weights_are_loaded_before_a_run(rig: Rig) -> None:
    rig.runtime.defer_weights_loading = True
    rig.engine = rig.runtime.deserialize_cuda_engine(rig.plan)
    rig.context = rig.engine.create_execution_context(trt_double.ExecutionContextAllocationStrategy.USER_MANAGED)
    with pytest.raises(RuleBrokenError, match="executed without weights"):
        rig.ready()


def test_a_timing_cache_lives_as_long_as_the_build(rig: Rig) -> None:
    trt = trt_double.module(rig.cuda, rtx=False)
    builder = trt.Builder(trt_double.ILogger())
    config = builder.create_builder_config()
    config.set_timing_cache(config.create_timing_cache(b""), False)
    rig.cuda.cudaSetDevice(0)
    with pytest.raises(RuleBrokenError, match="destroyed before the engine was built"):
        builder.build_serialized_network(builder.create_network(2), config)


def test_a_thread_that_builds_has_chosen_its_gpu(rig: Rig) -> None:
    trt = trt_double.module(rig.cuda, rtx=False)
    builder = trt.Builder(trt_double.ILogger())
    with pytest.raises(RuleBrokenError, match="a thread that chose no GPU builds for the first one"):
        builder.build_serialized_network(builder.create_network(2), builder.create_builder_config())


def test_only_what_was_built_for_it_is_refitted(rig: Rig) -> None:
    with pytest.raises(RuleBrokenError, match="an engine that is not refittable"):
        refit_double.Refitter(rig.engine, trt_double.ILogger())
