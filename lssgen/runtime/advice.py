"""What was measured decides where the caller does not: between stages and one stage, and what fits a time; and says
what else is slow."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.measured import MEASURED, Guarantee, Measured, place_of, read_measured
from lssgen.plan.budget import Budget
from lssgen.runtime.budget import parted, within_budget
from lssgen.runtime.options import Asked, Options, request_from_options

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a run.

    Attributes:
        options: Its options: one stage, where it chooses none and one stage was measured to be faster.
        notes: Sentences that its caller should read.
    """

    options: Options
    notes: tuple[str, ...] = ()


def known_of(bundle: Bundle, backend: Backend) -> Measured | None:
    """What `lssgen bench guarantee` has written for this engine on this machine; None where it has nothing."""
    if not bundle.path(MEASURED).is_file():  # asked first: a backend's description may ask its device
        return None
    return read_measured(bundle, place_of(backend.name, backend.describe()))


def advice(bundle: Bundle, measured: Measured | None, options: Options) -> Advice:
    """What was measured says about a run.

    Raises:
        PlanError: The run cannot be carried out as asked.
    """
    if measured is None or not measured.guarantees:
        return Advice(options)
    plan = request_from_options(bundle, options).plan
    known = measured.at(plan.height_px, plan.width_px)
    if known is None:
        return Advice(options)
    notes = (outrun(known),) if known.outrun else ()
    if _chooses_stages(options) or len(plan.stages) == 1 or known.faster != "single":
        return Advice(options, notes)
    return Advice({**options, "start_sigma": 1.0}, (one_stage(known), *notes))


Tell = Callable[[int, str], object]
"""Hears what the caller of a run should read: its level, as in `logging`, and a sentence."""


def advised(bundle: Bundle, backend: Backend, asked: Asked, tell: Tell = _LOG.log) -> Options:
    """The options of a run as `advice` has them, and with the best schedule that fits the time that the caller gives.

    Args:
        bundle: What paints.
        backend: Where.
        asked: Words of the caller.
        tell: Hears notes; the log, unless the caller has said them or will.

    Raises:
        PlanError: The run cannot be carried out as asked, or not in that time.
    """
    options, budget = parted(asked)  # first: what cannot be a time is refused before files are looked at
    return _advised(
        bundle, lambda: place_of(backend.name, backend.describe()), known_of(bundle, backend), options, budget, tell
    )


def advised_at(bundle: Bundle, place: str, measured: Measured | None, asked: Asked) -> Options:
    """The same for an engine on a machine, by its words and what was measured there."""
    return _advised(bundle, lambda: place, measured, *parted(asked), _LOG.log)


def _advised(
    bundle: Bundle,
    place: Callable[[], str],
    measured: Measured | None,
    options: Options,
    budget: Budget | None,
    tell: Tell,
) -> Options:
    # First: a budget then chooses among schedules that are not slower than they need be.
    found = advice(bundle, measured, options)
    for note in found.notes:
        tell(logging.INFO, note)
    return found.options if budget is None else within_budget(bundle, place(), measured, found.options, budget, tell)


def one_stage(known: Guarantee) -> str:
    """A sentence about a size at which stages are slower."""
    return (
        f"one stage: at {known.width} x {known.height} px it was measured to be faster on this machine (stages took "
        f"{known.staged_over_single.ratio:.2f} times as long); start_sigma asks for stages all the same"
    )


def outrun(known: Guarantee) -> str:
    """A sentence about a size at which the engine is slower than its reference."""
    assert known.engine_over_reference is not None
    return (
        f"at {known.width} x {known.height} px this engine was measured to be slower on this machine than "
        f"{known.reference} (it took {known.engine_over_reference.ratio:.2f} times as long): choose that one"
    )


def _chooses_stages(options: Options) -> bool:
    """Whether the caller says a word that fits so many stages and no others."""
    return (
        options.get("start_sigma") is not None
        or bool(options.get("stage_steps"))
        or "," in (options.get("cached_steps") or "")
    )
