"""What was measured decides between stages and one stage, where the caller does not; and says what else is slow."""

import logging
from dataclasses import dataclass

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.measured import MEASURED, Guarantee, Measured, place_of, read_measured
from lssgen.runtime.options import Options, request_from_options

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about a run.

    Attributes:
        options: Its options: one stage, where it names no `start_sigma` and one stage was measured to be faster.
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
    if options.get("start_sigma") is not None or len(plan.stages) == 1 or known.faster != "single":
        return Advice(options, notes)
    return Advice({**options, "start_sigma": 1.0}, (one_stage(known), *notes))


def advised(bundle: Bundle, backend: Backend, options: Options) -> Options:
    """The options of a run as `advice` has them; its notes go to the log.

    Raises:
        PlanError: The run cannot be carried out as asked.
    """
    found = advice(bundle, known_of(bundle, backend), options)
    for note in found.notes:
        _LOG.info("%s", note)
    return found.options


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
