"""What was measured decides where the caller does not: between stages and one stage, and what fits a time."""

import logging

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.measured import Measured, place_of, read_measured
from lssgen.plan.budget import Budget
from lssgen.runtime.budget import parted, within_budget
from lssgen.runtime.options import Asked, Options, request_from_options

_LOG = logging.getLogger("lssgen")


def advised(bundle: Bundle, backend: Backend, asked: Asked) -> Options:
    """The options, with one stage where the caller chooses none and one stage was measured to be faster, and with the
    best schedule that fits the time that the caller gives.

    Only what `lssgen bench guarantee` has written for this engine on this machine counts.

    Raises:
        PlanError: The run cannot be carried out as asked, or not in that time.
    """
    options, budget = parted(asked)
    if budget is None and _chooses_stages(options):
        return options  # without a look at files, which is for runs that leave something open
    place = place_of(backend.name, backend.describe())
    return _advised(bundle, place, read_measured(bundle, place), options, budget)


def advised_at(bundle: Bundle, place: str, measured: Measured | None, asked: Asked) -> Options:
    """The same for an engine on a machine, by its words and what was measured there."""
    return _advised(bundle, place, measured, *parted(asked))


def _advised(bundle: Bundle, place: str, measured: Measured | None, options: Options, budget: Budget | None) -> Options:
    # First: a budget then chooses among schedules that are not slower than they need be.
    options = _not_slower(bundle, measured, options)
    return options if budget is None else within_budget(bundle, place, measured, options, budget)


def _not_slower(bundle: Bundle, measured: Measured | None, options: Options) -> Options:
    if measured is None or not measured.guarantees or _chooses_stages(options):
        return options
    plan = request_from_options(bundle, options).plan
    known = measured.at(plan.height_px, plan.width_px)
    if len(plan.stages) == 1 or known is None or known.faster != "single":
        return options
    _LOG.info(
        "one stage: at %d x %d px it was measured to be faster on this machine (stages took %.2f times as long); "
        "--start-sigma asks for stages all the same",
        plan.width_px,
        plan.height_px,
        known.staged_over_single,
    )
    return {**options, "start_sigma": 1.0}


def _chooses_stages(options: Options) -> bool:
    """Whether the caller says a word that fits so many stages and no others."""
    return (
        options.get("start_sigma") is not None
        or bool(options.get("stage_steps"))
        or "," in (options.get("cached_steps") or "")
    )
