"""Leaving a stage before its end: which of its rows are left, and how the last of them ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from lssgen.plan.levels import Evaluation, Level
from lssgen.plan.schedules import Schedule
from lssgen.plan.shares import share_of
from lssgen.plan.solvers.moves import clean_step
from lssgen.plan.table import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of a stage.

    Attributes:
        steps: The rows.
        evaluations: Evaluation of each row.
        levels: (image, noise) weights in the latent that each leaves.
        known: Every level of the schedule, by its sigma.
    """

    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    levels: tuple[tuple[float, float], ...]
    known: Mapping[float, Level]

    @classmethod
    def of(cls, steps: tuple[Step, ...], evaluations: Sequence[Evaluation], cut: Sequence[Evaluation]) -> Self:
        """Those of a stage that is painted to its end.

        Args:
            steps: Its rows.
            evaluations: One a row.
            cut: What its start has cut off the schedule.
        """
        return cls(
            steps=steps,
            evaluations=tuple(evaluations),
            levels=tuple((evaluation.to.image, evaluation.to.noise) for evaluation in evaluations),
            known={level.sigma: level for one in (*cut, *evaluations) for level in (one.level, one.to)},
        )

    @property
    def top(self) -> Level:
        """Level that the stage starts at."""
        return self.known[self.steps[0].sigma]

    def starts_above(self, share: float, schedule: Schedule, evaluations: int) -> list[int]:
        """Rows that begin a step at more than a noise share.

        Args:
            share: In [0, 1).
            schedule: Says what the levels mean.
            evaluations: Rows that the solver makes of a step.
        """
        # By what a row says of itself: PNDM's second one is made at another level than its evaluation's.
        return [
            index
            for index, step in enumerate(self.steps)
            if index % evaluations == 0 and share_of(schedule, self.known[step.sigma]) > share
        ]

    def kept(self, count: int) -> "Rows":
        """The first `count` rows, at whose end the noisy state is taken over."""
        steps = self.steps[:count]
        end = self.known[steps[-1].next_sigma]
        return Rows(
            steps=steps,
            evaluations=self.evaluations[:count],
            levels=(*self.levels[: len(steps) - 1], (end.image, end.noise)),
            known=self.known,
        )

    def jumping(self, last: int) -> "Rows":
        """The rows up to number `last`, which jumps to the clean latent that it estimates, whatever the solver."""
        return Rows(
            steps=(*self.steps[:last], clean_step(self.evaluations[last])),
            evaluations=self.evaluations[: last + 1],
            levels=(*self.levels[:last], (1.0, 0.0)),
            known=self.known,
        )
