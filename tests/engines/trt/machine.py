"""A machine with GPUs, on doubles, and a bundle whose engines are built there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda_double import CudaDouble
from trt_double import Faults

from lssgen.bundle import Bundle
from lssgen.engines.base import Buffer
from lssgen.engines.cuda import Device
from lssgen.engines.demand import Demand
from lssgen.engines.trt.backend import TensorRT, TrtEngines
from lssgen.engines.trt.cache import Entry
from lssgen.engines.trt.compiler import compile_graph
from lssgen.engines.trt.engine import TrtBinding, TrtEngine
from lssgen.engines.trt.job import Facts, Job
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.options import TrtOptions
from lssgen.engines.trt.order import Order
from lssgen.engines.trt.progress import Tell
from lssgen.ports import Port


@dataclass
class Machine:
    """A machine with GPUs, and a bundle whose engines are built."""

    cuda: CudaDouble
    bundle: Bundle
    order: Order
    library: Library
    entries: Mapping[str, Entry]

    @property
    def faults(self) -> Faults:
        faults: Faults = self.library.module.faults
        return faults

    def backend(self, *, device: int = 0, **options: Any) -> TensorRT:
        build = self.order.options
        given = TrtOptions(
            device_id=device,
            engines=self.order.folder,
            tf32=build.tf32,
            refit=build.refit,
            weight_streaming=build.weight_streaming,
            **options,
        )
        return TensorRT(self.library, Device(device), given)

    def open(self, *graphs: str, backend: TensorRT | None = None, **demand: Any) -> TrtEngines:
        return (backend or self.backend()).open(self.bundle, Demand(graphs=graphs, **demand))

    def paint(self, backend: Any, *, num_images: int = 2) -> Any:
        from lssgen.runtime import Pipeline

        with Pipeline(self.bundle, backend) as pipeline:
            return pipeline(
                "a star",
                seed=3,
                num_inference_steps=6,
                min_resolution=32,
                num_images=num_images,
                scaling_space="latent",
            )


Make = Callable[..., Machine]


def compile_here(job: Job, plan: Path, tell: Tell) -> Facts:
    """In place of `compile_apart`: the double is in this process and in no other."""
    return compile_graph(job, plan, lambda phase, share: tell(job.name, phase, share))


def bound(backend: Any, engine: TrtEngine, **axes: int) -> TrtBinding:
    """A binding of an engine of the toy bundle to new buffers, for one picture unless told otherwise."""
    binding = engine.bind(buffers(backend, engine, **axes))
    assert isinstance(binding, TrtBinding)
    return binding


def buffers(backend: Any, engine: TrtEngine, **axes: int) -> dict[str, Buffer]:
    """A buffer for every port."""
    sizes = {"batch": 1, "picture_height": 8 * axes["height"], "picture_width": 8 * axes["width"], **axes}
    return {port.name: backend.empty(shape(port, sizes), port.dtype) for port in (*engine.inputs, *engine.outputs)}


def shape(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in port.shape)
