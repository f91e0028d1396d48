"""The proof of a graph: ONNX Runtime against the torch module, on seeded inputs."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lssgen.errors import ExportError, ProbeError
from lssgen.manifest import Precision, Probe
from lssgen.models.nets.recipe import Recipe
from lssgen.parity.accuracy import Outputs, compare
from lssgen.parity.pieces import Arrays, open_pieces, session
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Port

DIRECT_BYTES = 1 << 30
"""Largest float32 graph that is opened as it is, as the runtime will open it; larger ones run piece by piece."""

Sample = tuple[Mapping[str, int], Mapping[str, Tensor]]
"""Sizes of the axes, and an input for every port."""


def torch_inputs(recipe: Recipe, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """A tensor for every input port of a recipe; see `lssgen.parity.samples`.

    Args:
        recipe: Says what the inputs may hold.
        sizes: Size of every dynamic axis that they name.
        seed: Equal seeds give equal inputs.
    """
    made = sample_inputs(recipe.inputs, sizes, seed, vocabulary=recipe.vocabulary, choices=recipe.choices)
    return {name: torch.from_numpy(value) for name, value in made.items()}


def probe_graph(
    name: str,
    path: Path,
    exact: nn.Module,
    samples: Sequence[Sample],
    outputs: Sequence[Port],
    precision: Precision,
    threads: int = 0,
) -> tuple[Probe, ...]:
    """Compare a graph with the float32 module it was made from.

    Args:
        exact: The module in float32, with its weights.
        samples: Sizes and inputs of each probe.
        outputs: The graph's output ports.

    Raises:
        ProbeError: ONNX Runtime refuses the graph, or an output is wrong or not finite.
        ExportError: There is not enough memory.
    """
    run = _runner(path, precision, threads)
    probes: list[Probe] = []
    for axes, inputs in samples:
        try:
            wanted = run_torch(exact, inputs, outputs)
            got = Outputs(run({key: value.numpy() for key, value in inputs.items()}))
        except Exception as error:  # neither library has an error of its own for it
            if not (isinstance(error, MemoryError) or re.search(r"bad.?alloc|allocate", str(error))):
                raise
            raise ExportError(
                f"there is not enough memory to compare {name} with torch at {_said(axes)}; free some, or compare it "
                "at a small size (--probe small)"
            ) from error
        probe = compare(got, wanted, axes, precision)
        require(name, probe)
        probes.append(probe)
    return tuple(probes)


def _runner(path: Path, precision: Precision, threads: int) -> Callable[[Arrays], Arrays]:
    """How a graph is computed: as it is, or piece by piece with its weights on disk and its own rounding."""
    size = sum(file.stat().st_size for file in (path, path.with_suffix(".data")) if file.exists())
    # On the CPU, ONNX Runtime keeps float32 between half-precision nodes and would hide what overflows on a GPU.
    if precision != "fp32" or size > DIRECT_BYTES:
        return open_pieces(path, threads=threads).run
    graph = session(path, threads)

    names = [output.name for output in graph.get_outputs()]

    def run(feeds: Arrays) -> Arrays:
        made = graph.run(names, dict(feeds))
        return {name: np.asarray(value) for name, value in zip(names, made, strict=True)}

    return run


def run_torch(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[Port]) -> Outputs:
    """Evaluate the module."""
    with torch.no_grad():
        results = module(*inputs.values())
    results = results if isinstance(results, tuple) else (results,)
    return Outputs({port.name: value.numpy() for port, value in zip(outputs, results, strict=True)})


def require(name: str, probe: Probe) -> None:
    """Refuse a graph that does not compute what it should.

    Raises:
        ProbeError: Says how far off, at which sizes.
    """
    sizes = _said(probe.axes)
    if not probe.finite:
        raise ProbeError(f"{name} gives numbers that are not finite at {sizes}")
    # Written so that an error of NaN is refused.
    if not probe.error <= probe.bound:
        raise ProbeError(
            f"{name} differs from its torch module by {probe.error:.2g} (relative), more than {probe.bound:g}, "
            f"at {sizes}"
        )


def _said(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in axes.items())
