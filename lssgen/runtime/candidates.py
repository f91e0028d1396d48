"""Which schedule fits a time: candidates as data, those that a search has tried, or else a ladder of guesses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from lssgen.errors import LssgenError
from lssgen.runtime.options import Options, Request
from lssgen.schedules import Search

SHARES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Shares of the steps that a time may leave of a schedule, where nobody has searched."""

FASTER: tuple[Options, ...] = ({}, {"shorten": True}, {"shorten": True, "start_sigma": 0.6})
"""Changes of the stages that a time may make, in the order in which they are tried at each number of steps. A word
that the caller has said stays as it is."""

Make = Callable[[Options], Request]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule and its likely seconds.

    Attributes:
        request: The run.
        seconds: Estimated time; None where nothing was measured yet.
        words: Words that it differs from the run as asked by.
        quality: Quality that a search has found; None where it has not tried this one.
    """

    request: Request
    seconds: float | None
    words: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quality: float | None = None

    @property
    def change(self) -> str:
        """Its words, for people; "" where there are none."""
        return ", ".join(f"{name} {value}" for name, value in self.words.items())


def candidates(
    make: Make,
    options: Options,
    seconds: Callable[[Request], float | None],
    least: int,
    search: Callable[[Request], Search | None] = lambda _: None,
) -> Iterator[Candidate]:
    """The run as asked, then others: those that a search has tried, or else faster and faster ones.

    What cannot be planned is left out.

    Args:
        make: Plans a run.
        options: Words of the caller.
        seconds: Estimates a run.
        least: Steps of the full schedule that a guess leaves; what was searched has a quality to go by.
        search: What was searched for the size of a run.

    Raises:
        PlanError, PromptError: The run as asked cannot be carried out.
    """
    asked = make(options)
    yield Candidate(asked, seconds(asked))
    known = search(asked)
    tried = [] if known is None else known.fitting(options)
    changes = [(one.words, one.quality) for one in tried] or [(words, None) for words in _ladder(options, asked, least)]
    for words, quality in changes:
        try:
            request = make(cast(Options, {**options, **words}))
        except LssgenError:  # with fewer steps a stage may get none
            continue
        if request.plan != asked.plan:
            yield Candidate(request, seconds(request), words, quality)


def _ladder(options: Options, asked: Request, least: int) -> Iterator[dict[str, Any]]:
    """Changes of the run as asked, those with most steps first."""
    steps = asked.plan_options.requested_steps
    fixed = "num_inference_steps" in options or "sigmas" in options
    counts = [steps] if fixed else sorted({max(min(least, steps), round(steps * share)) for share in SHARES})
    for count in reversed(counts):
        for change in FASTER:
            words: dict[str, Any] = {name: value for name, value in change.items() if name not in options}
            if count != steps:
                words["num_inference_steps"] = count
            if words:
                yield words


def best_within(found: Iterator[Candidate], budget: float) -> tuple[Candidate | None, Candidate]:
    """The best candidate that fits a time, and the fastest of all.

    The best is the run as asked, if it fits; else the one of the highest quality, or where none is known the slowest,
    since the time is there to be used.

    Args:
        found: At least one.
        budget: Seconds. What was never measured fits.
    """
    every = list(found)
    fastest = min(every, key=_time)
    if every[0].seconds is None or every[0].seconds <= budget:
        return every[0], fastest
    fitting = [one for one in every if _time(one) <= budget]
    return max(fitting, key=_worth, default=None), fastest


def _worth(candidate: Candidate) -> tuple[float, float]:
    """What is preferred; of equal quality, the faster, and of unknown quality, the slower."""
    if candidate.quality is None:
        return (float("-inf"), _time(candidate))
    return (candidate.quality, -_time(candidate))


def _time(candidate: Candidate) -> float:
    return candidate.seconds or 0.0
