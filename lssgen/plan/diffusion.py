"""Noise levels of diffusion models: the beta table of SD and SDXL, and EDM.

Source: diffusers' schedulers, whose numbers these are; Karras et al. 2022, arXiv 2206.00364 (EDM).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PlanError
from lssgen.plan.levels import Evaluation, Level, with_halves
from lssgen.plan.schedules import BetaSchedule, EdmSchedule, Prediction
from lssgen.plan.sigmas import betas, remaining, spread, timesteps_of

# The sigma of 2^-24 of the picture, which diffusers leaves where nothing should be (`sigmas._FAINTEST`).
_HIGHEST = 2.0**12
"""Sigma that stands for pure noise in tables."""


def beta_evaluations(schedule: BetaSchedule, steps: int) -> tuple[Evaluation, ...]:
    """The evaluations of a full schedule on a beta table, spaced as the scheduler's diffusers class spaces them.

    Returns:
        `steps` evaluations; PNDM's have the second one twice and are one more.

    Raises:
        PlanError: More steps than the table, or than LCM was distilled for, has, or a level that the network's output
            says nothing at.
    """
    if steps > schedule.train_steps:
        raise PlanError(
            f"{steps} steps do not fit: the model was trained with {schedule.train_steps} timesteps; ask for no more"
        )
    left = _remaining(schedule)
    by_sigma = schedule.walk in ("exploding", "preserving")
    return _by_sigma(schedule, left, steps) if by_sigma else _by_timestep(schedule, left, steps)


def most_steps(schedule: BetaSchedule) -> int:
    """Longest schedule that there is: the table's timesteps, or those that LCM was distilled at."""
    return schedule.origin_steps if schedule.walk == "distilled" else schedule.train_steps


def highest_sigma(schedule: BetaSchedule) -> float:
    """Sigma of the training's last timestep."""
    return min(_HIGHEST, float(_table(_remaining(schedule)[-1:])[0]))


def start_noise(schedule: BetaSchedule | EdmSchedule, evaluations: tuple[Evaluation, ...]) -> float:
    """Standard deviation of the first stage's noise (diffusers' `init_noise_sigma`)."""
    highest = evaluations[0].level.noise
    if isinstance(schedule, EdmSchedule):
        # With 1 and not sigma_data^2, as diffusers' EDM classes have it; sigma_max is 80, so it hardly shows.
        return sqrt(schedule.sigma_max**2 + 1)
    if schedule.walk == "exploding":
        return sqrt(highest**2 + 1) if schedule.spacing == "leading" else highest
    return 1.0


def edm_evaluations(schedule: EdmSchedule, steps: int) -> tuple[Evaluation, ...]:
    """The evaluations of a full EDM schedule; labels are ln(sigma) / 4."""
    sigmas = _edm_sigmas(schedule, steps)
    data = schedule.sigma_data
    # diffusers' c_out; Playground v2.5 says "epsilon" and means the residual that EDM adds to c_skip x.
    sign = 1 if schedule.prediction == "epsilon" else -1

    def evaluation(at: Level, to: Level) -> Evaluation:
        return Evaluation(
            at,
            to,
            label=0.25 * log(at.noise),
            c_in=1 / sqrt(at.noise**2 + data**2),
            image_x=data**2 / (at.noise**2 + data**2),
            image_f=sign * at.noise * data / sqrt(at.noise**2 + data**2),
        )

    levels = [Level(1.0, s, s) for s in (*sigmas, sigmas[-1] if schedule.end == "last" else 0.0)]
    return with_halves(levels, [evaluation(at, to) for at, to in pairwise(levels)], schedule.halves, evaluation)


def _edm_sigmas(schedule: EdmSchedule, steps: int) -> list[float]:
    root = 1 / schedule.rho
    if schedule.sigma_rule == "exponential":
        even = np.linspace(log(schedule.sigma_min), log(schedule.sigma_max), steps, dtype=np.float32)
        return [float(sigma) for sigma in np.exp(even)[::-1]]
    top, bottom = schedule.sigma_max**root, schedule.sigma_min**root
    # float32 as in diffusers, whose labels are the logarithms of these.
    ramp = np.linspace(0, 1, steps, dtype=np.float32)
    sigmas = ((top + ramp * np.float32(bottom - top)) ** schedule.rho).astype(np.float32)
    return [float(sigma) for sigma in sigmas]


def _remaining(schedule: BetaSchedule) -> NDArray[np.float32]:
    table = betas(schedule.beta_schedule, schedule.beta_start, schedule.beta_end, schedule.train_steps)
    if schedule.trained:
        table = np.asarray(schedule.trained, np.float32)
    return remaining(table, zero_snr=schedule.zero_snr, faintest=schedule.walk in ("exploding", "preserving"))


def _table(left: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sigma of each timestep."""
    with np.errstate(divide="ignore"):  # of pure noise it is infinite
        return np.sqrt((1 - left) / left)


def _by_timestep(schedule: BetaSchedule, left: NDArray[np.float32], steps: int) -> tuple[Evaluation, ...]:
    distilled = schedule.walk == "distilled"
    times = _distilled_timesteps(schedule, steps) if distilled else _timesteps(schedule, steps, whole=True)
    _see_first(schedule, steps, times)
    if schedule.repeats_second:
        # diffusers' list has n + 1 entries; its warm-up evaluates the second timestep again, as `solvers.pndm` says.
        times = np.concatenate((times[:2], times[1:]))
    levels = [_preserving(float(left[int(t)])) for t in times]
    if schedule.walk == "nominal":
        # The nominal length of a step below, as published: where spacing rounds, that is not always the next timestep.
        below = [int(t) - schedule.train_steps // steps for t in times]
        last = 1.0 if schedule.last_alpha_one else float(left[0])
        ends = [_preserving(float(left[t]) if t >= 0 else last) for t in below]
    else:
        ends = [*levels[1:], _preserving(1.0 if schedule.end == "clean" else float(left[0]))]
    return tuple(
        _preserving_evaluation(at, to, float(t), schedule.prediction)
        for at, to, t in zip(levels, ends, times, strict=True)
    )


def _by_sigma(schedule: BetaSchedule, left: NDArray[np.float32], steps: int) -> tuple[Evaluation, ...]:
    table = _table(left)
    log_table = np.log(table)
    preserving = schedule.walk == "preserving"
    times = _later_timesteps(schedule, steps, log_table) if preserving else _timesteps(schedule, steps)
    if preserving:
        _see_first(schedule, steps, times)
    sigmas = np.interp(times, np.arange(len(table)), table)
    if schedule.sigma_rule != "default":
        # DPM-Solver's family spreads between the ends of the whole table, Euler's between those of the timesteps
        # picked.
        high, low = (table[-1], table[0]) if preserving else (sigmas[0], sigmas[-1])
        ends = (schedule.sigma_max or float(high), schedule.sigma_min or float(low))
        sigmas = spread(schedule.sigma_rule, *ends, steps)
        times = timesteps_of(sigmas, log_table)
        if schedule.rounds and schedule.sigma_rule in ("karras", "lu"):
            times = np.round(times)
    # These classes keep their timesteps as int64, which cuts off what `timesteps_of` interpolates.
    if preserving:
        times = np.trunc(times)
    last = {"clean": 0.0, "lowest": float(table[0]), "last": float(sigmas[-1])}[schedule.end]
    rounded = [float(sigma) for sigma in (*sigmas.astype(np.float32), np.float32(last))]
    return _at_sigmas(schedule, rounded, times, log_table)


def _at_sigmas(
    schedule: BetaSchedule, sigmas: Sequence[float], times: NDArray[np.floating], log_table: NDArray[np.float32]
) -> tuple[Evaluation, ...]:
    """Evaluations at all sigmas but the last, with the timesteps that the network is told."""

    def evaluation(at: Level, to: Level, time: float | None = None) -> Evaluation:
        # A level half-way lies between those of the schedule, so that its timestep must be looked up.
        told = float(timesteps_of(np.asarray([at.sigma]), log_table)[0]) if time is None else time
        label = 0.25 * log(at.sigma) if schedule.continuous else told
        if schedule.walk == "preserving":
            return _preserving_evaluation(at, to, label, schedule.prediction)
        return _exploding_evaluation(at, to, label, schedule.prediction)

    if schedule.walk == "preserving":
        levels = [Level(1 / sqrt(s**2 + 1), s / sqrt(s**2 + 1), s) for s in sigmas]
    else:
        levels = [Level(1.0, s, s) for s in sigmas]
    found = [evaluation(at, to, float(t)) for at, to, t in zip(levels, levels[1:], times, strict=False)]
    return with_halves(levels, found, schedule.halves, evaluation)


def _see_first(schedule: BetaSchedule, steps: int, times: NDArray[np.floating]) -> None:
    if times[0] > schedule.train_steps - 1:
        raise PlanError(
            f"{steps} steps begin at timestep {times[0]:g}, beyond the model's last, {schedule.train_steps - 1} "
            f"(steps_offset is {schedule.offset}); ask for fewer"
        )


def _timesteps(schedule: BetaSchedule, steps: int, *, whole: bool = False) -> NDArray[np.floating]:
    """(steps,) falling timesteps; `whole` rounds those of "linspace"."""
    top = schedule.train_steps
    if schedule.spacing == "leading":
        # diffusers' whole step, so the list may end well short of the top: 50 steps begin at 981 of 1000.
        return np.arange(steps)[::-1] * float(top // steps) + schedule.offset
    if schedule.spacing == "trailing":
        return np.round(np.arange(top, 0, -top / steps))[:steps] - 1  # rounding may make one more of them
    even = np.linspace(0, top - 1, steps)[::-1]
    # The classes that work with sigma make this list in float32 and interpolate sigmas at what is left of it.
    return np.round(even) if whole else even.astype(np.float32).astype(np.float64)


def _later_timesteps(schedule: BetaSchedule, steps: int, log_table: NDArray[np.float32]) -> NDArray[np.floating]:
    """(steps,) as `_timesteps`, but of one step more, without the lowest: the last step goes to its end itself."""
    top = schedule.train_steps
    if schedule.least_log_snr is not None:
        # -log(sigma) is the log-SNR; it falls with the timestep, so those that are left are the first ones.
        top = int(np.count_nonzero(-log_table >= schedule.least_log_snr))
    if top <= steps:
        raise PlanError(f"{steps} steps do not fit: lambda_min_clipped leaves {top} timesteps; ask for fewer")
    if schedule.spacing == "leading":
        return np.arange(1, steps + 1)[::-1] * float(top // (steps + 1)) + schedule.offset
    if schedule.spacing == "trailing":
        # From the clipped top, but in steps of the whole table, as diffusers has it.
        return np.round(np.arange(top, 0, -schedule.train_steps / steps))[:steps] - 1
    return np.round(np.linspace(0, top - 1, steps + 1))[:0:-1]


def _distilled_timesteps(schedule: BetaSchedule, steps: int) -> NDArray[np.floating]:
    """(steps,) evenly picked timesteps out of those that the model was distilled at."""
    if steps > schedule.origin_steps:
        raise PlanError(
            f"{steps} steps do not fit: LCM was distilled at {schedule.origin_steps} timesteps; ask for no more"
        )
    # 999, 979, ... 19 for LCM's 50: the distillation's own timesteps, one below multiples of 20.
    origin = np.arange(schedule.origin_steps, 0, -1) * (schedule.train_steps // schedule.origin_steps) - 1.0
    return origin[np.floor(np.linspace(0, len(origin), steps, endpoint=False)).astype(int)]


def _preserving(left: float) -> Level:
    image, noise = sqrt(left), sqrt(1 - left)
    return Level(image, noise, noise / image if image else _HIGHEST)


def _preserving_evaluation(at: Level, to: Level, time: float, prediction: Prediction) -> Evaluation:
    if prediction == "epsilon" and not at.image:
        raise PlanError(
            f"timestep {time:g} holds nothing of the picture (rescale_betas_zero_snr), where a network that predicts "
            "noise says nothing; choose a timestep spacing that starts below it, or --scheduler euler"
        )
    view = (1 / at.image, -at.noise / at.image) if prediction == "epsilon" else (at.image, -at.noise)
    return Evaluation(at, to, time, 1.0, *view)


def _exploding_evaluation(at: Level, to: Level, time: float, prediction: Prediction) -> Evaluation:
    variance = at.noise**2 + 1
    view = (1.0, -at.noise) if prediction == "epsilon" else (1 / variance, -at.noise / sqrt(variance))
    return Evaluation(at, to, time, 1 / sqrt(variance), *view)
