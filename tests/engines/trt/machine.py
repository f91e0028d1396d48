"""A machine with one GPU, on doubles, and a bundle whose engines are built there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cuda_double import CudaDouble

from lssgen.bundle import Bundle
from lssgen.engines.cuda import Device
from lssgen.engines.trt.backend import TensorRT
from lssgen.engines.trt.cache import Entry
from lssgen.engines.trt.engine import TrtEngine
from lssgen.engines.trt.library import Library
from lssgen.engines.trt.order import Order
from lssgen.ports import Port
from lssgen.runtime import Pipeline


@dataclass
class Machine:
    """A machine with one GPU, and a bundle whose engines are built."""

    cuda: CudaDouble
    bundle: Bundle
    order: Order
    library: Library
    entries: Mapping[str, Entry]

    def backend(self, **options: bool) -> TensorRT:
        return TensorRT(self.library, Device(), self.order, **options)

    def paint(self, backend: TensorRT) -> Any:
        with Pipeline(self.bundle, backend) as pipeline:
            return pipeline(
                "a star", seed=3, num_inference_steps=6, min_resolution=32, num_images=2, scaling_space="latent"
            )


Make = Callable[..., Machine]


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
