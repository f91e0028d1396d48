"""Components on several engines, one after another: how long a call takes, and how far it is from float32."""

from collections.abc import Mapping
from itertools import product
from statistics import median
from time import perf_counter

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Engine
from lssgen.engines.cpu.choice import Trial
from lssgen.engines.cpu.probe import VOCABULARY, WRONG
from lssgen.engines.demand import Demand, Size, profiles_of, size_in_cells
from lssgen.errors import EngineError
from lssgen.manifest import Graph
from lssgen.parity.accuracy import Outputs, relative_error
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.ports import Array

BUDGET_S = 1.0
"""Seconds of one trial after its first call: at most twenty calls, and of those that take longer only one, since noise
matters less to them and a decoder of 1024 px takes a minute on one thread."""


def trials_of(bundle: Bundle, graph: str, backends: Mapping[str, Backend]) -> list[tuple[Size, list[Trial]]]:
    """Try a component at all its usual sizes on every engine; the first is the reference.

    An engine that cannot run it is told so in its trial. A component that runs at no usual size is not measured, and
    stays with the first.

    Returns:
        Trials by picture size in pixels, (height, width), smallest first.
    """
    cases = _cases(bundle, graph)
    if not cases:
        return [((0, 0), [Trial(engine=next(iter(backends)), ms=0.0, how="no usual size, so it was not measured")])]
    found: dict[Size, list[Trial]] = {size: [] for size in cases}
    wanted: dict[Size, Mapping[str, Array]] = {}
    for (name, backend), (size, axes) in product(backends.items(), cases.items()):
        try:
            ms, outputs = _timed(bundle, graph, backend, axes)
        except EngineError as error:
            found[size].append(Trial(engine=name, refused=str(error)))
            continue
        error = _error(outputs, wanted.setdefault(size, outputs))
        found[size].append(Trial(engine=name, ms=ms, error=error, how=_format(backend, graph)))
    return list(found.items())


def _cases(bundle: Bundle, graph: str) -> dict[Size, Mapping[str, int]]:
    """Axes of the usual runs of a graph by picture size, smallest first; of one size, those with the most branches."""
    manifest = bundle.manifest
    entry, cell = manifest.graphs[graph], manifest.facts.cell_px
    found: dict[Size, Mapping[str, int]] = {}
    for profile in profiles_of(manifest, Demand(graphs=(graph,), previews=True)).get(graph, ()):
        axes = {axis: extent.best for axis, extent in profile.axes.items()}
        shapes = {port.name: shape_of(port, axes) for port in entry.inputs}
        height, width = size_in_cells(entry, shapes) or (0, 0)
        found[height * cell, width * cell] = axes
    return found


def _timed(
    bundle: Bundle, graph: str, backend: Backend, axes: Mapping[str, int]
) -> tuple[float, dict[str, Array]]:  # fmt: skip
    """Median milliseconds of a call, and what it gave."""
    # Opened for every size, so that no more than one copy of the weights is in memory.
    engines = backend.open(bundle, Demand(graphs=(graph,)))
    try:
        return _timed_on(engines[graph], bundle.manifest.graphs[graph], backend, axes)
    finally:
        engines.close()


def _timed_on(
    engine: Engine, entry: Graph, backend: Backend, axes: Mapping[str, int]
) -> tuple[float, dict[str, Array]]:  # fmt: skip
    inputs = sample_inputs(entry.inputs, axes, vocabulary={port.name: VOCABULARY for port in entry.inputs})
    buffers = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
    buffers |= {port.name: backend.empty(shape_of(port, axes), port.dtype) for port in engine.outputs}
    for name, value in inputs.items():
        buffers[name].write(value)
    run = engine.bind(buffers)
    run()
    times: list[float] = []
    while sum(times) < BUDGET_S and len(times) < 20:
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    return 1e3 * median(times), {port.name: buffers[port.name].read() for port in engine.outputs}


def _error(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    if not Outputs(got).finite:
        return WRONG
    return max(relative_error(got[port], value) for port, value in wanted.items())


def _format(backend: Backend, graph: str) -> str:
    components = backend.describe().get("components")
    return str(components.get(graph)) if isinstance(components, dict) else "float32"
