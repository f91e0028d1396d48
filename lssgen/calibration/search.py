"""The search: what must go back to high precision until latents reach a bound, and as little of it as will do.

Two things may go back: the noisiest products, in all stages, and whole stages, the smallest first. Of the choices that
reach the bound, the one that leaves most of a run's multiplications in few bits wins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lssgen.calibration.quality import Bound, Quality
from lssgen.errors import CalibrationError

MOST_KEPT = 0.5
"""Share of the products that may go back; with more, the format is of no use for this model."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is quantised.

    Attributes:
        from_px: Pixels along the shorter side from which on stages are quantised.
        returned: Names of products that stay as they are in these stages.
    """

    from_px: int = 0
    returned: frozenset[str] = frozenset()


Try = Callable[[Choice], tuple[Quality, Mapping[str, float]]]
"""Makes a choice: how alike latents are, and the predicted signal to noise of every quantised product in dB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Where a run's multiplications are.

    Attributes:
        stages: Share in stages from a size on, by pixels along the shorter side; the whole run, from 0 on, comes first.
        products: Share of a step's in each product, by name.
    """

    stages: Mapping[int, float]
    products: Mapping[str, float]

    def share(self, choice: Choice) -> float:
        """Share that a choice leaves in few bits."""
        return self.stages[choice.from_px] * (1 - sum(self.products[name] for name in choice.returned))


def worst_first(snr_db: Mapping[str, float]) -> list[str]:
    """Names of products by their signal to noise, the noisiest first."""
    return sorted(snr_db, key=lambda name: (snr_db[name], name))


def choose(work: Work, attempt: Try, bound: Bound) -> tuple[Choice, Quality]:
    """The choice that reaches a bound with most of the work in few bits.

    Every set of stages is tried as it is, until one does. Those that do not are tried with fewer products, as long as
    that would leave more in few bits than the best so far.

    Raises:
        CalibrationError: Not with half of the products either.
    """
    found: list[tuple[Choice, Quality]] = []
    near: list[_Failure] = []
    for from_px in work.stages:
        choice = Choice(from_px)
        quality, snr_db = attempt(choice)
        if quality.reaches(bound):
            found.append((choice, quality))
            break
        near.append(_Failure(from_px, worst_first(snr_db), quality))
    for failure in near:
        least = max((work.share(choice) for choice, _ in found), default=0.0)
        count = _most(failure, work, least)
        found += _with_fewer(failure, attempt, bound, count) if count else []
    if not found:
        raise CalibrationError(_given_up(near, bound))
    return max(found, key=lambda pair: work.share(pair[0]))


@dataclass(slots=True)
class _Failure:
    """A set of stages that does not reach the bound with all products.

    Attributes:
        from_px: Pixels from which on stages are quantised.
        order: Names of products, the noisiest first.
        quality: Likeness that is reached; in the end, with as many returned as was tried.
        returned: Number of products that were returned then.
    """

    from_px: int
    order: Sequence[str]
    quality: Quality
    returned: int = 0


def _most(failure: _Failure, work: Work, least: float) -> int:
    """How many products may go back, so that more than some share stays in few bits."""
    most = int(len(failure.order) * MOST_KEPT)
    while most and work.share(Choice(failure.from_px, frozenset(failure.order[:most]))) <= least:
        most -= 1
    return most


def _with_fewer(failure: _Failure, attempt: Try, bound: Bound, most: int) -> list[tuple[Choice, Quality]]:
    """The noisiest products returned until the bound is reached; empty if it is not with so many.

    The number of them is doubled until it is, then halved back to the smallest that is known to do.
    """
    order = failure.order

    def tried(count: int) -> Quality:
        quality, _ = attempt(Choice(failure.from_px, frozenset(order[:count])))
        return quality

    low, high = 0, min(most, max(1, len(order) // 16))
    while not (reached := tried(high)).reaches(bound):
        failure.quality, failure.returned = reached, high
        if high >= most:
            return []
        low, high = high, min(2 * high, most)
    while high - low > max(1, len(order) // 32):
        middle = (low + high) // 2
        quality = tried(middle)
        low, high, reached = (low, middle, quality) if quality.reaches(bound) else (middle, high, reached)
    return [(Choice(failure.from_px, frozenset(order[:high])), reached)]


def _given_up(near: Sequence[_Failure], bound: Bound) -> str:
    last = near[-1]
    where = f" in stages from {last.from_px} px on" if last.from_px else ""
    return (
        f"latents reach {last.quality} with {last.returned} of {len(last.order)} products in high precision{where}, "
        f"and the bound is {bound.psnr_db:g} dB and cosine {bound.cosine:g}; choose a wider format, smoothing, or "
        "lower bounds (--psnr, --cosine)"
    )
