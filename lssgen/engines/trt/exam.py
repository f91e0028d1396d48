"""The proof of a compiled engine: it runs once on the device, and is compared with ONNX Runtime on the CPU."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lssgen.bundle import Precision, Probe
from lssgen.engines.cuda import CudaBuffer
from lssgen.engines.trt.compiler import Job
from lssgen.engines.trt.engine import tie
from lssgen.engines.trt.library import Library
from lssgen.errors import BuildError
from lssgen.parity.accuracy import Outputs, compare
from lssgen.parity.reference import reference, reference_outputs
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Array, Port

if TYPE_CHECKING:
    import tensorrt as trt


class Exam:
    """What any engine of a graph must compute at the smallest of its sizes.

    Args:
        library: That engines are of.
        job: The graph, its profiles, smallest first, and the GPU.
        precision: Of the network inside.

    Raises:
        BackendError: What it is compared with cannot be computed: a package is not installed.
    """

    def __init__(self, library: Library, job: Job, precision: Precision) -> None:
        reference()
        self._library = library
        assert job.device is not None, "whoever asks for exchangeable weights has seen that there is one"
        self._device = job.device
        self._job = job
        # TF32 has float16's mantissa.
        self._precision: Precision = "fp16" if job.options.tf32 and precision == "fp32" else precision
        self._axes = {axis: extent.best for axis, extent in job.profiles[0].axes.items()}
        self._inputs = sample_inputs(job.inputs, self._axes)

    def take(self, plan: Any, profile: int, most: float = 1.0) -> Probe:
        """Run an engine and compare.

        Args:
            plan: The serialised engine.
            profile: Which of its profiles is the job's first one.
            most: How large the error may be, where that is less than the precision may show.

        Raises:
            BuildError: It does not run, is too far off (says how far), or there is nothing to compare with.
        """
        probe = compare(Outputs(self._run(plan, profile)), self._wanted, self._axes, self._precision)
        probe = replace(probe, bound=min(probe.bound, most))
        if not probe.finite:
            raise BuildError("it gives numbers that are not finite")
        if not probe.error <= probe.bound:
            raise BuildError(
                f"its outputs are {probe.error:.2g} (relative) away from those of ONNX Runtime, more than the "
                f"{probe.bound:.2g} that rounding explains"
            )
        return probe

    @cached_property
    def _wanted(self) -> Outputs:
        return Outputs(reference_outputs(self._job.onnx, self._inputs))

    def _run(self, plan: Any, profile: int) -> dict[str, Array]:
        module, device = self._library.module, self._device
        outputs = tuple(Port(name, array.dtype.name, array.shape) for name, array in self._wanted.values.items())
        with self._library.listen() as log:
            runtime: Any = module.Runtime(self._library.logger)
            engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise BuildError(f"it cannot be loaded: {log.reason()}")
            if self._job.options.weight_streaming:
                engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
            context = engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
            if not (context and context.set_optimization_profile_async(profile, device.stream)):
                raise BuildError(f"it cannot prepare its profile {profile}: {log.reason()}")
            device.synchronize()
            scratch = device.allocate(engine.device_memory_size_v2)
            arrays = {**self._inputs, **self._wanted.values}
            buffers = {name: CudaBuffer(device, array.shape, array.dtype) for name, array in arrays.items()}
            for name, array in self._inputs.items():
                buffers[name].write(array)
            tie(context, self._job.name, self._job.inputs, outputs, buffers, scratch)
            if not context.execute_async_v3(device.stream):
                raise BuildError(f"it failed on {device.name}: {log.reason()}")
            return {port.name: buffers[port.name].read() for port in outputs}
