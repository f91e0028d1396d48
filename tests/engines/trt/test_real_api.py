"""What the code calls, and what the doubles offer, is in the real libraries, with these arguments.

pyright checks the same calls against the published stubs of TensorRT: the code declares its objects with those types.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import builder_double
import context_double
import pytest
import refit_double
import trt_double
from cuda_double import CudaDouble

from lssgen.engines import cuda
from lssgen.engines.trt import backend, compiler, context, engine, exam, library, network, refit, residence, timings

RECEIVERS: dict[ModuleType, dict[str, str]] = {
    compiler: {"builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition",
               "wanted": "IOptimizationProfile"},
    network: {
        "parser": "OnnxParser", "network": "INetworkDefinition", "layer": "IAttentionInputLayer", "query": "ITensor",
        "attention": "IAttention", "error": "ParserError",
    },
    context: {"engine": "ICudaEngine", "context": "IExecutionContext"},
    engine: {
        "_runtime": "Runtime", "engine": "ICudaEngine", "_engine": "ICudaEngine", "_context": "IExecutionContext",
        "config": "IRuntimeConfig", "kernels": "IRuntimeCache", "_kernels": "IRuntimeCache",
    },
    exam: {"runtime": "Runtime", "engine": "ICudaEngine"},
    refit: {
        "runtime": "Runtime", "engine": "ICudaEngine", "refitter": "Refitter", "parser": "OnnxParserRefitter",
    },
    timings: {"config": "IBuilderConfig", "cache": "ITimingCache"},
    backend: {},
    residence: {},
    library: {},
}  # fmt: skip
"""By module: the class of every object of the library, by the name that the code gives it."""

ELSEWHERE = {"_owner", "_backend", "Severity"}
"""Objects of ours whose methods share a name with one of the library's; and an enumeration inside of ILogger."""


@dataclass(frozen=True)
class Parameter:
    name: str
    optional: bool


@dataclass(frozen=True)
class Call:
    """A call in our code: of which class's method, and with what."""

    owner: str
    method: str
    positional: int
    keywords: tuple[str, ...]
    line: str

    def fits(self, parameters: Sequence[Parameter]) -> bool:
        left = parameters[self.positional :]
        known = {one.name for one in left}
        needed = {one.name for one in left if not one.optional}
        return self.positional <= len(parameters) and needed <= set(self.keywords) <= known


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="the wheel tensorrt-rtx-cu13 is not installed")


def test_every_call_of_the_library_fits_its_real_signature(rtx: Any) -> None:
    calls = [call for module in RECEIVERS for call in calls_of(module, rtx)]
    assert {"set_shape", "execute_async_v3", "load_weights", "set_timing_cache"} <= {call.method for call in calls}
    for call in calls:
        heads = documented(getattr(getattr(rtx, call.owner), call.method).__doc__, call.method)
        assert any(call.fits(head) for head in heads), f"{call.line}: {call.owner}.{call.method} takes {heads}"


def test_a_call_that_does_not_fit_is_found(rtx: Any) -> None:
    """The check above can fail."""
    (head,) = documented(rtx.IBuilderConfig.set_timing_cache.__doc__, "set_timing_cache")
    call = Call("IBuilderConfig", "set_timing_cache", 2, (), "")
    assert call.fits(head)
    for wrong in ((1, ()), (3, ()), (1, ("strict",)), (2, ("cache",))):
        assert not Call(call.owner, call.method, *wrong, "").fits(head)


def test_no_object_of_the_library_goes_unchecked(rtx: Any) -> None:
    """Whatever has a method's name that only the library uses must be in `RECEIVERS`."""
    methods = {name for cls in classes(rtx) for name in dir(cls) if "_" in name.strip("_") and name[0] != "_"}
    for module, names in RECEIVERS.items():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and node.attr in methods:
                known = receiver(node) in {*names, *ELSEWHERE} or hasattr(rtx, receiver(node))
                assert known, f"{module.__name__}: {ast.unparse(node)}"


def test_every_attribute_of_the_librarys_objects_exists(rtx: Any) -> None:
    """Python lets one set any attribute of a double."""
    for module, names in RECEIVERS.items():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute):
                owner = getattr(rtx, names.get(receiver(node), receiver(node)), None)  # a class, or an enumeration
                assert owner is None or hasattr(owner, node.attr), ast.unparse(node)
    assert isinstance(rtx.ICudaEngine.weight_streaming_budget_v2, property)
    assert rtx.ICudaEngine.weight_streaming_budget_v2.fset is not None


def test_every_name_that_the_code_asks_for_exists(rtx: Any) -> None:
    """A misspelt `hasattr` is never true, and nobody hears of it."""
    real = {name for cls in classes(rtx) for name in dir(cls)} | set(dir(rtx))
    asked = {
        node.args[1].value
        for module in RECEIVERS
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[1], ast.Constant)
    }
    assert asked > {"weights_loaded", "IAttention", "is_stream_capturable"}
    assert asked <= real


def test_what_the_library_calls_back_takes_what_it_passes(rtx: Any) -> None:
    monitor = library.progress_monitor(rtx, lambda *_: None)
    logger = library._logger(rtx, lambda *_: None)
    for mine, theirs, names in (
        (monitor, rtx.IProgressMonitor, ("phase_start", "step_complete", "phase_finish")),
        (logger, rtx.ILogger, ("log",)),
    ):
        for name in names:
            (head,) = documented(getattr(theirs, name).__doc__, name)
            assert list(inspect.signature(getattr(mine, name)).parameters) == [one.name for one in head]


DOUBLES: dict[str, type] = {
    "ILogger": trt_double.ILogger, "Runtime": trt_double.RtxRuntime, "ICudaEngine": trt_double.RtxEngine,
    "IExecutionContext": context_double.RtxContext, "IRuntimeConfig": context_double.IRuntimeConfig,
    "IRuntimeCache": context_double.IRuntimeCache, "CudaGraphStrategy": context_double.CudaGraphStrategy,
    "DynamicShapesKernelSpecializationStrategy": context_double.DynamicShapesKernelSpecializationStrategy,
    "ExecutionContextAllocationStrategy": context_double.ExecutionContextAllocationStrategy,
    "Builder": builder_double.Builder, "IBuilderConfig": builder_double.IBuilderConfig,
    "INetworkDefinition": builder_double.INetworkDefinition, "OnnxParser": builder_double.OnnxParser,
    "IOptimizationProfile": builder_double.IOptimizationProfile, "ITimingCache": builder_double.ITimingCache,
    "IProgressMonitor": builder_double.IProgressMonitor, "Refitter": refit_double.Refitter,
    "OnnxParserRefitter": refit_double.OnnxParserRefitter,
}  # fmt: skip
ENUMS: dict[str, type] = {
    "BuilderFlag": builder_double.RtxBuilderFlag, "ProfilingVerbosity": builder_double.ProfilingVerbosity,
    "NetworkDefinitionCreationFlag": builder_double.NetworkDefinitionCreationFlag,
    "ComputeCapability": builder_double.ComputeCapability, "LayerType": builder_double.LayerType,
}  # fmt: skip
"""Doubles that have some of the real members."""


@pytest.mark.parametrize("name", DOUBLES)
def test_tensorrt_rtx_has_every_name_and_parameter_of_its_double(rtx: Any, name: str) -> None:
    real = getattr(rtx, name)
    for member, mine in public(DOUBLES[name]).items():
        theirs = getattr(real, member)
        if inspect.isfunction(mine):
            parameters = [p for p in inspect.signature(mine).parameters if p != "self"]
            heads = [[one.name for one in head] for head in documented(theirs.__doc__, member)]
            assert parameters in heads, f"{name}.{member}: {theirs.__doc__}"
        else:
            assert not callable(theirs) or inspect.isclass(theirs) or isinstance(mine, int), f"{name}.{member}"
    if hasattr(real, "__members__"):
        assert {m.name: m.value for m in DOUBLES[name]} == {k: v.value for k, v in real.__members__.items()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ENUMS)
def test_members_of_a_doubles_enumerations_are_real_ones(rtx: Any, name: str) -> None:
    """By name: the two libraries number them differently."""
    assert {m.name for m in ENUMS[name]} <= set(getattr(rtx, name).__members__)  # type: ignore[attr-defined]


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


def test_every_call_of_cuda_has_as_many_arguments_as_the_real_function() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    counts: dict[str, set[int]] = {}
    for node in ast.walk(tree(cuda)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, arguments = node.func.attr, node.args
            if name == "call" and isinstance(arguments[0], ast.Constant):
                name, *arguments = arguments[0].value, *arguments[1:]
            if str(name).startswith("cuda"):
                counts.setdefault(str(name), set()).add(len(arguments))
    assert len(counts) > 15
    assert counts == {name: {len(inspect.signature(getattr(real, name)).parameters)} for name in counts}


RTX_ONLY = {
    "ComputeCapability", "CudaGraphStrategy", "DISABLED", "DynamicShapesKernelSpecializationStrategy", "EAGER",
    "IAttentionInputLayer", "REQUIRE_USER_ALLOCATION", "attention", "create_runtime_cache",
    "cuda_graph_strategy", "decomposable", "defer_weights_loading", "dynamic_shapes_kernel_specialization_strategy",
    "load_weights", "num_compute_capabilities", "set_compute_capability", "set_runtime_cache", "unload_weights",
}  # fmt: skip
"""What the code asks for with `hasattr`, or only where the library is TensorRT-RTX."""


def test_what_both_libraries_are_asked_for_is_in_the_published_stubs_of_tensorrt(rtx: Any) -> None:
    """Names that our code takes from TensorRT-RTX must be TensorRT's too, which cannot be installed everywhere."""
    try:
        stubs = metadata.distribution("tensorrt-stubs").locate_file("tensorrt_bindings/tensorrt.pyi")
    except metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed (pip install --no-deps tensorrt-stubs)")
    real = {name for cls in classes(rtx) for name in dir(cls)} | set(dir(rtx))
    used = {node.attr for module in RECEIVERS for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    published = set(re.findall(r"\b\w+\b", Path(str(stubs)).read_text()))
    assert used > {"create_optimization_profile", "set_tensor_address", "TF32"}  # the search finds something
    assert {name for name in (used & real) - published if not name.startswith("_")} == RTX_ONLY


def classes(trt: Any) -> list[type]:
    return [cls for cls in vars(trt).values() if inspect.isclass(cls)]


def tree(module: ModuleType) -> ast.Module:
    return ast.parse(Path(module.__file__ or "").read_text())


def receiver(node: ast.Attribute) -> str:
    """Last name of what stands before the dot: "engine" of `engine.x`, "_awake" of `self._awake.x`."""
    base = node.value
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def calls_of(module: ModuleType, trt: Any) -> Iterator[Call]:
    """Every call of the library: methods of what is in `RECEIVERS`, and classes that are made."""
    for node in ast.walk(tree(module)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = receiver(node.func)
        keywords = tuple(str(keyword.arg) for keyword in node.keywords)
        where = f"{module.__name__}:{node.lineno}"
        if name == "module" and inspect.isclass(getattr(trt, node.func.attr, None)):
            yield Call(node.func.attr, "__init__", len(node.args), keywords, where)
        elif name in RECEIVERS[module]:
            yield Call(RECEIVERS[module][name], node.func.attr, len(node.args), keywords, where)


def public(double: type) -> dict[str, Any]:
    """What a class and its bases define under names without underscores."""
    own = ("trt_double", "context_double", "builder_double", "refit_double", "cuda_double")
    found = {n: v for layer in reversed(double.__mro__) if layer.__module__ in own for n, v in vars(layer).items()}
    return {name: value for name, value in found.items() if not name.startswith("_")}


def documented(text: str, name: str) -> list[list[Parameter]]:
    """Parameters of every overload in a pybind11 docstring, without `self`."""
    heads = re.findall(rf"(?m)^(?:\d+\. )?{name}\((self: .*)\) -> ", text)
    found = [
        re.findall(r"(?:^|, )(\w+): ((?:[^\[\],]|\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\])*)", head)[1:] for head in heads
    ]
    return [[Parameter(name, " = " in kind) for name, kind in head] for head in found]
