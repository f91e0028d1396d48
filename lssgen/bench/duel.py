"""Two sides, in turn, in fresh processes, until it is known which is slower: the gate that needs a clock.

A round starts one process for each side, warms both up, and paints in the order A B B A, again and again: what drifts
evenly during a round (heat, other work) is the same for both. Each round gives one log ratio, so that what a process
keeps for life (addresses, a lucky start) counts once and not once a picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lssgen.bench.cases import PROMPT, wordings
from lssgen.bench.clocks import Pace
from lssgen.bench.environment import Environment, environment
from lssgen.bench.records import read_record, write_record
from lssgen.bench.sides import Side, identity_of, painter
from lssgen.bench.stats import (
    Interval,
    Verdict,
    bootstrap,
    hodges_lehmann,
    level_of,
    log_ratio,
    looks_of,
    verdict,
)
from lssgen.choices import choice, refuse_outside
from lssgen.errors import BenchError, MismatchError

FORMAT = 2
"""Changes when a reader would misunderstand an older file."""

_BUDGET = "how long to measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """When a comparison ends, and what it asks.

    Attributes:
        margin: Slowing that is allowed, as a share: 0.03 for 3 %.
        false_alarms: Share of wrong verdicts that is allowed on each side, all looks together.
        rounds: Most rounds; undecided after them is UNDECIDED.
        blocks: Times that A B B A is painted in a round.
        warmup: Runs of each side at the beginning of a round, which do not count.

    Raises:
        BenchError: Too few rounds to say anything, or numbers that make no sense.
    """

    margin: float = choice(0.03, help="slowing that is allowed, as a share", metavar="X", least=0.0, most=10.0)
    false_alarms: float = choice(
        0.05, help="share of wrong verdicts that is allowed", metavar="X", least=1e-6, most=0.49
    )
    rounds: int = choice(
        30, help="most rounds, each in fresh processes", metavar="N", least=8, most=10_000, group=_BUDGET
    )
    blocks: int = choice(
        3, help="times that A B B A is painted in a round", metavar="N", least=1, most=10_000, group=_BUDGET
    )
    warmup: int = choice(1, help="runs before, which do not count", metavar="N", least=1, most=1_000, group=_BUDGET)

    def __post_init__(self) -> None:
        refuse_outside(self, BenchError)


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one pair of processes gave.

    Attributes:
        a, b: Seconds of every run, in order.
        load_a, load_b: Seconds that each took to open its bundle.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]
    load_a: float
    load_b: float

    @property
    def log_ratio(self) -> float:
        return log_ratio(self.a, self.b)


class Duel(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison on disk.

    Attributes:
        format: `FORMAT` of the lssgen that wrote it.
        a, b: Sides as they were written; the same text for a comparison of one side with itself.
        margin, false_alarms: Terms.
        environment: Machine and software.
        about: Hashes of both bundles and of both sides' code, and the words of the prompts.
        rounds: Rounds that were finished.
        verdict: PASS, FAIL or UNDECIDED.
        estimate: B's time over A's; Hodges and Lehmann's, at the level of the last look.
        second_opinion: The same by bootstrap, at 95 %.
        complaints: Sentences about what was not steady.
    """

    format: int = FORMAT
    a: str
    b: str
    margin: float
    false_alarms: float
    environment: Environment
    about: Mapping[str, str] = {}
    rounds: tuple[Round, ...] = ()
    verdict: Verdict = "UNDECIDED"
    estimate: Interval | None = None
    second_opinion: Interval | None = None
    complaints: tuple[str, ...] = ()

    @property
    def log_ratios(self) -> list[float]:
        """One number a round."""
        return [one.log_ratio for one in self.rounds]


OnRound = Callable[[Duel], None]


def compare(
    a: Side,
    b: Side,
    terms: Terms,
    *,
    prompt: str = PROMPT,
    known: Sequence[Round] = (),
    on_round: OnRound | None = None,
) -> Duel:
    """Compare two sides.

    Args:
        a, b: Sides; ratios are B's time over A's.
        terms: When it ends.
        prompt: Words of the prompts.
        known: Rounds of an earlier run that was stopped.
        on_round: Given the state after every round.

    Raises:
        BenchError: A side cannot be run, or its process died; the rounds before were told to `on_round`.
    """
    pace, rounds, described, about = Pace(), list(known), dict[str, str](), about_of(a, b, prompt)
    looks = looks_of(terms.rounds)
    while True:
        made = judged(a, b, terms, rounds, environment(described), pace.complaints())
        made = msgspec.structs.replace(made, about=about)
        if on_round is not None and rounds:
            on_round(made)
        if len(rounds) >= terms.rounds or (len(rounds) in looks and made.verdict != "UNDECIDED"):
            return made
        pace.look()
        found, described = _round(a, b, terms, prompt, swapped=len(rounds) % 2 == 1)
        rounds.append(found)


def about_of(a: Side, b: Side, prompt: str) -> dict[str, str]:
    """What rounds must have in common, besides the sides as they are written and the machine, to be put together."""
    sides = {
        f"{name}'s {part}": value for name, side in (("A", a), ("B", b)) for part, value in identity_of(side).items()
    }
    return {**sides, "prompt": prompt}


def judged(
    a: Side, b: Side, terms: Terms, rounds: Sequence[Round], where: Environment, complaints: tuple[str, ...] = ()
) -> Duel:
    """What some rounds say."""
    numbers = [one.log_ratio for one in rounds]
    estimate = hodges_lehmann(numbers, level_of(len(looks_of(terms.rounds)), terms.false_alarms)) if numbers else None
    return Duel(
        a=a.text,
        b=b.text,
        margin=terms.margin,
        false_alarms=terms.false_alarms,
        environment=where,
        rounds=tuple(rounds),
        verdict=verdict(estimate, terms.margin) if estimate else "UNDECIDED",
        estimate=estimate,
        second_opinion=bootstrap(numbers) if numbers else None,
        complaints=complaints,
    )


def _round(a: Side, b: Side, terms: Terms, prompt: str, *, swapped: bool) -> tuple[Round, dict[str, str]]:
    """One round; `swapped` paints B A A B, so that neither side always begins."""
    first, second = (b, a) if swapped else (a, b)
    words: Iterator[str] = iter(wordings(prompt, 2 * terms.warmup + 4 * terms.blocks))
    times: Mapping[int, list[float]] = {0: [], 1: []}
    with painter(first) as one, painter(second) as other:
        pair = (one, other)
        for _ in range(terms.warmup):
            for who in pair:
                who.paint(next(words))
        for turn in (0, 1, 1, 0) * terms.blocks:
            times[turn].append(pair[turn].paint(next(words)))
        loads = (one.load_s, other.load_s)
        described = {f"a.{name}": value for name, value in pair[int(swapped)].describe.items()}
        described |= {f"b.{name}": value for name, value in pair[1 - int(swapped)].describe.items()}
    at, to = (1, 0) if swapped else (0, 1)
    found = Round(a=tuple(times[at]), b=tuple(times[to]), load_a=loads[at], load_b=loads[to])
    return found, described


def write_duel(duel: Duel, path: Path) -> None:
    """Write it, whole or not at all.

    Raises:
        BenchError: The file cannot be written.
    """
    write_record(duel, path)


def read_duel(path: Path) -> Duel:
    """Read what `write_duel` wrote.

    Raises:
        BenchError: It is missing or damaged.
        MismatchError: It has another format.
    """
    make, again = "make it with lssgen bench compare --output", "remove it and compare again"
    return read_record(path, Duel, FORMAT, make=make, again=again, other=MismatchError)


def rounds_to_go_on(path: Path, a: Side, b: Side, prompt: str = PROMPT) -> tuple[Round, ...]:
    """Rounds of an earlier, stopped comparison of the same sides; none where there is no file.

    Raises:
        BenchError: The file is damaged.
        MismatchError: It is of other sides, of another bundle or state of the code, or of another machine or version.
    """
    if not path.exists():
        return ()
    before = read_duel(path)
    if (before.a, before.b) != (a.text, b.text):
        raise MismatchError(f"{path} compares {before.a} with {before.b}; choose another file for this comparison")
    about = about_of(a, b, prompt)
    if changed := [name for name, value in about.items() if before.about.get(name) != value]:
        raise MismatchError(
            f"{path} was measured before {' and '.join(changed)} changed, and rounds of both would be mixed; choose "
            "another file, or remove it"
        )
    now = environment({})
    moved = [
        f"{part} {name}"
        for part in ("machine", "software")
        for name, value in getattr(now, part).items()
        if getattr(before.environment, part).get(name) != value
    ]
    if moved:
        raise MismatchError(
            f"{path} was measured on another machine or version ({', '.join(moved[:3])} differ); choose another file"
        )
    return before.rounds
