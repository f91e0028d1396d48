"""The search for schedules: which ones are worth having, at what time a picture.

From the schedules that nothing tried so far beats in both time and quality, it goes to their neighbours, one step along
one axis of the table, until none is left or so many were tried: Pareto local search (Paquete et al. 2004). Times are
worked out from measured costs, so that only the quality takes pictures.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any, cast

import numpy as np
from PIL import Image

from lssgen.bundle import MANIFEST, Bundle, sha256_of
from lssgen.calibration.alone import written_alone
from lssgen.calibration.axes import AXES, Axis, Point, Table
from lssgen.calibration.judges import Judge
from lssgen.calibration.trials import About, Trial, Trials, key_of
from lssgen.engines.base import Backend
from lssgen.errors import CalibrationError
from lssgen.measured import place_of, read_measured
from lssgen.plan import Plan
from lssgen.plan.timing import TimeCosts, predicted_ms
from lssgen.progress import followed
from lssgen.runtime.options import Options
from lssgen.runtime.pipeline import Pipeline
from lssgen.schedules import Search, Tried, front, write_search

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchJob:
    """What to search.

    Attributes:
        bundle: Bundle that paints.
        backend: Place where it runs, with measured costs in the bundle.
        prompts: Prompts that every schedule paints.
        judge: Judge of the pictures.
        output: File of the results.
        seed: Seed of the first prompt.
        tries: Number of schedules to try.
        options: Words of all runs.
        axes: Axes that schedules differ by.
        install: True where what was found is written into the bundle.
    """

    bundle: Bundle
    backend: Backend
    prompts: tuple[str, ...]
    judge: Judge
    output: Path
    seed: int = 0
    tries: int = 60
    options: Options = field(default_factory=Options)
    axes: Sequence[Axis] = AXES
    install: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A schedule that was tried, with what it takes here.

    Attributes:
        point: Its place in the table.
        tried: Words, steps and quality.
        predicted_ms: Milliseconds of a picture, from measured costs.
    """

    point: Point
    tried: Tried
    predicted_ms: float


def search_schedules(job: SearchJob) -> list[Found]:
    """Search, and write down every schedule that was tried.

    Returns:
        All of them, in the order in which they were tried.

    Raises:
        CalibrationError: Nothing was measured here, or the file is damaged or of another search.
        LssgenError: As painting a picture.
        OSError: A file cannot be written.
    """
    costs = _costs(job.bundle, job.backend)
    table = Table(job.bundle, job.options, job.axes)
    with written_alone(job.output):
        trials = Trials(job.output, _about(job, table))
        with Pipeline(job.bundle, job.backend) as pipeline, followed(_LOG.info) as follower:
            painter = _Painter(job, pipeline, follower.at)
            found = list(_searched(job, table, costs, trials, painter))
    if job.install:
        write_search(job.bundle, _search(job, table, found))
    return found


def best_of(found: Sequence[Found]) -> list[Found]:
    """The schedules that no other one beats in both time and quality, the fastest first."""
    return front(found, lambda one: one.predicted_ms, lambda one: one.tried.quality)


def _costs(bundle: Bundle, backend: Backend) -> TimeCosts:
    place = place_of(backend.name, backend.describe())
    measured = read_measured(bundle, place)
    if measured is None or measured.costs is None:
        raise CalibrationError(
            f"bundle {bundle.folder} has no measured times of {place}; run: lssgen bench guarantee {bundle.folder} "
            f"--engine {backend.name}"
        )
    return measured.costs


def _about(job: SearchJob, table: Table) -> About:
    return About(
        manifest_sha256=sha256_of(job.bundle.path(MANIFEST)),
        judge=job.judge.name,
        prompts=job.prompts,
        seed=job.seed,
        options={word: value for word, value in job.options.items() if value is not None},
        axes=table.words,
    )


def _searched(job: SearchJob, table: Table, costs: TimeCosts, trials: Trials, painter: "_Painter") -> Iterator[Found]:
    """Schedules as they are tried."""
    facts = job.bundle.manifest.facts
    # What takes longer than one stage with all steps is not worth a picture.
    most = predicted_ms(painter.reference, facts, costs)
    found: list[Found] = []
    seen: set[object] = set()
    for point in _points(table, found):
        made = table.run(point)
        if made is None or (own := _sameness(made[1].plan)) in seen:
            continue
        seen.add(own)
        words, run = made
        took = predicted_ms(run.plan, facts, costs)
        if took > most * (1 + 1e-9):
            continue
        trial = trials.done.get(key_of(words))
        if trial is None:
            trial = painter.tried(words, len(found))
            trials.add(trial)
        tried = Tried(
            words=dict(words),
            steps=tuple(len(stage.steps) for stage in run.plan.stages),
            quality=fmean(trial.quality),
            ms=1e3 * median(trial.seconds),
        )
        found.append(Found(point=point, tried=tried, predicted_ms=took))
        yield found[-1]
        if len(found) == job.tries:
            return


def _points(table: Table, found: Sequence[Found]) -> Iterator[Point]:
    """Points to try: where a search begins, then neighbours of the best so far, which `found` grows by."""
    yield from table.starts
    asked = set(table.starts)
    # The same order in every run of the same search, so that one that was stopped goes on as it would have.
    chance = np.random.default_rng(0)
    while True:
        ahead = [point for one in best_of(found) for point in table.neighbours(one.point) if point not in asked]
        if not ahead:
            return
        point = ahead[int(chance.integers(len(ahead)))]
        asked.add(point)
        yield point


def _sameness(plan: Plan) -> object:
    """What is equal where two plans paint the same."""
    return (plan.stages, plan.scaling_space if len(plan.stages) > 1 else "")


class _Painter:
    """Paints the pictures of schedules and has them judged.

    Args:
        job: The search.
        pipeline: Paints.
        tell: Told how far it is.
    """

    def __init__(self, job: SearchJob, pipeline: Pipeline, tell: Callable[[float, str], None]) -> None:
        self._job = job
        self._pipeline = pipeline
        self._single = cast(Options, {**job.options, **_IN_ONE_STAGE})
        self._tell = tell

    @cached_property
    def reference(self) -> Plan:
        """One stage with all its steps evaluated."""
        return self._pipeline.plan(**self._single)

    @cached_property
    def _wanted(self) -> list[Image.Image]:
        """Its pictures, where the judge compares with them."""
        return [self._painted(number, self._single)[0] for number in range(len(self._job.prompts))]

    def tried(self, words: Mapping[str, Any], done: int) -> Trial:
        """Paint all prompts by a schedule; `done` were tried before."""
        job, count = self._job, len(self._job.prompts)
        quality: list[float] = []
        seconds: list[float] = []
        for number, prompt in enumerate(job.prompts):
            where = f"schedule {done + 1} of up to {job.tries}, picture {number + 1} of {count}"
            self._tell((done + number / count) / job.tries, where)
            picture, took = self._painted(number, cast(Options, {**job.options, **words}))
            wanted = self._wanted[number] if job.judge.compares else picture
            quality.append(job.judge.judge(prompt, picture, wanted))
            seconds.append(took)
        return Trial(words=dict(words), quality=tuple(quality), seconds=tuple(seconds))

    def _painted(self, number: int, options: Options) -> tuple[Image.Image, float]:
        field = {"noise_field": "picture"} if self._job.judge.compares else {}
        own = {"seed": self._job.seed + number, "num_images": 1, "batch": 1}
        words: dict[str, Any] = {**field, **options, **own}
        result = self._pipeline(self._job.prompts[number], **words)
        return result.images[0], result.times[0].total - result.times[0].load


_IN_ONE_STAGE: Mapping[str, Any] = {"start_sigma": 1.0, "stage_steps": (), "cached_steps": "off"}


def _search(job: SearchJob, table: Table, found: Sequence[Found]) -> Search:
    plan = table.plain.plan
    return Search(
        height=plan.height_px,
        width=plan.width_px,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        judge=job.judge.name,
        prompts=len(job.prompts),
        axes=table.words,
        tried=tuple(one.tried for one in found),
    )


def markdown(found: Sequence[Found], judge: str) -> str:
    """The schedules worth having, as a table."""
    lines = [
        f"| evaluations | predicted ms | quality ({judge}) | schedule |",
        "|---|---|---|---|",
    ]
    for one in best_of(found):
        steps = " + ".join(map(str, one.tried.steps))
        words = ", ".join(f"{word} {_spelt(value)}" for word, value in one.tried.words.items())
        lines.append(f"| {steps} | {one.predicted_ms:.0f} | {one.tried.quality:.4g} | {words} |")
    return "\n".join(lines)


def write_plot(found: Sequence[Found], judge: str, path: Path) -> None:
    """All schedules that were tried, time against quality, and the line of those worth having. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for stages in sorted({len(one.tried.steps) for one in found}):
        mine = [one for one in found if len(one.tried.steps) == stages]
        label = f"{stages} stage" + "s" * (stages > 1)
        axes.plot([one.predicted_ms for one in mine], [one.tried.quality for one in mine], "o", ms=4, label=label)
    best = best_of(found)
    axes.step([one.predicted_ms for one in best], [one.tried.quality for one in best], where="post", color="0.4", lw=1)
    axes.set(xlabel="predicted milliseconds a picture", ylabel=judge, xscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _spelt(value: Any) -> str:
    return ",".join(map(str, cast(Sequence[Any], value))) if isinstance(value, tuple | list) else str(value)
