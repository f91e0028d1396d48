"""Solvers that integrate a polynomial through the last estimates of the noise: DEIS and LMS."""

from collections.abc import Sequence
from math import log, prod, sqrt

import numpy as np

from lssgen.plan.solvers.moves import Move, step
from lssgen.plan.solvers.tuning import Course, Tuning
from lssgen.plan.table import Step


def deis(course: Course, tuning: Tuning) -> tuple[Step, ...]:
    """The noise as a polynomial in log(noise / image), integrated over noise / image.

    Source: Zhang & Chen 2022, arXiv 2204.13902, as in diffusers' DEISMultistepScheduler.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(course.left):
        at, to = evaluation.level, evaluation.to
        known = [level.noise / level.image for level in course.known(index, course.order(index, tuning))]
        weights = [to.image * weight for weight in _log_weights(known, to.noise / to.image)]
        steps.append(step(evaluation, Move(to.image / at.image, tuple(weights)), of="noise"))
    return tuple(steps)


def _log_weights(known: Sequence[float], to: float) -> list[float]:
    """Integrals from known[0] to `to`, of the polynomials in log(r) that are 1 at one known r and 0 at the others.

    With s = log(r), the integrals of 1, s and s^2 over r are r, r (s - 1) and r (s^2 - 2 s + 2).
    """
    places = [log(r) for r in known]
    weights: list[float] = []
    for here, place in enumerate(places):
        others = [other for there, other in enumerate(places) if there != here]
        # poly gives the highest power first, and for no roots a bare 1.
        flat, linear, square = (*np.atleast_1d(np.poly(others))[::-1].tolist(), 0.0, 0.0)[:3]
        ends = [
            r * (flat + linear * (log(r) - 1) + square * (log(r) ** 2 - 2 * log(r) + 2)) if r else 0.0
            for r in (known[0], to)
        ]
        weights.append((ends[1] - ends[0]) / prod(place - other for other in others))
    return weights


LMS_ORDER = 4


def lms(course: Course) -> tuple[Step, ...]:
    """The slope of x by sigma as a polynomial in sigma, integrated over the step.

    Source: linear multistep as in Crowson's k-diffusion and diffusers' LMSDiscreteScheduler. diffusers integrates the
    same polynomials in a later part of a schedule, where it has no estimates for them yet; here the order rises anew.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(course.left):
        known = [level.sigma for level in course.known(index, min(LMS_ORDER, index + 1))]
        weights = tuple(_lagrange(known, place, evaluation.to.sigma) for place in range(len(known)))
        steps.append(step(evaluation, Move(1.0, weights), of="slope"))
    return tuple(steps)


def _lagrange(known: Sequence[float], place: int, to: float) -> float:
    """Integral from known[0] to `to` of the polynomial that is 1 at known[place] and 0 at the others."""
    middle, half = (known[0] + to) / 2, (to - known[0]) / 2
    total = 0.0
    for node in (middle - half / sqrt(3), middle + half / sqrt(3)):  # two of Gauss's nodes are exact up to cubics
        value = half
        for there, other in enumerate(known):
            if there != place:
                value *= (node - other) / (known[place] - other)
        total += value
    return total
