"""From an ONNX graph to a serialised TensorRT engine. Needs no GPU for TensorRT-RTX.

As a program, this is the process that `lssgen.engines.trt.child` starts for every build: it reads a `Request` from
standard input, and answers on standard output. When its input ends, whoever asked is gone, and so is it.
"""

import ctypes
import hashlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.engines.cuda import Device
from lssgen.engines.trt.isolate import advice
from lssgen.engines.trt.job import Answer, Done, Facts, Job, Refused, Step, Unwritten, Warned, line, request_of
from lssgen.engines.trt.library import Library, progress_monitor, require_library
from lssgen.engines.trt.network import parse
from lssgen.engines.trt.report import findings
from lssgen.engines.trt.timings import kept_timings
from lssgen.errors import BackendError, BuildError, LssgenError

if TYPE_CHECKING:
    import tensorrt as trt  # its published stubs; TensorRT-RTX has the same classes, and what it adds is `Any` here

Hear = Callable[[str, float], None]
"""Called with the name of a phase and the share of the build that is done, from 0 to 1."""


def compile_graph(job: Job, plan: Path, hear: Hear) -> Facts:
    """Compile a graph and write the engine to a file.

    Raises:
        BackendError: The library, the GPU that it builds on, or the `onnx` package is missing.
        BuildError: The graph was refused: the node, the reason, and how to find out more.
        OSError: The file cannot be written.
    """
    library = require_library(job.flavour)
    device = None if job.device_id is None else Device(job.device_id)
    if device is not None:
        device.choose()
    module = library.module
    with library.listen() as log:
        builder: trt.Builder | None = module.Builder(library.logger)
        if builder is None:
            raise BackendError(f"{library.flavour} cannot create a builder: {log.reason()}")
        # TensorRT 10 must be told; 11 and TensorRT-RTX know no other networks, and ignore it.
        network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        attentions = parse(library, network, job)
        config = builder.create_builder_config()
        monitor = progress_monitor(module, hear)  # a name for it, since the library does not keep it alive
        config.progress_monitor = monitor
        _configure(library, job, config)
        _add_profiles(library, job, builder, config)
        with kept_timings(module, config, job.timings) if job.timings else nullcontext():
            log.errors.clear()  # timings that could not be read are no reason for what goes wrong from here on
            engine: Any = builder.build_serialized_network(network, config)
            if engine is None:
                reason = log.reason().rstrip(".")
                raise BuildError(f"{library.flavour} cannot build {job.name}: {reason}. {advice(job)}")
        found = findings(log.lines)
    # A view: a copy of an engine would be gigabytes more.
    view = memoryview(engine)
    plan.write_bytes(view)
    return Facts(
        plan_bytes=view.nbytes,
        plan_sha256=hashlib.sha256(view).hexdigest(),
        weight_bytes=found.weight_bytes,
        activation_bytes=found.activation_bytes,
        attentions=len(attentions),
        unfused=found.unfused(attentions, len(job.profiles)),
        largest=found.largest,
        layers=len(found.layers),
        coded=found.coded,
    )


def _configure(library: Library, job: Job, config: "trt.IBuilderConfig") -> None:
    module = library.module
    # Else the log names neither layers nor their ONNX nodes, and there is nothing to make a report of.
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = job.options.level
    if not job.options.tf32:
        # On unless it is cleared.
        config.clear_flag(module.BuilderFlag.TF32)
    # A flag of the engine and not of the run: without it the library takes no budget.
    if job.options.weight_streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    if job.options.refit:
        config.set_flag(module.BuilderFlag.REFIT)
    if library.flavour == "tensorrt-rtx":
        _configure_rtx(library, job, config)


def _configure_rtx(library: Library, job: Job, config: Any) -> None:
    module = library.module
    if not job.options.weight_streaming:  # which allocates as it runs, and cannot be captured anyway
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
            extents = profile.shape(port)
            low, best, high = ([getattr(e, corner) for e in extents] for corner in ("low", "best", "high"))
            wanted.set_shape(port.name, dims(low), dims(best), dims(high))
        if config.add_optimization_profile(wanted) < 0:
            raise BuildError(f"{library.flavour} does not take profile {profile} for {job.name}")


def main() -> None:
    """Serve one request."""
    answers = _own_output()

    def answer(message: Answer) -> None:
        answers.write(line(message))
        answers.flush()

    logging.getLogger("lssgen").addHandler(_Telling(answer))
    # Before the request is read; a parent that died even earlier has closed our input, which ends this too.
    _end_with_parent()
    request = request_of(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        facts = compile_graph(request.job, request.plan, lambda phase, share: answer(Step(phase, share)))
    except LssgenError as error:
        answer(Refused(type(error).__name__, str(error)))
    except OSError as error:
        answer(Unwritten(error.errno, error.strerror or str(error), str(error.filename or request.plan)))
    else:
        answer(Done(facts))


def _own_output() -> Any:
    """What was standard output; what the libraries print there goes to standard error instead."""
    own = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own


def _end_with_parent() -> None:
    """Let the kernel kill this process when its parent dies: the compiler may not let a Python thread run."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    # Not sys.exit, which ends this thread only; the compiler may be in the middle of minutes of C++.
    os._exit(1)


class _Telling(logging.Handler):
    """Hands warnings to whoever asked for the build."""

    def __init__(self, answer: Callable[[Answer], None]) -> None:
        super().__init__(logging.WARNING)
        self._answer = answer

    def emit(self, record: logging.LogRecord) -> None:
        self._answer(Warned(record.getMessage()))


if __name__ == "__main__":
    main()
