"""How much faster one graph's engine is than another's: measured in turn, on the machine at hand."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Engine
from lssgen.engines.demand import Demand, profiles_of
from lssgen.parity.samples import sample_inputs, shape_of

ROUNDS, WARM_UP = 15, 2
"""Calls of each that are timed, in turn, and calls before these."""


def step_speedups(before: Bundle, after: Bundle, backend: Backend) -> dict[str, float]:
    """Time of a step before, divided by that after, at every resolution; medians of pairs that ran one after another.

    Args:
        before, after: Bundles of the same model.
        backend: Engine that runs both.

    Returns:
        The ratio by "width x height" in pixels; more than 1: the other one is faster.
    """
    found: dict[str, float] = {}
    cell = before.manifest.facts.cell_px
    for size in before.manifest.resolutions:
        calls = [_call(bundle, backend, size) for bundle in (before, after)]
        times: list[tuple[float, float]] = []
        for number in range(WARM_UP + ROUNDS):
            first, second = (_timed(call) for call in calls)
            if number >= WARM_UP:
                times.append((first, second))
        height, width = (side // cell * cell for side in size)
        found[f"{width}x{height}"] = round(median(first / second for first, second in times), 3)
    return found


def _timed(call: Callable[[], None]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def _call(bundle: Bundle, backend: Backend, size: tuple[int, int]) -> Callable[[], None]:
    """A step of a bundle at a resolution, until its result is there."""
    cell = bundle.manifest.facts.cell_px
    name = bundle.manifest.step_at(size[0] // cell, size[1] // cell)
    demand = Demand(graphs=(name,), resolutions=(size,))
    profile = profiles_of(bundle.manifest, demand)[name][0]
    axes = {axis: extent.best for axis, extent in profile.axes.items()}
    engines = backend.open(bundle, demand)
    run, read = _bound(engines[name], backend, axes)

    def call(keep: object = engines) -> None:
        del keep
        run()
        read()

    return call


def _bound(
    engine: Engine, backend: Backend, axes: Mapping[str, int]
) -> tuple[Callable[[], None], Callable[[], object]]:
    inputs = sample_inputs(engine.inputs, axes)
    buffers = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
    for name, value in inputs.items():
        buffers[name].write(value)
    for port in engine.outputs:
        buffers[port.name] = backend.empty(shape_of(port, axes), port.dtype)
    return engine.bind(buffers), buffers[engine.outputs[0].name].read
