"""Solvers that evaluate the network twice in a step: Heun and DPM-Solver-2, also ancestral.

They integrate the slope of x by sigma, (x - picture) / sigma, for levels whose x moves along straight lines in sigma:
those of flow matching and of variance-exploding diffusion. The first evaluation's row makes a trial step; the second's
undoes it, which takes its estimate only, and makes the step again.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import sqrt

from lssgen.plan.levels import Evaluation
from lssgen.plan.solvers.moves import Move, step
from lssgen.plan.table import Step


def with_trial_ends(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Heun's evaluations: every step's own, and one where the step ends; the step into a clean picture has none."""
    found: list[Evaluation] = []
    for index, evaluation in enumerate(evaluations):
        found.append(evaluation)
        if index + 1 < len(evaluations):
            found.append(replace(evaluations[index + 1], to=evaluation.to))
    return tuple(found)


def with_halves(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """DPM-Solver-2's evaluations: every step's own, and one half-way; the step into a clean picture has none."""
    found: list[Evaluation] = []
    for evaluation in evaluations:
        if evaluation.half is None:
            found.append(evaluation)
        else:
            found += [replace(evaluation, to=evaluation.half.level, half=None), evaluation.half]
    return tuple(found)


def heun(evaluations: Sequence[Evaluation]) -> tuple[Step, ...]:
    """Step with the mean of the slopes at both ends.

    Args:
        evaluations: From `with_trial_ends`.

    Source: Karras et al. 2022, arXiv 2206.00364, algorithm 1, as in diffusers' HeunDiscreteScheduler.
    """
    return _pairs(evaluations, lambda length, trial: (length / 2, length / 2 - trial))


def kdpm2(evaluations: Sequence[Evaluation]) -> tuple[Step, ...]:
    """Step with the slope half-way in log(sigma).

    Args:
        evaluations: From `with_halves`.

    Source: Lu et al. 2022, arXiv 2206.00927, as in Crowson's k-diffusion and diffusers' KDPM2DiscreteScheduler.
    """
    return _pairs(evaluations, lambda length, trial: (length, -trial))


def kdpm2_ancestral(evaluations: Sequence[Evaluation]) -> tuple[Step, ...]:
    """As `kdpm2`, to a level below the next one, and up to it with fresh noise.

    The level half-way down is the next one itself.

    Args:
        evaluations: From `with_halves`.

    Source: as in Crowson's k-diffusion and diffusers' KDPM2AncestralDiscreteScheduler.
    """
    steps = list(_pairs(evaluations, lambda length, trial: (length, -trial)))
    for index in range(1, len(steps), 2):
        above, to = evaluations[index - 1].level.sigma, evaluations[index].to.sigma
        # k-diffusion's get_ancestral_step with eta 1: down^2 + fresh^2 = to^2.
        down, fresh = to**2 / above, to * sqrt(max(0.0, 1 - (to / above) ** 2))
        # The trial is undone as it was made: to the next level, and not to the one below it.
        _, trial = steps[index].blend
        steps[index] = replace(steps[index], blend=(down - above, trial), noise=fresh)
    return tuple(steps)


def _pairs(evaluations: Sequence[Evaluation], blend: Callable[[float, float], tuple[float, float]]) -> tuple[Step, ...]:
    """Trial steps, and after each the step made again; the last evaluation may stand alone.

    Args:
        evaluations: One a row.
        blend: Weights of the new and the old slope, from the lengths in sigma of the step and of its trial.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(evaluations):
        if index % 2 == 0:
            move = Move(1.0, (evaluation.to.sigma - evaluation.level.sigma,))
        else:
            tried = evaluations[index - 1]
            began = tried.level.sigma
            move = Move(1.0, blend(evaluation.to.sigma - began, tried.to.sigma - began))
        steps.append(step(evaluation, move, of="slope"))
    return tuple(steps)
