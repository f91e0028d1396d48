"""What OpenAI's `quality` means here: a schedule. Words of a run that are given besides it win."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import cast

from lssgen.runtime.options import Options


@dataclass(frozen=True, slots=True)
class Schedule:
    """A change of a bundle's own schedule.

    Attributes:
        name: Quality that the answer tells.
        steps: Share of the bundle's steps that are taken, at least one.
        one_stage: True paints at full size from the beginning.
    """

    name: str
    steps: float
    one_stage: bool


LOW, MEDIUM, HIGH = Schedule("low", 0.5, False), Schedule("medium", 1.0, False), Schedule("high", 1.0, True)

QUALITIES: Mapping[str, Schedule] = {
    "auto": MEDIUM,
    "low": LOW,
    "medium": MEDIUM,
    "high": HIGH,
    "standard": MEDIUM,
    "hd": HIGH,
}
"""Schedules by OpenAI's words; "standard" and "hd" are those of dall-e-3."""


def words_of(schedule: Schedule, steps: int, given: Options) -> Options:
    """The words of a run of some quality.

    Args:
        schedule: Out of `QUALITIES`.
        steps: Number that the bundle takes of itself.
        given: Words that the request has; they are part of the result.
    """
    own = Options()
    if schedule.steps != 1:
        own["num_inference_steps"] = max(1, ceil(schedule.steps * steps))
    if schedule.one_stage and given.get("min_resolution") is None:
        own["start_sigma"] = 1.0
    return cast(Options, {**own, **given})
