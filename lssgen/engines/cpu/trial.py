"""Components on several engines, one after another: how long a call takes, and how far it is from float32."""

from collections.abc import Mapping
from statistics import median
from time import perf_counter

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.engines.cpu.choice import Trial
from lssgen.engines.cpu.probe import VOCABULARY, WRONG
from lssgen.engines.demand import Demand, profiles_of
from lssgen.errors import EngineError
from lssgen.parity.accuracy import Outputs, relative_error
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.ports import Array

BUDGET_S = 1.0
"""Seconds of one trial after its first call; at least three calls, at most twenty."""


def trials_of(bundle: Bundle, graph: str, backends: Mapping[str, Backend]) -> list[Trial]:
    """Try a component, at its largest usual size, on every engine; the first is the reference.

    An engine that cannot run it is told so in its trial. A component that runs at no usual size is not measured, and
    stays with the first.
    """
    entry = bundle.manifest.graphs[graph]
    profiles = profiles_of(bundle.manifest, Demand(graphs=(graph,), previews=True)).get(graph)
    if not profiles:
        return [Trial(engine=next(iter(backends)), ms=0.0, how="it runs at no usual size, so it was not measured")]
    axes = {axis: extent.best for axis, extent in profiles[-1].axes.items()}
    inputs = sample_inputs(entry.inputs, axes, vocabulary={port.name: VOCABULARY for port in entry.inputs})
    trials: list[Trial] = []
    wanted: Mapping[str, Array] = {}
    for name, backend in backends.items():
        try:
            ms, outputs = _timed(bundle, graph, backend, inputs, axes)
        except EngineError as error:
            trials.append(Trial(engine=name, refused=str(error)))
            continue
        wanted = wanted or outputs
        trials.append(Trial(engine=name, ms=ms, error=_error(outputs, wanted), how=_format(backend, graph)))
    return trials


def _timed(
    bundle: Bundle, graph: str, backend: Backend, inputs: Mapping[str, Array], axes: Mapping[str, int]
) -> tuple[float, dict[str, Array]]:
    """Median milliseconds of a call, and what it gave."""
    engines = backend.open(bundle, Demand(graphs=(graph,)))
    try:
        engine = engines[graph]
        buffers = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
        buffers |= {port.name: backend.empty(shape_of(port, axes), port.dtype) for port in engine.outputs}
        for name, value in inputs.items():
            buffers[name].write(value)
        run = engine.bind(buffers)
        run()
        times: list[float] = []
        while len(times) < 3 or (sum(times) < BUDGET_S and len(times) < 20):
            began = perf_counter()
            run()
            times.append(perf_counter() - began)
        return 1e3 * median(times), {port.name: buffers[port.name].read() for port in engine.outputs}
    finally:
        engines.close()


def _error(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    if not Outputs(got).finite:
        return WRONG
    return max(relative_error(got[port], value) for port, value in wanted.items())


def _format(backend: Backend, graph: str) -> str:
    components = backend.describe().get("components")
    return str(components.get(graph)) if isinstance(components, dict) else "float32"
