"""What was measured decides between stages and one stage, where the caller does not."""

import logging

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.measured import place_of, read_measured
from lssgen.runtime.options import Options, request_from_options

_LOG = logging.getLogger("lssgen")


def advised(bundle: Bundle, backend: Backend, options: Options) -> Options:
    """The options, with one stage where the caller names no `start_sigma` and one stage was measured to be faster.

    Only what `lssgen bench guarantee` has written for this engine on this machine counts.

    Raises:
        PlanError: The run cannot be carried out as asked.
    """
    if options.get("start_sigma") is not None:
        return options
    measured = read_measured(bundle, place_of(backend.name, backend.describe()))
    if measured is None or not measured.guarantees:
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
