"""The schedule that a time leaves: the best one that a search has found, or a guess."""

import logging
from collections.abc import Callable
from typing import Any, cast

from lssgen.bundle import Bundle
from lssgen.errors import PlanError
from lssgen.measured import Measured
from lssgen.plan import Plan, make_plan
from lssgen.plan.budget import Budget
from lssgen.plan.timing import TimeCosts, predicted_ms
from lssgen.runtime.candidates import Candidate, best_within, candidates
from lssgen.runtime.options import Asked, Options, request_from_options
from lssgen.schedules import search_at

LEAST_STEPS = 4
"""Steps of the full schedule that a guess leaves, where nobody has searched."""


def parted(asked: Asked) -> tuple[Options, Budget | None]:
    """The words of a run, and its budget; None where there is none.

    Raises:
        PlanError: The budget is not a number in its range.
    """
    words: dict[str, Any] = dict(asked)
    said = {name: words.pop(name, None) for name in Budget.__dataclass_fields__}
    return cast(Options, words), Budget(**said) if any(value is not None for value in said.values()) else None


def within_budget(
    bundle: Bundle,
    place: str,
    measured: Measured | None,
    options: Options,
    budget: Budget,
    tell: Callable[[int, str], object],
) -> Options:
    """The words of the best schedule that a budget leaves; what the caller has said stays.

    Args:
        bundle: What paints.
        place: Engine and machine, in words, see `lssgen.measured.place_of`.
        measured: What was measured there.
        options: Words of the caller.
        budget: Time of a picture.
        tell: Hears what was chosen: a level of `logging`, and a sentence.

    Raises:
        PlanError: Nothing was measured there, or no schedule is so fast; names the fastest.
    """
    costs, facts = _costs(bundle, place, measured, budget), bundle.manifest.facts
    asked = request_from_options(bundle, options)
    searched = search_at(bundle, asked.plan.height_px, asked.plan.width_px)
    single = make_plan(facts, asked.plan_options.in_one_stage())
    most = budget.milliseconds(predicted_ms(single, facts, costs))
    found = candidates(
        lambda words: request_from_options(bundle, words),
        options,
        lambda request: predicted_ms(request.plan, facts, costs) / 1e3,
        LEAST_STEPS,
        lambda _: searched,
    )
    best, fastest = best_within(found, most / 1e3)
    if best is None:
        raise PlanError(
            f"a picture in {most:.0f} ms is asked for ({budget}), but the fastest schedule takes "
            f"{1e3 * (fastest.seconds or 0):.0f} ms here ({_words(fastest)}); give it more time, or ask for a smaller "
            "picture"
        )
    if searched is None and best.words:
        width, height = asked.plan.width_px, asked.plan.height_px
        tell(
            logging.WARNING,
            f"no schedules of {width} x {height} px were searched for this bundle, so that this one is a guess of "
            f"unknown quality; run: lssgen calibrate schedule {bundle.folder} --size {width}x{height}",
        )
    tell(logging.INFO, f"{budget}: {_words(best)}, predicted {1e3 * (best.seconds or 0):.0f} ms{_quality(best)}")
    return cast(Options, {**options, **best.words})


def _costs(bundle: Bundle, place: str, measured: Measured | None, budget: Budget) -> TimeCosts:
    if measured is None or measured.costs is None:
        raise PlanError(
            f"{budget} needs the times of steps, and bundle {bundle.folder} has none of {place}; run: lssgen bench "
            f"guarantee {bundle.folder} --engine {place.split()[0]}"
        )
    return measured.costs


def _words(candidate: Candidate) -> str:
    plan: Plan = candidate.request.plan
    steps = " + ".join(str(len(stage.steps)) for stage in plan.stages)
    return f"{steps} evaluations" + (f", {candidate.change}" if candidate.change else ", as asked")


def _quality(candidate: Candidate) -> str:
    return "" if candidate.quality is None else f", quality {candidate.quality:.4g}"
