"""Contestants in turn: every round, each once, beginning with another one; ratios are of one round."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, process_time
from typing import Any, Literal, TypeVar
from unittest.mock import patch

from lssgen.bench.environment import environment

K = TypeVar("K")
Work = Callable[[], Any]
Clock = Literal["wall", "cpu"]


SPELL_S, MOST_CALLS = 0.4, 20
"""Seconds that a contestant has in a turn, if its calls are shorter, and most calls in it."""


@dataclass(slots=True)
class Times:
    """Seconds of one call in every round, the median of a turn's calls.

    Attributes:
        wall: By the clock.
        cpu: Time that the process had a processor. With one thread this is the work itself, which others on the
            machine hardly change.
    """

    wall: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])


def in_turn(works: Mapping[K, Work], rounds: int, say: Callable[[str], object] = print) -> dict[K, Times]:
    """Time every contestant in every round, after a round that does not count."""
    names = list(works)
    times = {name: Times() for name in names}
    for number in range(rounds + 1):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            wall, cpu = _turn(works[name])
            if number:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
        say(f"    round {number} of {rounds}")
    return times


def _turn(work: Work) -> tuple[float, float]:
    walls: list[float] = []
    cpus: list[float] = []
    while not walls or (sum(walls) < SPELL_S and len(walls) < MOST_CALLS):
        began, busy = perf_counter(), process_time()
        work()
        walls.append(perf_counter() - began)
        cpus.append(process_time() - busy)
    return median(walls), median(cpus)


def times_as_fast(times: Mapping[K, Times], name: K, reference: K, clock: Clock) -> float:
    """Median over the rounds of the reference's time over a contestant's."""
    one, other = getattr(times[name], clock), getattr(times[reference], clock)
    return median(b / a for a, b in zip(one, other, strict=True))


def clock_of(threads: int) -> Clock:
    """What counts: with one thread the processor's time, which neighbours hardly change; with several the clock."""
    return "cpu" if threads == 1 else "wall"


TIMED = (
    "lssgen.engines.base", "lssgen.bench.measure", "lssgen.bench.meter", "lssgen.runtime.sampler",
    "lssgen.runtime.pipeline",
)  # fmt: skip
"""Modules that take the times of a run's parts."""


@contextmanager
def timed_by(threads: int) -> Generator[None]:
    """Within it, lssgen's own times of a run's parts are those of the clock that counts."""
    with ExitStack() as stack:
        if clock_of(threads) == "cpu":
            for name in TIMED:
                stack.enter_context(patch(f"{name}.perf_counter", process_time))
        yield


def conditions(threads: int) -> dict[str, object]:
    """Where and when."""
    facts = environment({"threads": threads})
    return {"machine": dict(facts.machine), "software": dict(facts.software), "state": dict(facts.state),
            "threads": threads, "date": facts.written, "load_now": os.getloadavg()[0]}  # fmt: skip
