"""What a bundle in few bits must pass: nearly the same latents, and less time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lssgen.bundle import Bundle
from lssgen.calibration.quality import Bound, Runs
from lssgen.calibration.speed import step_speedups
from lssgen.engines.base import Backend
from lssgen.errors import CalibrationError
from lssgen.manifest import Manifest, Measured

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a quantised bundle must pass.

    Attributes:
        runs: Seeded runs that are compared; None: none.
        backend: Place where they run, before and after.
        bound: Likeness that their latents must reach.
        timed: Engine that both steps are timed on; None: they are not timed.
        force: Make it whether or not it is faster.
    """

    runs: Runs | None = None
    backend: Backend | None = None
    bound: Bound = field(default_factory=lambda: Bound(0.0, 0.0))
    timed: Backend | None = None
    force: bool = False


def passed_speed(before: Bundle, after: Bundle, gate: Gate) -> Manifest:
    """A quantised bundle's manifest with its step's times against those of the bundle that it was made from.

    Raises:
        CalibrationError: It is not faster, or not clearly, and was not forced.
    """
    step, old = after.manifest.graphs["step"], before.manifest.graphs["step"]
    assert step.quantisation is not None
    form = step.quantisation.format
    if gate.timed is None:
        _LOG.info("not timed: %s does not run here; time it where it does", step.quantisation.engine)
        return after.manifest
    speedup = step_speedups(before, after, gate.timed)
    said = ", ".join(
        f"{speed.ratio:.2f} times ({speed.least:.2f} to {speed.most:.2f}) at {size}" for size, speed in speedup.items()
    )
    slower = _whole([speed.least for speed in speedup.values()], before.manifest) <= 1
    if slower and not gate.force:
        clearly = " clearly" * (_whole([speed.ratio for speed in speedup.values()], before.manifest) > 1)
        raise CalibrationError(
            f"the {form} step is not{clearly} faster than the {old.precision} one on {gate.timed.name}: {said}; use "
            "the bundle that it was made from, try again on a quiet machine, or make it all the same with --force"
        )
    _LOG.info("speed of the %s step on %s: %s", form, gate.timed.name, said)
    measured = step.quantisation.measured or Measured()
    ratios = {size: round(speed.ratio, 3) for size, speed in speedup.items()}
    return measured_step(after.manifest, replace(measured, speedup=ratios, engine=gate.timed.name, slower=slower))


def _whole(ratios: Sequence[float], manifest: Manifest) -> float:
    """Speed-up of one step at each resolution together: the larger ones take nearly all the time."""
    cells = [float(height * width) for height, width in manifest.resolutions]
    return sum(cells) / sum(size / ratio for size, ratio in zip(cells, ratios, strict=True))


def measured_step(manifest: Manifest, measured: Measured) -> Manifest:
    """With what was found of its quantised step."""
    step = manifest.graphs["step"]
    assert step.quantisation is not None
    said = replace(step, quantisation=replace(step.quantisation, measured=measured))
    return replace(manifest, graphs={**manifest.graphs, "step": said})
