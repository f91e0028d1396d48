"""Ranges: real runs of a bundle, listened to, become a statistics file.

Kill it at any moment and run it again: it goes on behind the last prompt whose numbers are in the file.
"""

import hashlib
import logging
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import onnx_ir as ir

import lssgen
from lssgen.bundle import Bundle
from lssgen.calibration.alone import written_alone
from lssgen.calibration.listening import ListeningBackend, Told
from lssgen.calibration.products import is_quantised, products_of
from lssgen.calibration.statistics import SUFFIX, About, Statistics, read_statistics, write_statistics
from lssgen.calibration.taps import Tap, tapped_bundle
from lssgen.engines.base import Backend
from lssgen.errors import CalibrationError
from lssgen.models.quantisation import sensitivity_of
from lssgen.plan import Plan
from lssgen.progress import followed
from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline

_LOG = logging.getLogger("lssgen")

FEW_PROMPTS = 8
"""Prompts below which ranges are those of too few texts: however many steps see one, it is always the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangesJob:
    """What to listen to.

    Attributes:
        bundle: A bundle that is not quantised.
        backend: Place where it runs.
        prompts: Prompts, each painted once.
        output: Statistics file.
        seed: Seed of the first prompt; prompt i is painted with seed + i.
        options: Options of the runs.
    """

    bundle: Bundle
    backend: Backend
    prompts: tuple[str, ...]
    output: Path
    seed: int = 0
    options: Options = field(default_factory=Options)


def measure_ranges(job: RangesJob) -> Statistics:
    """Run the prompts and write the statistics file, after every prompt.

    Raises:
        CalibrationError: The bundle is quantised already; or the file is that of another calibration, or of something
            else by its name or contents.
        LssgenError: As painting a picture.
        OSError: The file cannot be written.
    """
    model = ir.load(job.bundle.path(job.bundle.manifest.graphs["step"].file))
    see_unquantised(job.bundle, model)
    products = products_of(model, sensitivity_of(job.bundle.manifest.family))
    if job.output.suffix != SUFFIX:
        raise CalibrationError(
            f"ranges are written to a {SUFFIX} file, and {job.output} is none; give another --output"
        )
    if len(job.prompts) < FEW_PROMPTS:
        _LOG.warning(
            "ranges of %d prompts: other texts may leave them, and are cut off there; 32 to 64 are usual",
            len(job.prompts),
        )
    with written_alone(job.output), _workplace(job) as folder:
        tapped, taps = tapped_bundle(job.bundle, products, model, folder)
        ear = _Ear()
        with Pipeline(tapped, ListeningBackend(job.backend, taps, ear.hear)) as pipeline:
            plan = pipeline.plan(**job.options)
            ear.statistics = _begun(job.output, _about(job, plan, taps))
            ear.shares = _shares(plan)
            _run(job, pipeline, ear)
    return ear.statistics


def see_unquantised(bundle: Bundle, model: ir.Model | None = None) -> None:
    """Raise CalibrationError if a bundle's step is quantised; without its graph, if the manifest says so."""
    if bundle.manifest.graphs["step"].quantisation is not None or (model is not None and is_quantised(model)):
        raise CalibrationError(
            f"bundle {bundle.folder} is quantised already; take the bundle that it was made from, or export the model "
            "again"
        )


class _Ear:
    """Takes in what the taps say. The pipeline's first call comes when the plan is known."""

    statistics: Statistics
    shares: Mapping[tuple[int, int], Mapping[np.float32, float]]

    def hear(self, size: tuple[int, int], label: float, told: Told) -> None:
        about = self.statistics.about
        stage = about.stages.index(size)
        share = self.shares[size][np.float32(label)]
        bucket = min(int(share * about.buckets), about.buckets - 1)
        for tap in about.taps:
            self.statistics.at(tap, stage, bucket).add(*told[tap.tensor])


def _shares(plan: Plan) -> dict[tuple[int, int], dict[np.float32, float]]:
    """Share of noise in what every step sees, in [0, 1], by stage and by what the network is told."""
    found: dict[tuple[int, int], dict[np.float32, float]] = {}
    for stage in plan.stages:
        entries = ((stage.image, stage.noise), *stage.levels)
        found[stage.height, stage.width] = {
            np.float32(step.label): noise / max(image + noise, 1e-12)
            for step, (image, noise) in zip(stage.steps, entries, strict=False)
        }
    return found


def _about(job: RangesJob, plan: Plan, taps: Sequence[Tap]) -> About:
    manifest = job.bundle.manifest
    return About(
        lssgen=lssgen.__version__,
        family=manifest.family,
        model=manifest.source.model,
        step=dict(manifest.graphs["step"].sha256),
        stages=tuple((stage.height, stage.width) for stage in plan.stages),
        steps=tuple(len(stage.steps) for stage in plan.stages),
        prompts=job.prompts,
        seed=job.seed,
        settings=str(sorted(job.options.items())),
        engine=job.backend.name,
        precision=manifest.graphs["step"].precision,
        taps=tuple(taps),
    )


def _begun(path: Path, about: About) -> Statistics:
    """The statistics so far: those of the file, if it is there and of the same calibration.

    Raises:
        CalibrationError: It is of another one.
    """
    if not path.exists():
        return Statistics(about)
    try:
        found = read_statistics(path)
    except CalibrationError as error:
        raise CalibrationError(
            f"{path} is there and holds no statistics to go on with; choose another --output, or remove it"
        ) from error
    for name in About.__struct_fields__:
        was, now = (msgspec.json.encode(getattr(one, name)) for one in (found.about, about))
        if was != now and name not in ("done", "lssgen", "engine"):
            raise CalibrationError(
                f"{path} holds statistics of another calibration ({name} was {was.decode()[:60]}, is "
                f"{now.decode()[:60]}); choose another --output, or remove it"
            )
    return found


def _run(job: RangesJob, pipeline: Pipeline, ear: _Ear) -> None:
    count = len(job.prompts)
    begun = ear.statistics.about.done
    if begun:
        _LOG.info("%d of %d prompts are in %s already", begun, count, job.output)
    with followed(_LOG.info) as follower:
        for number in range(begun, count):
            follower.at(number / count, f"{number} of {count} prompts")
            pipeline(job.prompts[number], **{**job.options, "seed": job.seed + number, "num_images": 1, "batch": 1})
            ear.statistics.about = _done(ear.statistics.about, number + 1)
            write_statistics(ear.statistics, job.output)


def _done(about: About, done: int) -> About:
    """The same with so many prompts done."""
    return msgspec.structs.replace(about, done=done)


@contextmanager
def _workplace(job: RangesJob) -> Generator[Path]:
    """A folder for the graph with taps; beside the bundle where one may write there, so that weights need no copy.

    Its name is that of the output, which nobody else writes: what a killed calibration left there is removed.
    """
    bundle = job.bundle.folder.resolve()
    key = hashlib.sha256(str(job.output.resolve()).encode()).hexdigest()[:16]
    folder = bundle.with_name(f".{bundle.name}.calibrate-{key}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError:
        with TemporaryDirectory(prefix="lssgen-calibrate-") as elsewhere:
            yield Path(elsewhere)
        return
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
