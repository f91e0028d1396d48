"""Noise levels, and the evaluations of the network that a schedule foresees at them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, log
from typing import Literal

Halves = Literal["", "middle", "end"]
"""Place of the second evaluation of a solver that makes two in a step: none, because it makes one; the middle of the
step in log(sigma); its end."""


@dataclass(frozen=True, slots=True)
class Level:
    """How much picture and how much noise a latent holds: x = image * z + noise * e.

    Flow matching has image + noise = 1, variance-preserving diffusion image^2 + noise^2 = 1, variance-exploding
    diffusion image = 1. Every solver here is written for all three at once.

    Attributes:
        image, noise: The two weights, 0 or more.
        sigma: The same level in the schedule's own terms, for tables: `noise` for flow, noise / image for diffusion.
    """

    image: float
    noise: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """ln(image / noise), the half log signal-to-noise ratio; infinite at the two ends."""
        if self.noise == 0:
            return inf
        return log(self.image / self.noise) if self.image > 0 else -inf


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the network that a schedule foresees.

    Attributes:
        level: Level of x.
        to: Level the step leads to.
        label: Number that the network is told (the timestep).
        c_in: Factor on x before the network.
        image_x, image_f: The clean picture as the network sees it: image_x * x + image_f * F.
        half: The evaluation half-way to `to`, for solvers that make one; None for all others.
    """

    level: Level
    to: Level
    label: float
    c_in: float
    image_x: float
    image_f: float
    half: "Evaluation | None" = None


def with_halves(
    levels: Sequence[Level],
    evaluations: Sequence[Evaluation],
    halves: Halves,
    evaluation: Callable[[Level, Level], Evaluation],
) -> tuple[Evaluation, ...]:
    """The evaluations of a schedule, with those half-way where a solver makes some.

    Args:
        levels: One more than evaluations; image weights are those of flow or of variance-exploding diffusion.
        evaluations: At every level but the last.
        halves: Where the others lie.
        evaluation: Function that makes one, from its level and the next.
    """
    if not halves:
        return tuple(evaluations)
    found: list[Evaluation] = []
    for one, to in zip(evaluations, levels[1:], strict=True):
        if to.sigma:
            middle = to.sigma if halves == "end" else exp((log(one.level.sigma) + log(to.sigma)) / 2)
            image = 1.0 if one.level.image == 1 else 1 - middle
            found.append(replace(one, half=evaluation(Level(image, middle, middle), to)))
        else:
            found.append(one)
    return tuple(found)
