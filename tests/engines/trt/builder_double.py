"""The building half of the double: it compiles nothing, and keeps the documented rules.

    what the parser read, the timing cache and the progress monitor outlive the build
    every input has a shape in every profile
    the thread that builds has chosen its GPU, where the build needs one
    a timing cache belongs to one library version and one GPU; `combine` keeps what is there

A plan of the double says what was asked for, so that the executing half can hold a run to it.
"""

import json
import threading
import weakref
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np
import onnxruntime as ort
from cuda_double import CudaDouble, RuleBrokenError

from lssgen.ports import Array


class BuilderFlag(IntEnum):
    REFIT = 4
    TF32 = 6
    WEIGHT_STREAMING = 21
    EDITABLE_TIMING_CACHE = 27


class RtxBuilderFlag(IntEnum):
    REFIT = 4
    TF32 = 6
    WEIGHT_STREAMING = 21
    REQUIRE_USER_ALLOCATION = 28


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class ProfilingVerbosity(IntEnum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class ComputeCapability(IntEnum):
    SM86 = 86
    SM89 = 89
    SM120 = 120


class LayerType(IntEnum):
    CONVOLUTION = 0


class Dims(tuple[int, ...]):
    """Sizes; the real class takes any sequence too."""


class IProgressMonitor:
    def __init__(self) -> None: ...


class INetworkDefinition:
    def __init__(self) -> None:
        self._onnx = ""

    @property
    def num_layers(self) -> int:
        return 0


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        del logger
        self._network = network

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert model
        self._network._onnx = str(path)
        return True


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Dims, Dims, Dims]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002 - NVIDIA's names
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError("minimum, optimum and maximum do not follow each other")
        self._shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, place: str, entries: dict[str, int]) -> None:
        self._place = place
        self._entries = entries

    def combine(self, input_cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        if input_cache._place != self._place and not ignore_mismatch:
            return False
        self._entries = input_cache._entries | self._entries
        return True

    def serialize(self) -> bytes:
        return json.dumps([self._place, self._entries]).encode()


class IBuilderConfig:
    def __init__(self, place: str) -> None:
        self._place = place
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[IOptimizationProfile] = []
        self._timings: Callable[[], ITimingCache | None] = lambda: None
        self._timed = False
        self._targets: dict[int, ComputeCapability] = {}
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self.progress_monitor: Any = None
        self.num_compute_capabilities = 0

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache(self._place, {})
        try:
            return ITimingCache(*json.loads(serialized_timing_cache))
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._place != self._place and not ignore_mismatch:
            return False
        self._timings, self._timed = weakref.ref(cache), True
        return True

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index < self.num_compute_capabilities
        self._targets[index] = compute_capability
        return True


class Builder:
    """The real one asks CUDA for its device; this one is told in `trt_double.module`."""

    _cuda: CudaDouble
    _version = ""
    _weights = 1_000_000
    _scratch = 70_000
    _loses: tuple[str, ...] = ()
    """Weights that a build with REFIT takes for zero, as NVIDIA documents of TensorRT 11.3."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(f"{self._version} {self._cuda.capability}")

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        alone = config._targets and BuilderFlag.REFIT not in config._flags
        if not alone and threading.get_ident() not in self._cuda.threads:
            raise RuleBrokenError("a thread that chose no GPU builds for the first one, and not for the one at hand")
        if config._timed:
            timings = config._timings()
            if timings is None:
                raise RuleBrokenError("the timing cache was destroyed before the engine was built")
            if network._onnx not in timings._entries:
                self._cuda.measured.append(network._onnx)
                timings._entries[network._onnx] = len(self._cuda.measured)
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 1)
        go_on = monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        if not go_on:
            return None
        session = ort.InferenceSession(network._onnx, providers=["CPUExecutionProvider"])
        profiles = [_axes(session, profile) for profile in config._profiles]
        streamed = BuilderFlag.WEIGHT_STREAMING in config._flags
        if streamed and RtxBuilderFlag.REQUIRE_USER_ALLOCATION in config._flags:
            raise RuleBrokenError("weight streaming allocates while it runs, and REQUIRE_USER_ALLOCATION forbids that")
        for line in (*[f"Total Activation Memory: {self._scratch} bytes"] * len(profiles), "Total Weights Memory: "):
            self._logger.log(4, f"{line}{self._weights} bytes" if line.endswith(": ") else line)
        said = plan(network._onnx, profiles, weights=self._weights, scratch=self._scratch, streamed=streamed)
        if BuilderFlag.REFIT not in config._flags:
            return said
        return json.dumps(json.loads(said) | {"refittable": True, "zero": self._loses}).encode()


def plan(onnx: str, profiles: list[dict[str, list[int]]], *, weights: int, scratch: int, streamed: bool) -> bytes:
    """What the double takes for an engine; sizes in bytes, profiles as [min, opt, max] by axis."""
    said = {"onnx": onnx, "profiles": profiles, "weights": weights, "scratch": scratch, "streamed": streamed}
    return json.dumps(said | {"refittable": False, "zero": []}).encode()


def _axes(session: ort.InferenceSession, profile: IOptimizationProfile) -> dict[str, list[int]]:
    inputs = {value.name: value.shape for value in session.get_inputs()}
    if missing := sorted(set(inputs) - set(profile._shapes)):
        raise RuleBrokenError(f"a profile without shapes of {missing}")
    axes = {
        axis: [corner[index] for corner in profile._shapes[name]]
        for name, shape in inputs.items()
        for index, axis in enumerate(shape)
        if isinstance(axis, str)
    }
    for value, result in zip(session.get_outputs(), session.run(None, _zeros(session, profile)), strict=True):
        for axis, size in zip(value.shape, result.shape, strict=True):
            if isinstance(axis, str):  # a real compiler infers it
                axes.setdefault(axis, [size] * 3)
    return axes


def _zeros(session: ort.InferenceSession, profile: IOptimizationProfile) -> dict[str, Array]:
    types = {"float": "float32", "uint8": "uint8", "int64": "int64"}
    return {
        value.name: np.zeros(profile._shapes[value.name][2], types[value.type[len("tensor(") : -1]])
        for value in session.get_inputs()
    }
