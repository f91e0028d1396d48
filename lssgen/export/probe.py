"""The proof of a graph: ONNX Runtime against the torch module, on seeded inputs."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lssgen.bundle import Probe
from lssgen.engines.base import Port
from lssgen.errors import ProbeError
from lssgen.export.config import Precision

BOUNDS: Mapping[Precision, float] = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}
"""Largest relative L2 error of an output. float32 graphs differ by a few 1e-6 from torch, so 1e-3 is a mistake and not
rounding; half precision rounds at every layer, and these are several times what healthy networks show."""

PICTURE_BOUNDS: Mapping[Precision, float] = {"fp32": 1e-2, "fp16": 5e-2, "bf16": 1e-1}
"""The same for grey levels, where one level of difference is already 0.4 %."""


def probe_graph(
    name: str,
    path: Path,
    exact: nn.Module,
    rounded: nn.Module | None,
    samples: Sequence[tuple[Mapping[str, int], Mapping[str, Tensor]]],
    outputs: Sequence[Port],
    precision: Precision,
    threads: int = 0,
) -> tuple[Probe, ...]:
    """Compare a graph with the float32 module it was made from.

    ONNX Runtime's CPU cannot compute in bfloat16. Such a graph is proved in two halves: its float32 twin, which has the
    rounded weights, and the module in bfloat16, both against the module in float32. The larger error counts.

    Args:
        exact: The module in float32, weights loaded.
        rounded: The module in bfloat16, for a bfloat16 graph.
        samples: Sizes and inputs of each probe.
        outputs: The graph's output ports.

    Raises:
        ProbeError: ONNX Runtime refuses the graph, or an output is wrong or not finite.
    """
    runnable = float32_twin(path) if precision == "bf16" else nullcontext(path)
    probes: list[Probe] = []
    with runnable as file:
        session = open_session(file, threads)
        for axes, inputs in samples:
            wanted = run_torch(exact, inputs, outputs)
            probe = compare(run_graph(session, inputs, outputs), wanted, axes, precision)
            require(name, probe)
            if rounded is not None:
                low = compare(run_torch(rounded, inputs, outputs), wanted, axes, precision)
                require(name, low)
                probe = replace(low, error=max(low.error, probe.error))
            probes.append(probe)
    return tuple(probes)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one evaluation gave, by port."""

    values: Mapping[str, NDArray[Any]]

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(value).all()) for value in self.values.values())

    @property
    def peak(self) -> float:
        return max(float(np.abs(value.astype(np.float64)).max(initial=0.0)) for value in self.values.values())


def run_torch(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[Port]) -> Outputs:
    """Evaluate the module."""
    with torch.no_grad():
        results = module(*inputs.values())
    results = results if isinstance(results, tuple) else (results,)
    return Outputs({port.name: value.numpy() for port, value in zip(outputs, results, strict=True)})


def run_graph(session: ort.InferenceSession, inputs: Mapping[str, Tensor], outputs: Sequence[Port]) -> Outputs:
    """Evaluate the graph."""
    names = [port.name for port in outputs]
    results = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return Outputs({name: np.asarray(value) for name, value in zip(names, results, strict=True)})


def compare(got: Outputs, wanted: Outputs, axes: Mapping[str, int], precision: Precision) -> Probe:
    """How far `got` is from `wanted`, and how far it may be."""
    errors = [relative_error(got.values[name], value) for name, value in wanted.values.items()]
    pictures = any(value.dtype == np.uint8 for value in wanted.values.values())
    bound = (PICTURE_BOUNDS if pictures else BOUNDS)[precision]
    return Probe(axes=axes, error=max(errors), bound=bound, finite=got.finite, peak=got.peak)


def relative_error(got: NDArray[Any], wanted: NDArray[Any]) -> float:
    """|got - wanted| / |wanted|, L2. Infinite where the shapes differ or a number is not finite."""
    if got.shape != wanted.shape:
        return float("inf")
    wanted = wanted.astype(np.float64)
    error = float(np.linalg.norm(got.astype(np.float64) - wanted) / (np.linalg.norm(wanted) + 1e-12))
    return error if np.isfinite(error) else float("inf")


def require(name: str, probe: Probe) -> None:
    """Refuse a graph that does not compute what it should.

    Raises:
        ProbeError: Says how far off, at which sizes.
    """
    sizes = ", ".join(f"{axis} {size}" for axis, size in probe.axes.items())
    if not probe.finite:
        raise ProbeError(f"{name} gives numbers that are not finite at {sizes}")
    if not probe.error <= probe.bound:
        raise ProbeError(
            f"{name} differs from its torch module by {probe.error:.2g} (relative), more than {probe.bound:g}, "
            f"at {sizes}"
        )


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A graph in ONNX Runtime on the CPU.

    Raises:
        ProbeError: ONNX Runtime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
        raise ProbeError(f"ONNX Runtime refuses {path.name}: {error}") from error


@contextmanager
def float32_twin(path: Path) -> Generator[Path]:
    """The same graph with float32 in the place of bfloat16, in a temporary file: the CPU cannot run bfloat16."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.BFLOAT16:
            value.const_value = ir.Tensor(value.const_value.numpy().astype(np.float32), name=value.name)
            value.dtype = ir.DataType.FLOAT
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.dtype == ir.DataType.BFLOAT16:
                value.dtype = ir.DataType.FLOAT
        for attribute in list(node.attributes.values()):
            if attribute.type == ir.AttributeType.INT and attribute.name in ("to", "dtype", "stash_type"):
                if attribute.as_int() == ir.DataType.BFLOAT16:
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT)
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.BFLOAT16:
                widened = ir.Tensor(attribute.as_tensor().numpy().astype(np.float32))
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, widened)
    with TemporaryDirectory(prefix="lssgen-") as folder:
        twin = Path(folder) / path.name
        ir.save(model, twin, external_data=f"{path.stem}.data")
        yield twin
