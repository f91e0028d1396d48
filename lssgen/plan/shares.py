"""Noise levels as shares of noise: one measure for flow matching, diffusion and EDM."""

from math import sqrt

from lssgen.plan.levels import Level
from lssgen.plan.schedules import EdmSchedule, FlowSchedule, Schedule


def share_of(schedule: Schedule, level: Level) -> float:
    """Noise over noise and picture, in [0, 1]: what sigma is for flow, for every kind of level."""
    return level.noise / (level.image * _deviation(schedule) + level.noise)


def level_at(schedule: Schedule, share: float, *, like: Level) -> Level:
    """The level of a noise share, below 1, of the kind that another level of the schedule has."""
    ratio = _deviation(schedule) * share / (1 - share)
    if isinstance(schedule, FlowSchedule):
        return Level(1 - share, share, share)
    # Exploding variance leaves the picture as it is; else image^2 + noise^2 = 1.
    image = 1.0 if like.image == 1 else 1 / sqrt(1 + ratio**2)
    return Level(image, ratio * image, ratio)


def _deviation(schedule: Schedule) -> float:
    """Standard deviation of the pictures: EDM's is sigma_data, all others' is about 1."""
    return schedule.sigma_data if isinstance(schedule, EdmSchedule) else 1.0
