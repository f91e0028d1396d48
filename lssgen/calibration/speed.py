"""How much faster one graph's engine is than another's: measured in turn, on the machine at hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, sqrt
from statistics import median
from time import perf_counter

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Engine
from lssgen.engines.demand import Demand, profiles_of
from lssgen.parity.samples import sample_inputs, shape_of

ROUNDS, MOST_ROUNDS, WARM_UP = 15, 61, 2
"""Calls of each that are timed, in turn: at least, and at most, where it is not clear which is faster; and calls before
these."""

BUDGET_S = 60.0
"""Seconds after which no more rounds are added."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How much faster one engine is than another.

    Attributes:
        ratio: Median of the ratios of their times; more than 1: it is faster.
        least, most: Ends of the interval that holds the true median at 95 % or more, whatever the distribution.
    """

    ratio: float
    least: float
    most: float

    @property
    def is_clear(self) -> bool:
        """Whether it is known which one is faster."""
        return not self.least <= 1 <= self.most


SAME = Speed(1.0, 1.0, 1.0)
"""Ratio of a graph to itself."""


def speed_of(ratios: Sequence[float]) -> Speed:
    """The median, and the interval between the order statistics that hold it.

    Source: Conover, Practical Nonparametric Statistics, confidence interval for a quantile, with the normal
        approximation to the binomial distribution rounded outwards.
    """
    ordered, count = sorted(ratios), len(ratios)
    outside = max(floor(count / 2 - 0.98 * sqrt(count)) - 1, 0)
    return Speed(median(ordered), ordered[outside], ordered[count - 1 - outside])


def step_speedups(before: Bundle, after: Bundle, backend: Backend) -> dict[str, Speed]:
    """Time of a step before, divided by that after, at every resolution, of pairs that ran one after another.

    Args:
        before, after: Bundles of the same model.
        backend: Engine that runs both.

    Returns:
        The speed of `after` by "width x height" in pixels.
    """
    found: dict[str, Speed] = {}
    cell = before.manifest.facts.cell_px
    for size in before.manifest.resolutions:
        height, width = (side // cell for side in size)
        graphs = [bundle.manifest.graphs[bundle.manifest.step_at(height, width)] for bundle in (before, after)]
        same = graphs[0].sha256 == graphs[1].sha256
        found[f"{width * cell}x{height * cell}"] = (
            SAME if same else _raced(*(_call(bundle, backend, size) for bundle in (before, after)))
        )
    return found


def _raced(before: Callable[[], None], after: Callable[[], None]) -> Speed:
    """Both in turn, and each first in every other round, until it is clear which is faster."""
    ratios: list[float] = []
    began = perf_counter()
    for number in range(WARM_UP + MOST_ROUNDS):
        if number % 2:
            late, early = _timed(after), _timed(before)
        else:
            early, late = _timed(before), _timed(after)
        if number >= WARM_UP:
            ratios.append(early / late)
        enough = len(ratios) >= ROUNDS
        if enough and (speed_of(ratios).is_clear or perf_counter() - began > BUDGET_S):
            break
    return speed_of(ratios)


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
