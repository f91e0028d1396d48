"""A time that a picture may take."""

from dataclasses import dataclass

from lssgen.choices import choice, refuse_outside
from lssgen.errors import PlanError

_TIME = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a picture may take; the smaller of the two counts.

    Attributes:
        budget_ms: Milliseconds of one picture, text and decoder included, loading apart.
        speedup: Number of times that it is as fast as one stage with all steps.

    Raises:
        PlanError: A number out of its range.
    """

    budget_ms: float | None = choice(
        None,
        help="milliseconds that a picture may take: the best schedule that fits is chosen, see lssgen calibrate "
        "schedule",
        metavar="MS",
        least=1e-3,
        most=1e9,
        group=_TIME,
        unset="none",
    )
    speedup: float | None = choice(
        None,
        help="the same as a number of times faster than one stage with all steps",
        metavar="X",
        least=1,
        most=1e6,
        group=_TIME,
        unset="none",
    )

    def __post_init__(self) -> None:
        refuse_outside(self, PlanError)

    def milliseconds(self, single_ms: float) -> float:
        """The budget, where one stage with all steps takes so long."""
        return min(self.budget_ms or float("inf"), single_ms / self.speedup if self.speedup else float("inf"))

    def __str__(self) -> str:
        said = {"budget_ms": self.budget_ms, "speedup": self.speedup}
        return " and ".join(f"{name} {value:g}" for name, value in said.items() if value is not None)
