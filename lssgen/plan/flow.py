"""Noise levels of flow-matching models (SD3, FLUX, CogView4).

The published numbers are float32 in places; those roundings are repeated here, because a threshold on a timestep is
decided by the last bit.

Source: Esser et al. 2024, arXiv 2403.03206 (the shift); diffusers' FlowMatchEulerDiscreteScheduler and its pipelines.
"""

from math import exp, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lssgen.plan.levels import Ask, Level
from lssgen.plan.schedules import FlowSchedule

Grid = Literal["range", "even", "labels"]


def flow_asks(
    schedule: FlowSchedule, grid: Grid, steps: int, shift: float, custom: tuple[float, ...] = ()
) -> tuple[Ask, ...]:
    """The evaluations of a full flow schedule.

    Args:
        schedule: The scheduler's configuration.
        grid: Levels before the shift, see `ModelFacts.grid`.
        steps: Length of the schedule, at least 1.
        shift: From `shift_for`.
        custom: Own levels in place of the grid, falling; they are resampled to `steps` entries.

    Returns:
        `steps` evaluations; labels are timesteps in 0 to `schedule.train_steps`.
    """
    top = schedule.train_steps
    if custom:
        grid_levels = _resampled(custom, steps)
        labels = (grid_levels * np.float32(top)) if grid == "labels" else None
    elif grid == "labels":
        labels = np.trunc(np.linspace(top, 1.0, steps)).astype(np.float32)
        grid_levels = labels / np.float32(top)
    elif grid == "even":
        labels, grid_levels = None, np.linspace(1.0, 1 / steps, steps).astype(np.float32)
    else:
        # float64 up to the shift, which meets the smallest level for the second time: published numbers have it so.
        labels, grid_levels = None, np.linspace(top, _smallest(schedule) * top, steps) / top
    sigmas = _shifted(grid_levels, schedule, shift).astype(np.float32)
    told = sigmas * np.float32(top) if labels is None else labels
    levels = [_flow_level(float(s)) for s in (*sigmas, 0.0)]
    return tuple(
        Ask(at, to, label=float(label), c_in=1.0, image_x=1.0, image_f=-at.noise)
        for at, to, label in zip(levels, levels[1:], told, strict=False)
    )


def shift_for(schedule: FlowSchedule, tokens: int, *, clamp: bool) -> float:
    """The shift of a picture with so many tokens; for the exponential form its logarithm (mu).

    Args:
        schedule: The scheduler's configuration; a static shift is returned as it is.
        tokens: Length of the latent sequence.
        clamp: Count no more than `schedule.max_tokens`; the linear form knows no clamp.
    """
    if not schedule.dynamic:
        return schedule.shift
    if schedule.shift_type == "linear":
        return schedule.max_shift * sqrt(tokens / schedule.base_tokens) + schedule.base_shift
    if clamp:
        tokens = min(tokens, schedule.max_tokens)
    slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_tokens - schedule.base_tokens)
    return tokens * slope + (schedule.base_shift - slope * schedule.base_tokens)


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
    return float(shift * level / (np.float32(1) + (shift - np.float32(1)) * level))


def _resampled(levels: tuple[float, ...], steps: int) -> NDArray[np.float32]:
    at = np.linspace(0, len(levels) - 1, steps)
    return np.interp(at, np.arange(len(levels)), levels).astype(np.float32)


def _flow_level(sigma: float) -> Level:
    return Level(image=1 - sigma, noise=sigma, sigma=sigma)
