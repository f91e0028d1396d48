"""Noise levels of diffusion models: the beta table of SD and SDXL, and EDM.

Source: diffusers' schedulers, whose numbers these are; Karras et al. 2022, arXiv 2206.00364 (EDM).
"""

from itertools import pairwise
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.levels import Ask, Level
from lssgen.plan.schedules import BetaSchedule, EdmSchedule, Prediction

_EXPLODING = ("euler", "euler-ancestral")  # work on x = z + sigma e; the others on image^2 + noise^2 = 1


def beta_asks(schedule: BetaSchedule, solver: str, steps: int) -> tuple[Ask, ...]:
    """The evaluations of a full schedule on a beta table, spaced as the solver's diffusers class spaces them.

    Returns:
        `steps` evaluations; PNDM's have the second one twice and are one more.

    Raises:
        PlanError: More steps than the table, or than LCM was distilled for, has.
    """
    if steps > schedule.train_steps:
        raise PlanError(
            f"{steps} steps do not fit: the model was trained with {schedule.train_steps} timesteps; ask for no more"
        )
    remaining = _remaining(schedule)
    if solver in _EXPLODING:
        return _exploding(schedule, _timesteps(schedule, steps), remaining)
    times = _lcm_timesteps(schedule, steps) if solver == "lcm" else _timesteps(schedule, steps, whole=True)
    if solver == "dpm++2m":
        times = _dpm_timesteps(schedule, steps)
    if times[0] > schedule.train_steps - 1:
        raise PlanError(
            f"{steps} steps begin at timestep {times[0]:g}, beyond the model's last, {schedule.train_steps - 1} "
            f"(steps_offset is {schedule.offset}); ask for fewer"
        )
    if solver == "pndm":
        # Its warm-up evaluates the second timestep twice.
        times = np.concatenate((times[:2], times[1:]))
    levels = [_preserving(float(remaining[int(t)])) for t in times]
    if solver in ("ddim", "pndm"):
        below = [int(t) - schedule.train_steps // steps for t in times]
        last = 1.0 if schedule.last_alpha_one else float(remaining[0])
        ends = [_preserving(float(remaining[t]) if t >= 0 else last) for t in below]
    else:
        # LCM's last step and DPM-Solver's end on a clean picture.
        ends = [*levels[1:], _preserving(1.0)]
    return tuple(
        _preserving_ask(at, to, float(t), schedule.prediction) for at, to, t in zip(levels, ends, times, strict=True)
    )


def most_steps(schedule: BetaSchedule, solver: str) -> int:
    """Longest schedule that there is: the table's timesteps, or those that LCM was distilled at."""
    return schedule.origin_steps if solver == "lcm" else schedule.train_steps


def start_noise(schedule: BetaSchedule | EdmSchedule, solver: str, asks: tuple[Ask, ...]) -> float:
    """Standard deviation of the first stage's noise (diffusers' `init_noise_sigma`)."""
    highest = asks[0].level.noise
    if isinstance(schedule, EdmSchedule):
        return sqrt(schedule.sigma_max**2 + 1)
    if solver in _EXPLODING:
        return sqrt(highest**2 + 1) if schedule.spacing == "leading" else highest
    return 1.0


def edm_asks(schedule: EdmSchedule, steps: int) -> tuple[Ask, ...]:
    """The evaluations of a full EDM schedule on the Karras grid; labels are ln(sigma) / 4."""
    root = 1 / schedule.rho
    top, bottom = schedule.sigma_max**root, schedule.sigma_min**root
    ramp = np.linspace(0, 1, steps, dtype=np.float32)
    sigmas = ((top + ramp * np.float32(bottom - top)) ** schedule.rho).astype(np.float32)
    levels = [Level(1.0, s, s) for s in (*map(float, sigmas), 0.0)]
    data = schedule.sigma_data
    sign = 1 if schedule.prediction == "epsilon" else -1
    return tuple(
        Ask(
            at,
            to,
            label=0.25 * log(at.noise),
            c_in=1 / sqrt(at.noise**2 + data**2),
            image_x=data**2 / (at.noise**2 + data**2),
            image_f=sign * at.noise * data / sqrt(at.noise**2 + data**2),
        )
        for at, to in pairwise(levels)
    )


def _remaining(schedule: BetaSchedule) -> NDArray[np.float32]:
    """(train_steps,) share of the picture's variance that is left at each timestep (`alphas_cumprod`)."""
    scaled = schedule.beta_schedule == "scaled_linear"
    ends = (sqrt(schedule.beta_start), sqrt(schedule.beta_end)) if scaled else (schedule.beta_start, schedule.beta_end)
    betas = np.linspace(*ends, schedule.train_steps, dtype=np.float32)
    if scaled:
        betas = betas**2
    return np.cumprod((1 - betas).astype(np.float64)).astype(np.float32)


def _timesteps(schedule: BetaSchedule, steps: int, *, whole: bool = False) -> NDArray[np.floating]:
    """(steps,) falling timesteps; `whole` rounds those of "linspace"."""
    top = schedule.train_steps
    if schedule.spacing == "leading":
        return np.arange(steps)[::-1] * float(top // steps) + schedule.offset
    if schedule.spacing == "trailing":
        return np.round(np.arange(top, 0, -top / steps)) - 1
    even = np.linspace(0, top - 1, steps)[::-1]
    return np.round(even) if whole else even.astype(np.float32).astype(np.float64)


def _dpm_timesteps(schedule: BetaSchedule, steps: int) -> NDArray[np.floating]:
    """(steps,) as `_timesteps`, but of one step more, without the lowest: DPM-Solver's last step goes to 0 itself."""
    top = schedule.train_steps
    if schedule.spacing == "leading":
        return np.arange(1, steps + 1)[::-1] * float(top // (steps + 1)) + schedule.offset
    if schedule.spacing == "trailing":
        return _timesteps(schedule, steps)
    return np.round(np.linspace(0, top - 1, steps + 1))[:0:-1]


def _lcm_timesteps(schedule: BetaSchedule, steps: int) -> NDArray[np.floating]:
    """(steps,) evenly picked timesteps out of those that the model was distilled at."""
    if steps > schedule.origin_steps:
        raise PlanError(
            f"{steps} steps do not fit: LCM was distilled at {schedule.origin_steps} timesteps; ask for no more"
        )
    origin = np.arange(schedule.origin_steps, 0, -1) * (schedule.train_steps // schedule.origin_steps) - 1.0
    return origin[np.floor(np.linspace(0, len(origin), steps, endpoint=False)).astype(int)]


def _exploding(schedule: BetaSchedule, times: NDArray[np.floating], remaining: NDArray[np.float32]) -> tuple[Ask, ...]:
    table = np.sqrt((1 - remaining) / remaining)
    sigmas = np.interp(times, np.arange(len(table)), table).astype(np.float32)
    levels = [Level(1.0, s, s) for s in (*map(float, sigmas), 0.0)]
    asks: list[Ask] = []
    for at, to, time in zip(levels, levels[1:], times, strict=False):
        variance = at.noise**2 + 1
        view = (1.0, -at.noise) if schedule.prediction == "epsilon" else (1 / variance, -at.noise / sqrt(variance))
        asks.append(Ask(at, to, float(time), 1 / sqrt(variance), *view))
    return tuple(asks)


def _preserving(remaining: float) -> Level:
    image, noise = sqrt(remaining), sqrt(1 - remaining)
    return Level(image, noise, noise / image)


def _preserving_ask(at: Level, to: Level, time: float, prediction: Prediction) -> Ask:
    view = (1 / at.image, -at.noise / at.image) if prediction == "epsilon" else (at.image, -at.noise)
    return Ask(at, to, time, 1.0, *view)
