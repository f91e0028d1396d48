"""The proof of a compiled engine: it runs once on the device, and is compared with ONNX Runtime on the CPU."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lssgen.engines.cuda import CudaBuffer, Device
from lssgen.engines.trt.context import enqueue, new_context, tie
from lssgen.engines.trt.job import Job
from lssgen.engines.trt.library import Library
from lssgen.errors import BuildError
from lssgen.manifest import Precision, Probe
from lssgen.parity.accuracy import Outputs, compare
from lssgen.parity.reference import reference, reference_outputs
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Array, Port

if TYPE_CHECKING:
    import tensorrt as trt


class Exam:
    """What any engine of a graph must compute at the smallest of its sizes.

    Args:
        library: Library that engines are of.
        device: GPU that they run on.
        job: The graph and its profiles, smallest first.
        precision: Precision of the network inside.

    Raises:
        BackendError: What it is compared with cannot be computed: a package is not installed.
    """

    def __init__(self, library: Library, device: Device, job: Job, precision: Precision) -> None:
        # At once: that a package is missing must not come out after minutes of building.
        reference()
        self._library = library
        self._device = device
        self._job = job
        # TF32 has float16's mantissa.
        self._precision: Precision = "fp16" if job.options.tf32 and precision == "fp32" else precision
        self._axes = {axis: extent.best for axis, extent in job.profiles[0].axes.items()}
        self._inputs = sample_inputs(job.inputs, self._axes)

    def take(self, plan: Path, profile: int, most: float = 1.0) -> Probe:
        """Run an engine and compare.

        Args:
            plan: File of the engine.
            profile: Number of its profile that is the job's first one.
            most: Largest error, where that is less than the precision may show.

        Raises:
            BuildError: It does not run, is too far off (says how far), or there is nothing to compare with.
        """
        probe = compare(Outputs(self._run(plan, profile)), self._wanted, self._axes, self._precision)
        probe = replace(probe, bound=min(probe.bound, most))
        if not probe.finite:
            raise BuildError("it gives numbers that are not finite")
        # Written so that an error of NaN is refused.
        if not probe.error <= probe.bound:
            raise BuildError(
                f"its outputs are {probe.error:.2g} (relative) away from those of ONNX Runtime, more than the "
                f"{probe.bound:.2g} that rounding explains"
            )
        return probe

    @cached_property
    def _wanted(self) -> Outputs:
        # Once, and only when an engine is there to compare: the CPU takes minutes for a large graph.
        return Outputs(reference_outputs(self._job.onnx, self._inputs))

    def _run(self, plan: Path, profile: int) -> dict[str, Array]:
        library, device = self._library, self._device
        outputs = tuple(Port(name, array.dtype.name, array.shape) for name, array in self._wanted.values.items())
        engine = self._loaded(plan)
        context = new_context(library, device, engine, "it", profile)
        scratch = device.allocate(engine.device_memory_size_v2)
        arrays = {**self._inputs, **self._wanted.values}
        buffers = {name: CudaBuffer(device, array.shape, array.dtype) for name, array in arrays.items()}
        for name, array in self._inputs.items():
            buffers[name].write(array)
        tie(context, self._job.name, self._job.inputs, outputs, buffers, scratch)
        enqueue(library, device, context, "it")
        return {port.name: buffers[port.name].read() for port in outputs}

    def _loaded(self, plan: Path) -> "trt.ICudaEngine":
        with self._device.turn, self._library.listen() as log:
            self._device.choose()
            runtime: Any = self._library.module.Runtime(self._library.logger)
            engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan.read_bytes())
            if engine is None:
                raise BuildError(f"it cannot be loaded: {log.reason()}")
        # Before the context, or the library does not take it.
        if self._job.options.weight_streaming:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return engine
