"""Noise levels of flow-matching models (SD3, FLUX, CogView4).

The published numbers are float32 in places; those roundings are repeated here, because a threshold on a timestep is
decided by the last bit.

Source: Esser et al. 2024, arXiv 2403.03206 (the shift); diffusers' FlowMatchEulerDiscreteScheduler and its pipelines.
"""

from math import exp, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.levels import Evaluation, Level, with_halves
from lssgen.plan.schedules import FlowSchedule
from lssgen.plan.sigmas import spread

Grid = Literal["range", "even", "labels"]


def flow_evaluations(
    schedule: FlowSchedule, grid: Grid, steps: int, shift: float, custom: tuple[float, ...] = ()
) -> tuple[Evaluation, ...]:
    """The evaluations of a full flow schedule.

    Args:
        schedule: The scheduler's configuration.
        grid: Levels before the shift, see `ModelFacts.grid`; a schedule with a grid of its own has that.
        steps: Length of the schedule, at least 1.
        shift: From `shift_for`.
        custom: Own levels in place of the grid, falling; they are resampled to `steps` entries.

    Returns:
        `steps` evaluations; labels are timesteps in 0 to `schedule.train_steps`.
    """
    grid_levels, labels = _grid(schedule, grid, steps, custom)
    sigmas = _spread(schedule, _stretched(schedule, _shifted(grid_levels, schedule, shift)))
    if schedule.grid == "unipc" and abs(sigmas[0] - 1) < _NEARLY:
        # Before the labels, as there: the first one is then 999 and not 1000.
        sigmas[0] -= _NEARLY
    # Classes made for tables of betas keep timesteps as int64 on flow too; cut off before sigmas are rounded to
    # float32.
    told = np.trunc(sigmas * schedule.train_steps) if schedule.grid else None
    sigmas = sigmas.astype(np.float32)
    if told is None:
        told = sigmas * np.float32(schedule.train_steps) if labels is None else labels
    levels = [_flow_level(float(s)) for s in (*sigmas, sigmas[-1] if schedule.end == "last" else 0.0)]

    def evaluation(at: Level, to: Level, label: float | None = None) -> Evaluation:
        time = at.sigma * schedule.train_steps if label is None else label
        return Evaluation(at, to, label=time, c_in=1.0, image_x=1.0, image_f=-at.noise)

    found = [evaluation(at, to, float(label)) for at, to, label in zip(levels, levels[1:], told, strict=False)]
    return with_halves(levels, found, schedule.halves, evaluation)


_NEARLY = 1e-6
"""Picture that diffusers' UniPC leaves in pure noise, whose log-SNR it takes."""


def _grid(
    schedule: FlowSchedule, grid: Grid, steps: int, custom: tuple[float, ...]
) -> tuple[NDArray[np.floating], NDArray[np.float32] | None]:
    """Levels before the shift, and the timesteps that the network is told where they do not follow from the levels."""
    top = schedule.train_steps
    if custom:
        levels = _resampled(custom, steps)
        return levels, (levels * np.float32(top)) if grid == "labels" else None
    if schedule.grid == "unipc":
        return np.linspace(1, 1 / top, steps + 1)[:-1], None
    if schedule.grid == "dpm":
        # DPM-Solver's classes count in pictures, alpha from 1 to 1 / n: the clean end, sigma 0, is left out.
        return (1 - np.linspace(1, 1 / top, steps + 1))[:0:-1], None
    if grid == "labels":
        # CogView4's pipeline casts its timesteps to whole numbers before it makes levels of them.
        labels = np.trunc(np.linspace(top, 1.0, steps)).astype(np.float32)
        return labels / np.float32(top), labels
    if grid == "even":
        return np.linspace(1.0, 1 / steps, steps).astype(np.float32), None
    # float64 up to the shift, which meets the smallest level for the second time: published numbers have it so.
    return np.linspace(top, _smallest(schedule) * top, steps) / top, None


def _stretched(schedule: FlowSchedule, sigmas: NDArray[np.floating]) -> NDArray[np.floating]:
    """Levels that end at `schedule.terminal`, where it is given.

    Raises:
        PlanError: There is nothing to stretch: all levels are noise alone.
    """
    if not schedule.terminal:
        return sigmas
    pictures = 1 - sigmas
    if not pictures[-1]:
        raise PlanError(
            f"the schedule ends at a level of {schedule.terminal:g} (shift_terminal), and all levels before are noise "
            "alone, which cannot be stretched: ask for more steps, or for a smaller picture"
        )
    return 1 - pictures / (pictures[-1] / (1 - schedule.terminal))


def _spread(schedule: FlowSchedule, sigmas: NDArray[np.floating]) -> NDArray[np.floating]:
    """Levels between the same ends, spaced by a rule of sigmas where the schedule has one."""
    if schedule.sigma_rule == "default":
        return sigmas
    return spread(schedule.sigma_rule, float(sigmas[0]), float(sigmas[-1]), len(sigmas))


ShiftBy = Literal["tokens", "steps"]


def shift_for(schedule: FlowSchedule, tokens: int, *, clamp: bool, by: ShiftBy = "tokens", steps: int = 0) -> float:
    """The shift of a picture with so many tokens; for the exponential form its logarithm (mu).

    Args:
        schedule: The scheduler's configuration; a static shift is returned as it is.
        tokens: Length of the latent sequence.
        clamp: Count no more than `schedule.max_tokens`; the linear form and that by steps know no clamp.
        by: What it depends on, see `ModelFacts.shift_by`.
        steps: Length of the schedule; counts only for "steps".
    """
    if not schedule.dynamic:
        return schedule.shift
    if by == "steps":
        return empirical_shift(tokens, steps)
    if schedule.shift_type == "linear":
        return schedule.max_shift * sqrt(tokens / schedule.base_tokens) + schedule.base_shift
    if clamp:
        tokens = min(tokens, schedule.max_tokens)
    slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_tokens - schedule.base_tokens)
    # m x + b in the order of diffusers' calculate_shift, so that mu has its last bit.
    return tokens * slope + (schedule.base_shift - slope * schedule.base_tokens)


FEW_STEPS, MANY_STEPS = 10, 200
"""Lengths of the two schedules for which FLUX.2's shift was fitted to the number of tokens."""

_FEW, _MANY = (8.73809524e-05, 1.89833333), (0.00016927, 0.45666666)
"""Slope by tokens and constant of either."""

_MANY_TOKENS = 4300
"""Tokens above which the steps do not matter: the line of many steps holds for all."""


def empirical_shift(tokens: int, steps: int) -> float:
    """The logarithm of FLUX.2's shift, from the tokens of the picture and the steps of its schedule.

    Source: compute_empirical_mu of diffusers' Flux2Pipeline, in its order of operations, so that mu has its last bit.
    """
    many = _MANY[0] * tokens + _MANY[1]
    if tokens > _MANY_TOKENS:
        return many
    few = _FEW[0] * tokens + _FEW[1]
    slope = (many - few) / (MANY_STEPS - FEW_STEPS)
    return slope * steps + (many - MANY_STEPS * slope)


def _shifted(levels: NDArray[np.floating], schedule: FlowSchedule, shift: float) -> NDArray[np.floating]:
    """Move levels towards noise; 0 and 1 stay. Keeps the width of `levels`, as the scheduler does."""
    if not schedule.dynamic:
        return shift * levels / (1 + (shift - 1) * levels)
    factor = exp(shift) if schedule.shift_type == "exponential" else shift
    return factor / (factor + (1 / levels - 1))


def _smallest(schedule: FlowSchedule) -> float:
    """Smallest level of the scheduler's own grid, once shifted if the shift is static."""
    level = np.float32(1) / np.float32(schedule.train_steps)
    if schedule.dynamic:
        return float(level)
    shift = np.float32(schedule.shift)
    # In float32: diffusers takes sigma_min from a float32 tensor (0.0029940, shift 3), and linspace ends exactly there.
    return float(shift * level / (np.float32(1) + (shift - np.float32(1)) * level))


def _resampled(levels: tuple[float, ...], steps: int) -> NDArray[np.float32]:
    at = np.linspace(0, len(levels) - 1, steps)
    return np.interp(at, np.arange(len(levels)), levels).astype(np.float32)


def _flow_level(sigma: float) -> Level:
    return Level(image=1 - sigma, noise=sigma, sigma=sigma)
