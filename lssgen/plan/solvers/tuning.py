"""What a solver is told besides the evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lssgen.plan.levels import Evaluation, Level

Variant = Literal["midpoint", "heun", "bh1", "bh2"]
"""Form of the higher orders: DPM-Solver's "midpoint" and "heun", UniPC's "bh1" and "bh2"."""

# diffusers' `len(self.timesteps) < 15`; DPM-Solver's authors found higher orders unstable at the end of short
# schedules.
FEW_STEPS = 15
"""Schedules shorter than this end with lower orders, where the scheduler's configuration allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What a scheduler's configuration says about its solver; each solver reads what concerns it.

    Attributes:
        order: Highest order, 1 to 3.
        variant: Form of the higher orders.
        predicts: Quantity that DPM-Solver and UniPC integrate: the clean "image" ("++"), or the "noise".
        stochastic: Draw fresh noise in every step (the SDE of DPM-Solver++, the restarts of flow models).
        lower_order_final: End short schedules with lower orders.
        euler_at_final: End with first order.
        uncorrected: Steps, counted in the full schedule, after which UniPC does not correct.
        eta: Share of fresh noise in first-order steps.
        wide: DDPM's larger variance.
        timestep_scaling: Factor in LCM's boundary condition.
    """

    order: int = 2
    variant: Variant = "midpoint"
    predicts: Literal["image", "noise"] = "image"
    stochastic: bool = False
    lower_order_final: bool = True
    euler_at_final: bool = False
    uncorrected: tuple[int, ...] = ()
    eta: float = 0.0
    wide: bool = False
    timestep_scaling: float = 10.0


@dataclass(frozen=True, slots=True)
class Course:
    """A stage's schedule.

    Attributes:
        left: The evaluations of the stage, in order; the first one never has a history.
        cut: Evaluations before them, which a later stage leaves out.
    """

    left: Sequence[Evaluation]
    cut: Sequence[Evaluation] = ()

    def order(self, index: int, tuning: Tuning) -> int:
        """Order that the step `index` of `left` may have.

        It is bounded by the estimates that there are, and by the configuration at the end; it is 1 for the step into a
        clean picture, where the log-SNR is infinite.
        """
        last = len(self.left) - 1
        gentle = tuning.lower_order_final and len(self.left) + len(self.cut) < FEW_STEPS
        order = min(tuning.order, index + 1)
        if index == last and (gentle or tuning.euler_at_final):
            order = 1
        elif index == last - 1 and gentle:
            order = min(order, 2)
        if not self.left[index].to.noise:
            order = 1
        return order

    def known(self, index: int, count: int) -> list[Level]:
        """Levels of the last `count` estimates at the step `index`, newest first.

        Fewer where the log-SNR does not move from one to the next, or not in this step: there is no slope then.
        """
        here = self.left[index]
        levels = [here.level]
        if here.to.log_snr == here.level.log_snr:
            return levels
        for back in range(1, count):
            level = self.left[index - back].level
            if level.log_snr == levels[-1].log_snr:
                break
            levels.append(level)
        return levels
