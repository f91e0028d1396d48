"""Which schedule fits a time: candidates as data, from the best to the fastest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

from lssgen.errors import LssgenError
from lssgen.runtime.options import Options, Request

SHARES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the steps that a deadline may leave of a schedule."""

FASTER: tuple[Options, ...] = ({}, {"shorten": True}, {"shorten": True, "start_sigma": 0.6})
"""Changes of the stages that a deadline may make, in the order in which they are tried at each number of steps. A word
that the caller has said stays as it is."""

Make = Callable[[Options], Request]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule and its likely seconds.

    Attributes:
        request: The run.
        seconds: Estimated time; None where nothing was measured yet.
        change: Difference from the run as asked, in words; "" where there is none.
    """

    request: Request
    seconds: float | None
    change: str


def candidates(
    make: Make, options: Options, seconds: Callable[[Request], float | None], least: int
) -> Iterator[Candidate]:
    """The run as asked, then faster ones, those with most steps first. What cannot be planned is left out.

    Args:
        make: Plans a run.
        options: Words of the caller.
        seconds: Estimates a run.
        least: Steps of the full schedule to leave.

    Raises:
        PlanError, PromptError: The run as asked cannot be carried out.
    """
    asked = make(options)
    yield Candidate(asked, seconds(asked), "")
    steps = asked.plan_options.requested_steps
    fixed = "num_inference_steps" in options or "sigmas" in options
    counts = [steps] if fixed else sorted({max(min(least, steps), round(steps * share)) for share in SHARES})
    for count in reversed(counts):
        for change in FASTER:
            words = {name: value for name, value in change.items() if name not in options}
            if count != steps:
                words["num_inference_steps"] = count
            if not words:
                continue
            try:
                request = make(cast(Options, {**options, **words}))
            except LssgenError:  # with fewer steps a stage may get none
                continue
            if request.plan != asked.plan:
                said = ", ".join(f"{name} {value}" for name, value in words.items())
                yield Candidate(request, seconds(request), said)


def best_within(found: Iterator[Candidate], budget: float) -> tuple[Candidate | None, Candidate]:
    """The slowest candidate that fits a time, since the time is there to be used, and the fastest of all.

    Args:
        found: At least one.
        budget: Seconds. What was never measured fits.
    """
    every = list(found)
    if every[0].seconds is None or every[0].seconds <= budget:
        return every[0], min(every, key=_time)
    fitting = [one for one in every if _time(one) <= budget]
    return max(fitting, key=_time, default=None), min(every, key=_time)


def _time(candidate: Candidate) -> float:
    return candidate.seconds or 0.0
