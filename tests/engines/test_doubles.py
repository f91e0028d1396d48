"""The doubles forbid what they must, and have no name that the real libraries lack."""

import ast
import inspect
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trt_double
from cuda_double import CudaDouble, RuleBrokenError

from lssgen.bundle import read_bundle
from lssgen.engines import trt_build, trt_engine, trt_library
from lssgen.engines.fit import Need
from lssgen.engines.profiles import Demand, profiles_of

STREAM = 7


class Rig:
    """A decode engine on the double, and every call that running it takes."""

    def __init__(self, toy: Path) -> None:
        self.cuda = CudaDouble()
        self.trt = trt_double.module(self.cuda)
        bundle = read_bundle(toy)
        profiles = profiles_of(bundle.manifest, Demand())["decode"]
        need = Need(graph="decode", content="", backend="", version="", targets=(), options={}, profiles=profiles)
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
        self.cuda.cudaStreamSynchronize(STREAM)

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


def test_nothing_is_allocated_during_a_capture(rig: Rig) -> None:
    rig.cuda.cudaStreamBeginCapture(STREAM, None)  # type: ignore[arg-type]
    with pytest.raises(RuleBrokenError, match="cudaMalloc while the stream is captured"):
        rig.cuda.cudaMalloc(16)


DOUBLES = {
    "ILogger": trt_double.ILogger, "Runtime": trt_double.RtxRuntime, "ICudaEngine": trt_double.RtxEngine,
    "IExecutionContext": trt_double.RtxContext, "IRuntimeConfig": trt_double.IRuntimeConfig,
    "IRuntimeCache": trt_double.IRuntimeCache, "CudaGraphStrategy": trt_double.CudaGraphStrategy,
    "ExecutionContextAllocationStrategy": trt_double.ExecutionContextAllocationStrategy,
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBLES)
def test_tensorrt_rtx_has_every_name_and_parameter_of_its_double(name: str) -> None:
    real = getattr(pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed"), name)
    for member, mine in public(DOUBLES[name]).items():
        theirs = getattr(real, member)
        if inspect.isfunction(mine):
            parameters = [p for p in inspect.signature(mine).parameters if p != "self"]
            assert parameters in documented(theirs.__doc__, member), f"{name}.{member}: {theirs.__doc__}"
        else:
            assert not callable(theirs) or inspect.isclass(theirs) or isinstance(mine, int), f"{name}.{member}"
    if hasattr(real, "__members__"):
        assert {m.name: m.value for m in DOUBLES[name]} == {k: v.value for k, v in real.__members__.items()}  # type: ignore[attr-defined]


def test_attributes_that_are_set_exist() -> None:
    """Python lets one set any attribute of a double; the real ones are listed here with their classes."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    assert isinstance(trt.Runtime.defer_weights_loading, property)
    assert isinstance(trt.IRuntimeConfig.cuda_graph_strategy, property)
    assert isinstance(trt.ICudaEngine.weight_streaming_budget_v2, property)


def test_cuda_has_every_function_and_parameter_of_its_double() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for member, mine in public(CudaDouble).items():
        if member.startswith("cuda"):
            theirs = getattr(real, member)
            if inspect.isfunction(mine):
                parameters = [p for p in inspect.signature(mine).parameters if p != "self"]
                assert parameters == list(inspect.signature(theirs).parameters), member
            elif inspect.isclass(mine):
                assert all(getattr(theirs, one.name) == one.value for one in mine), member  # type: ignore[attr-defined]
            else:
                assert int(theirs) == mine, member


def public(double: type) -> dict[str, Any]:
    """What a class and its bases define under names without underscores."""
    layers = [layer for layer in double.__mro__ if layer.__module__ in ("trt_double", "cuda_double")]
    found = {name: value for layer in reversed(layers) for name, value in vars(layer).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def documented(text: str, name: str) -> list[list[str]]:
    """Parameter names of every overload in a pybind11 docstring."""
    heads = re.findall(rf"(?m)^(?:\d+\. )?{name}\((self: .*)\) -> ", text)
    return [re.findall(r"(?:^|, )(\w+): ", head)[1:] for head in heads]


RTX_ONLY = {
    "ComputeCapability", "CudaGraphStrategy", "DISABLED", "REQUIRE_USER_ALLOCATION", "create_runtime_cache",
    "cuda_graph_strategy", "defer_weights_loading", "load_weights", "num_compute_capabilities",
    "set_compute_capability", "set_runtime_cache", "unload_weights", "weights_loaded",
}  # fmt: skip
"""What the code asks for with `hasattr`, or only where the library is TensorRT-RTX."""


def test_what_both_libraries_are_asked_for_is_in_the_published_stubs_of_tensorrt() -> None:
    """Names that our code takes from TensorRT-RTX must be TensorRT's too, which cannot be installed everywhere."""
    trt = pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")
    try:
        stubs = metadata.distribution("tensorrt-stubs").locate_file("tensorrt_bindings/tensorrt.pyi")
    except metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed (pip install --no-deps tensorrt-stubs)")
    classes = [cls for cls in vars(trt).values() if inspect.isclass(cls)]
    real = {name for cls in classes for name in dir(cls)} | set(dir(trt))
    sources = [ast.parse(Path(module.__file__ or "").read_text()) for module in (trt_build, trt_engine, trt_library)]
    used = {node.attr for source in sources for node in ast.walk(source) if isinstance(node, ast.Attribute)} & real
    published = set(re.findall(r"\b\w+\b", Path(str(stubs)).read_text()))
    assert used > {"create_optimization_profile", "set_tensor_address", "TF32"}  # the search finds something
    assert {name for name in used - published if not name.startswith("_")} == RTX_ONLY
