"""Solvers without a memory: Euler, DDIM, DDPM, their ancestral forms, and those that start again from fresh noise."""

from collections.abc import Sequence
from math import sqrt

from lssgen.plan.levels import Evaluation
from lssgen.plan.solvers.moves import Move, step
from lssgen.plan.table import Step


def first_order(evaluations: Sequence[Evaluation], *, eta: float = 0.0) -> tuple[Step, ...]:
    """Keep the noise found at x, and change its share: flow Euler, Euler, DDIM and DPM-Solver-1 are all this.

    Args:
        evaluations: What is left of a schedule, in order.
        eta: Share of the noise that is drawn afresh: 0 for none and no draw; 1 is Euler ancestral.

    Source: Song et al. 2020, arXiv 2010.02502, eq. 12 and 16, for any pair of image and noise weights.
    """
    return tuple(
        step(evaluation, first_move(evaluation, fresh), noise=fresh if eta else None)
        for evaluation in evaluations
        for fresh in (eta * _posterior(evaluation) if eta else 0.0,)
    )


def first_move(evaluation: Evaluation, fresh: float = 0.0) -> Move:
    """One such step, in terms of the network's output, where `fresh` of the new noise is drawn."""
    at, to = evaluation.level, evaluation.to
    # max: where all the noise is fresh, rounding may leave less than 0.
    keep = sqrt(max(0.0, to.noise**2 - fresh**2)) / at.noise
    gain = to.image - keep * at.image
    return Move(keep + gain * evaluation.image_x, (gain * evaluation.image_f,))


def ddpm(evaluations: Sequence[Evaluation], *, wide: bool = False) -> tuple[Step, ...]:
    """The training's own chain, backwards: a first-order step with all the noise that the posterior has.

    The step that leaves timestep 0 draws none.

    Args:
        evaluations: What is left of a schedule, in order.
        wide: Draw with the variance of the forward step ("fixed_large"), which is more than the posterior's.

    Source: Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7, as in diffusers' DDPMScheduler.
    """
    steps: list[Step] = []
    for evaluation in evaluations:
        at, to = evaluation.level, evaluation.to
        fresh = _posterior(evaluation)
        # The forward step's beta; the mean is the posterior's in both cases, as in diffusers.
        drawn = sqrt(max(0.0, 1 - (at.image / to.image) ** 2)) if wide else fresh
        steps.append(step(evaluation, first_move(evaluation, fresh), noise=drawn if evaluation.label > 0 else None))
    return tuple(steps)


def lcm(evaluations: Sequence[Evaluation], *, timestep_scaling: float, sigma_data: float = 0.5) -> tuple[Step, ...]:
    """Latent consistency: jump to a clean picture, put fresh noise on it, again; the last jump stays clean.

    Source: Luo et al. 2023, arXiv 2310.04378, algorithm 3, as in diffusers' LCMScheduler.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(evaluations):
        last = index == len(evaluations) - 1
        # The boundary condition of consistency models, in the label: at timestep 0 the network's output must not count.
        scaled = evaluation.label * timestep_scaling
        skip = sigma_data**2 / (scaled**2 + sigma_data**2)
        out = scaled / sqrt(scaled**2 + sigma_data**2)
        to = evaluation.to
        move = Move(to.image * (out * evaluation.image_x + skip), (to.image * out * evaluation.image_f,))
        steps.append(step(evaluation, move, noise=None if last else to.noise))
    return tuple(steps)


def restart(evaluations: Sequence[Evaluation]) -> tuple[Step, ...]:
    """Jump to a clean picture and put fresh noise on it, for flow models distilled for few steps.

    The last step draws too, as diffusers' FlowMatchLCMScheduler does, and its `stochastic_sampling`.
    """
    return tuple(
        step(
            evaluation,
            Move(evaluation.to.image * evaluation.image_x, (evaluation.to.image * evaluation.image_f,)),
            noise=evaluation.to.noise,
        )
        for evaluation in evaluations
    )


def _posterior(evaluation: Evaluation) -> float:
    """Standard deviation of the noise in a step of the reversed chain."""
    at, to = evaluation.level, evaluation.to
    if not to.noise:
        return 0.0
    # The square root is of 0, but for rounding, where a step stays on its level.
    return to.noise * sqrt(max(0.0, 1 - (at.image * to.noise / (to.image * at.noise)) ** 2))
