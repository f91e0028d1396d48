"""From an ONNX graph to a serialised TensorRT engine. Needs no GPU for TensorRT-RTX."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.engines.cuda import Device
from lssgen.engines.demand import Profile
from lssgen.engines.trt.library import Library, plain, progress_monitor
from lssgen.engines.trt.network import engine_model
from lssgen.engines.trt.report import Attention, Findings, findings
from lssgen.engines.trt.timings import kept_timings
from lssgen.errors import BackendError, BuildError
from lssgen.ports import Port

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs; TensorRT-RTX has the same classes, and what it adds is `Any` here

Tell = Callable[[str, float], None]
"""Called with the name of a phase and the share of the build that is done, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What changes a compiled engine, besides graph, profiles and targets. Part of its key.

    Attributes:
        tf32: Let fp32 arithmetic use 10 bits of mantissa in tensor cores. Off: fp32 means fp32.
        weight_streaming: TensorRT only: weights may stay on the host when device memory is short. Costs CUDA graphs.
        level: Optimisation level of TensorRT, 0 to 5; TensorRT-RTX has nothing to tune.
        refit: Keep the engine such that its weights can be exchanged; see `lssgen.engines.trt.refit`.
    """

    tf32: bool = False
    weight_streaming: bool = False
    level: int = 3
    refit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One engine to build.

    Attributes:
        name: Of the graph, for messages.
        onnx: The graph's file; weights in other files lie beside it.
        inputs: The graph's input ports.
        profiles: What to build for.
        targets: Architectures, for TensorRT-RTX; TensorRT builds for the current device.
        options: What else changes the engine.
        timings: File of measurements to begin with and to add to; None where the library measures nothing.
        device: The GPU that the compiler uses; None where it needs none.
    """

    name: str
    onnx: Path
    inputs: tuple[Port, ...]
    profiles: tuple[Profile, ...]
    targets: tuple[str, ...]
    options: BuildOptions = field(default_factory=BuildOptions)
    timings: Path | None = None
    device: Device | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A serialised engine, and what its build told.

    Attributes:
        plan: The engine; supports the buffer protocol.
        attentions: Of the network before compilation.
        findings: From the log.
    """

    plan: Any
    attentions: tuple[Attention, ...]
    findings: Findings


def build_plan(library: Library, job: Job, tell: Tell) -> Built:
    """Compile a graph. Ctrl-C stops it within a step of the compiler.

    Raises:
        BackendError: The `onnx` package is missing.
        BuildError: The graph was refused, with the node and the reason.
    """
    model = engine_model(job.onnx)
    cancelled = threading.Event()
    outcome: list[Built | BaseException] = []

    def work() -> None:
        try:
            if job.device is not None:
                job.device.choose()
            outcome.append(_compile(library, job, model, tell, cancelled))
        except BaseException as error:  # carried to the caller's thread
            outcome.append(error)

    # The compiler holds its thread for minutes; the main thread stays free to receive Ctrl-C.
    thread = threading.Thread(target=work, name=f"build {job.name}")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        cancelled.set()
        thread.join()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _compile(library: Library, job: Job, model: bytes, tell: Tell, cancelled: threading.Event) -> Built:
    module = library.module
    with library.listen() as log:
        builder: trt.Builder | None = module.Builder(library.logger)
        if builder is None:
            raise BackendError(f"{library.flavour} cannot create a builder: {log.reason()}")
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser: trt.OnnxParser = module.OnnxParser(network, library.logger)
        if not parser.parse(model, str(job.onnx)):
            raise BuildError(f"{library.flavour} cannot read {job.name}: {parse_errors(parser)}")
        attentions = _attentions(module, network)
        config = builder.create_builder_config()
        monitor = progress_monitor(module, tell, cancelled)  # a name for it, since the library does not keep it alive
        config.progress_monitor = monitor
        _configure(library, job, config)
        _add_profiles(library, job, builder, config)
        with kept_timings(module, config, job.timings) if job.timings else nullcontext():
            log.errors.clear()  # timings that could not be read are no reason for what goes wrong from here on
            plan: Any = builder.build_serialized_network(network, config)
            if plan is None and cancelled.is_set():
                raise KeyboardInterrupt
            if plan is None:
                raise BuildError(f"{library.flavour} cannot build {job.name}: {log.reason()}")
        return Built(plan, attentions, findings(log.lines))


def _configure(library: Library, job: Job, config: "trt.IBuilderConfig") -> None:
    module = library.module
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = job.options.level
    if not job.options.tf32:
        config.clear_flag(module.BuilderFlag.TF32)
    if job.options.weight_streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    if job.options.refit:
        config.set_flag(module.BuilderFlag.REFIT)
    if library.flavour == "tensorrt-rtx":
        _configure_rtx(library, job, config)


def _configure_rtx(library: Library, job: Job, config: Any) -> None:
    module = library.module
    config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)  # or CUDA graphs may not be captured
    config.num_compute_capabilities = len(job.targets)
    for index, target in enumerate(job.targets):
        if not config.set_compute_capability(getattr(module.ComputeCapability, target.upper()), index):
            raise BuildError(f"{library.flavour} {library.version} does not build for {target}")


def _add_profiles(library: Library, job: Job, builder: "trt.Builder", config: "trt.IBuilderConfig") -> None:
    dims = library.module.Dims
    for profile in job.profiles:
        wanted = builder.create_optimization_profile()
        for port in job.inputs:
            low, best, high = _corners(port, profile)
            wanted.set_shape(port.name, dims(low), dims(best), dims(high))
        if config.add_optimization_profile(wanted) < 0:
            raise BuildError(f"{library.flavour} does not take profile {profile} for {job.name}")


def _corners(port: Port, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    extents = profile.shape(port)
    return tuple(e.low for e in extents), tuple(e.best for e in extents), tuple(e.high for e in extents)


def parse_errors(parser: "trt.OnnxParser | trt.OnnxParserRefitter") -> str:
    """What a parser had against a graph, node by node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return (
        "; ".join(f"node {error.node_name()} ({error.node_operator()}): {plain(error.desc())}" for error in errors)
        or "no reason given"
    )


def _attentions(module: Any, network: "trt.INetworkDefinition") -> tuple[Attention, ...]:
    kind = getattr(module.LayerType, "ATTENTION_INPUT", None)
    found: list[Attention] = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == kind:
            query = layer.get_input(0)
            found.append(Attention(layer.name.removesuffix("_AttentionInput"), query.dtype.name, query.shape[-1]))
    return tuple(found)
