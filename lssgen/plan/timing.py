"""What a plan takes in time, from arithmetic and from costs that were measured once on a machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.facts import ModelFacts
from lssgen.plan.table import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Milliseconds as a sum over some quantities: fixed + per[0] * q[0] + per[1] * q[1] + ...

    Attributes:
        fixed: Part that is always there.
        per: Milliseconds of a unit of each quantity.

    Raises:
        ValueError: A part is below zero, or not finite: such costs were not measured but damaged.
    """

    fixed: float
    per: tuple[float, ...]

    def __post_init__(self) -> None:
        for part in (self.fixed, *self.per):
            if not 0 <= part < inf:
                raise ValueError(f"a cost is {part:g}")

    def at(self, *quantities: float) -> float:
        """Its value."""
        return self.fixed + sum(each * quantity for each, quantity in zip(self.per, quantities, strict=True))

    @classmethod
    def through(cls, quantities: list[tuple[float, ...]], times: list[float]) -> Self:
        """The line nearest to some measurements, by relative error, with no part below zero.

        Of parts that the measurements cannot tell apart, as those of one size, the last ones get nothing.

        Args:
            quantities: Quantities of every measurement; at least one.
            times: Their milliseconds, above zero.

        Raises:
            PlanError: There is no measurement.
        """
        if not times:
            raise PlanError("a cost needs a measurement at least; measure the bundle with lssgen bench")
        table = np.asarray(quantities, np.float64).reshape(len(times), -1)
        known = len({tuple(row) for row in table.tolist()})
        # What grows explains one measurement alone; with another size comes the fixed part, then the further ones.
        columns = np.column_stack([table[:, :1], np.ones(len(times)), table[:, 1:]])[:, : max(known, 1)]
        found = np.zeros(table.shape[1] + 1)
        found[: columns.shape[1]] = _not_below_zero(columns / np.asarray(times)[:, None])
        return cls(fixed=float(found[1]), per=(float(found[0]), *map(float, found[2:])))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeCosts:
    """Milliseconds of the parts of a run of one picture, as they were measured.

    Attributes:
        run: Everything that a run does once, the text encoder included.
        step: Time of one step, by 10^9 FLOP that grow with the cells, and by those that grow with their square.
        stage: Time of entering a stage and leaving it, by thousands of cells.
        transition: Time by thousands of cells of the larger latent.
        decode: Time by thousands of cells.
        transitions: The same as `transition`, of every way to the next size that was measured.

    Raises:
        ValueError: A part has other quantities than these, or is below zero.
    """

    run: float
    step: Line
    stage: Line
    transition: Line
    decode: Line
    transitions: Mapping[str, Line] = field(default_factory=dict[str, Line])

    def __post_init__(self) -> None:
        if not 0 <= self.run < inf:
            raise ValueError(f"the cost of a run is {self.run:g}")
        by_cells = (self.stage, self.transition, self.decode, *self.transitions.values())
        if len(self.step.per) != 2 or any(len(line.per) != 1 for line in by_cells):
            raise ValueError("costs are those of other quantities")


def step_work(facts: ModelFacts, cells: int, passes: int) -> tuple[float, float]:
    """10^9 FLOP of a step: those that are fixed or grow with the cells, and those that grow with their square."""
    cost = facts.cost
    linear = passes * (cost.fixed + cost.per_cell * cells)
    return linear / 1e9, passes * cost.per_cell_pair * cells * cells / 1e9


def predicted_ms(plan: Plan, facts: ModelFacts, costs: TimeCosts, batch: int = 1) -> float:
    """Milliseconds of a run of one picture, or of several that are painted together and share what is fixed."""
    total, passage = costs.run, costs.transitions.get(plan.scaling_space, costs.transition)
    for index, stage in enumerate(plan.stages):
        cells = stage.height * stage.width
        thousands = batch * cells / 1e3
        total += costs.stage.at(thousands) + (passage.at(thousands) if index else 0.0)
        total += sum(costs.step.at(*step_work(facts, cells, batch * len(step.guidance))) for step in stage.steps)
    last = plan.stages[-1]
    return total + costs.decode.at(batch * last.height * last.width / 1e3)


def predicted_time_ratio(plan: Plan, single: Plan, facts: ModelFacts, costs: TimeCosts) -> float:
    """Predicted time of one stage over that of a plan: how many times as fast the stages are, everything included."""
    return predicted_ms(single, facts, costs) / predicted_ms(plan, facts, costs)


def _not_below_zero(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares of columns @ x = 1 with no x below zero: columns that want to be are left out, one by one.

    (Few columns and few rows; the active set of Lawson and Hanson would be the same here.)
    """
    kept = list(range(columns.shape[1]))
    while True:
        solution = np.linalg.lstsq(columns[:, kept], np.ones(len(columns)), rcond=None)[0]
        if len(kept) == 1 or (solution >= 0).all():
            found = np.zeros(columns.shape[1])
            found[kept] = solution
            return found
        kept.pop(int(np.argmin(solution * np.abs(columns[:, kept]).mean(0))))
