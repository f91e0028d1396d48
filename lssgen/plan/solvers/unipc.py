"""UniPC: predict the next latent, and correct it once the network has seen it."""

from collections.abc import Sequence
from math import expm1, log

import numpy as np

from lssgen.plan.levels import Level
from lssgen.plan.solvers.moves import Move, step
from lssgen.plan.solvers.tuning import Course, Tuning
from lssgen.plan.table import Step

_PUREST = log(1e-6)
"""Log-SNR that pure noise counts as; diffusers starts flow models at 1 - 1e-6 for the same reason."""


def unipc(course: Course, tuning: Tuning) -> tuple[Step, ...]:
    """Every row undoes the last prediction, makes it again with the newest estimate too, and predicts from there.

    The network has seen the uncorrected latent, so its estimate stays as it is.

    Source: Zhao et al. 2023, arXiv 2302.04867, algorithms 1 and 2, as in diffusers' UniPCMultistepScheduler.
    """
    steps: list[Step] = []
    predicted = Move(1.0)
    before: list[Level] = []
    for index, evaluation in enumerate(course.left):
        latent = Move(1.0)
        # disable_corrector counts steps of the full schedule, and names the step before the one that corrects it.
        if before and len(course.cut) + index - 1 not in tuning.uncorrected:
            latent = _move(before, evaluation.level, tuning, corrects=True).after(predicted.undone())
        left = len(course.left) - index
        order = min(tuning.order, index + 1, left if tuning.lower_order_final else tuning.order)  # of any length, here
        before = course.known(index, order if evaluation.to.noise else 1)
        predicted = _move(before, evaluation.to, tuning)
        steps.append(step(evaluation, predicted.after(latent), of=tuning.predicts))
    return tuple(steps)


def _move(known: Sequence[Level], to: Level, tuning: Tuning, *, corrects: bool = False) -> Move:
    """From the newest of the known levels to another one, by a polynomial through the estimates at them.

    Args:
        known: Levels of the estimates, newest first.
        to: Level to go to.
        tuning: Form of the integral.
        corrects: There is an estimate at `to` already, the newest.
    """
    at, images = known[0], tuning.predicts == "image"
    base, scale = (to.noise / at.noise, to.image) if images else (to.image / at.image, to.noise)
    length = _log_snr(to) - _log_snr(at)
    if not length:
        return Move(base)
    z = -length if images else length
    others = [(_log_snr(level) - _log_snr(at)) / length for level in known[1:]] + [1.0] * corrects
    width = z if tuning.variant == "bh1" else expm1(z)
    weights = [-scale * width * rho / place for rho, place in zip(_rhos(others, z, width), others, strict=True)]
    newest = -scale * expm1(z) - sum(weights)
    return Move(base, (*weights[len(known) - 1 :], newest, *weights[: len(known) - 1]))


def _rhos(places: Sequence[float], z: float, width: float) -> Sequence[float]:
    """Weights of the differences between the estimates at some places and the one at 0; a step leads from 0 to 1."""
    if len(places) < 2:
        return [0.5] * len(places)  # as published, where the system would say the same up to its order
    phi, factorial = expm1(z) / z - 1, 1.0
    wanted: list[float] = []
    for power in range(1, len(places) + 1):
        wanted.append(phi * factorial / width)
        factorial *= power + 1
        phi = phi / z - 1 / factorial
    return np.linalg.solve(np.vander(places, increasing=True).T, np.asarray(wanted)).tolist()


def _log_snr(level: Level) -> float:
    return max(level.log_snr, _PUREST)
