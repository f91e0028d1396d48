"""The search for schedules: what it tries, what it leaves behind, and how it goes on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lssgen.bundle import Bundle, read_bundle
from lssgen.calibration.axes import AXES, Axis, Table
from lssgen.calibration.judges import JUDGES, Judge, judge_of
from lssgen.calibration.schedules import SearchJob, best_of, markdown, search_schedules, write_plot
from lssgen.commands.calibrate import main
from lssgen.engines.base import Backend
from lssgen.engines.registry import open_backend
from lssgen.errors import CalibrationError
from lssgen.measured import Measured, place_of, write_measured
from lssgen.plan import make_plan
from lssgen.plan.timing import Line, TimeCosts, predicted_ms
from lssgen.runtime.options import Options
from lssgen.schedules import SCHEDULES, front, read_searches

FREE = Line(fixed=0.0, per=(0.0,))
COSTS = TimeCosts(run=1.0, step=Line(fixed=0.0, per=(1e9, 0.0)), stage=FREE, transition=FREE, decode=FREE)
"""A machine on which a step takes a millisecond a latent cell and branch."""

FIXED = Options(scaling_space="latent", num_inference_steps=8)


def evaluations(_: str, picture: Image.Image, wanted: Image.Image) -> float:
    """A judge that sees how alike two pictures are."""
    return -float(np.abs(np.asarray(picture, float) - np.asarray(wanted, float)).mean())


ALIKE = Judge(name="alike", judge=evaluations, compares=True)


@pytest.fixture
def backend() -> Backend:
    return open_backend("onnxruntime", threads=1)


@pytest.fixture
def bundle(toy: Path, tmp_path: Path, backend: Backend) -> Bundle:
    made = read_bundle(shutil.copytree(toy, tmp_path / "toy"))
    write_measured(made, place_of(backend.name, backend.describe()), Measured(written="now", costs=COSTS))
    return made


@pytest.fixture
def job(bundle: Bundle, backend: Backend, tmp_path: Path) -> SearchJob:
    return SearchJob(
        bundle=bundle,
        backend=backend,
        prompts=("a red", "a blue"),
        judge=ALIKE,
        output=tmp_path / "found.jsonl",
        tries=12,
        options=FIXED,
    )


def test_a_search_begins_with_one_stage_and_the_run_as_it_is_and_finds_faster_ones(job: SearchJob) -> None:
    found = search_schedules(job)
    facts = job.bundle.manifest.facts
    assert len(found) == 12
    single, staged = found[:2]
    assert single.tried.steps == (8,)
    assert single.tried.quality == 0  # it is what all are compared with
    assert single.tried.words["start_sigma"] == 1
    assert len(staged.tried.steps) == 2
    best = best_of(found)
    assert best[-1] is single
    assert best[0].predicted_ms < single.predicted_ms
    assert all(one.predicted_ms <= single.predicted_ms for one in found)
    plan = Table(job.bundle, job.options).run(found[3].point)
    assert plan is not None
    assert found[3].predicted_ms == predicted_ms(plan[1].plan, facts, COSTS)


def test_what_was_found_is_in_the_bundle_and_in_the_table_and_the_plot(job: SearchJob, tmp_path: Path) -> None:
    found = search_schedules(job)
    (search,) = read_searches(job.bundle)
    assert (search.height, search.width, search.judge, search.prompts) == (64, 64, "alike", 2)
    assert [one.quality for one in search.tried] == [one.tried.quality for one in found]
    assert set(search.axes) == {axis.word for axis in AXES} - set(FIXED)
    assert markdown(found, "alike").count("\n") == 1 + len(best_of(found))
    write_plot(found, "alike", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    search_schedules(replace(job, output=tmp_path / "again.jsonl", tries=2))
    assert len(read_searches(job.bundle)[0].tried) == 2  # of one size, the last search counts


class StopError(Exception):
    """What a user's Ctrl-C is, for a test."""


def stopping(after: int) -> Callable[[str, Image.Image, Image.Image], float]:
    """A judge that is stopped after so many pictures."""
    left = [after]

    def judge(*given: Any) -> float:
        if not left[0]:
            raise StopError
        left[0] -= 1
        return evaluations(*given)

    return judge


@pytest.mark.parametrize("torn", [b"", b'{"words": {"start_si'])
def test_a_search_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(job: SearchJob, torn: bytes) -> None:
    whole = search_schedules(replace(job, output=job.output.with_name("whole.jsonl")))
    (job.bundle.folder / SCHEDULES).unlink()
    with pytest.raises(StopError):
        search_schedules(replace(job, judge=replace(ALIKE, judge=stopping(9))))
    assert read_searches(job.bundle) == ()
    lines = job.output.read_bytes()
    assert lines.count(b"\n") == 1 + 4
    job.output.write_bytes(lines + torn)  # a kill in the middle of a line
    counted = [0]

    def counting(*given: Any) -> float:
        counted[0] += 1
        return evaluations(*given)

    again = search_schedules(replace(job, judge=replace(ALIKE, judge=counting)))
    assert [(one.point, one.tried.quality) for one in again] == [(one.point, one.tried.quality) for one in whole]
    assert counted[0] == 2 * (12 - 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ("a red",)}, "another set of prompts"),
        ({"seed": 1}, "another seed"),
        ({"options": Options(**{**FIXED, "guidance_scale": 1.0})}, "another kind of run"),
        ({"judge": replace(ALIKE, name="other")}, "another judge"),
    ],
)
def test_results_of_another_search_are_not_mixed_in(job: SearchJob, change: dict[str, Any], said: str) -> None:
    search_schedules(replace(job, tries=2))
    with pytest.raises(CalibrationError, match=f"holds results of {said}; choose another --output"):
        search_schedules(replace(job, **change))


def test_results_of_another_bundle_are_refused_and_those_in_a_changed_bundle_forgotten(job: SearchJob) -> None:
    search_schedules(replace(job, tries=2))
    manifest = job.bundle.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"toy"', '"toi"'))
    changed = read_bundle(job.bundle.folder)
    assert read_searches(changed) == ()
    place = place_of(job.backend.name, job.backend.describe())
    write_measured(changed, place, Measured(written="now", costs=COSTS))
    with pytest.raises(CalibrationError, match="holds results of another bundle"):
        search_schedules(replace(job, bundle=changed))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: [lines[0], b"{", *lines[1:]], "line 2 of .* is damaged: it is not what it should be"),
        (lambda lines: [lines[0], lines[1].replace(b'"quality":[', b'"quality":[1,')], "line 2 .* has 3 pictures"),
        (lambda lines: [b"[]", *lines[1:]], "line 1 of .* is damaged"),
        (lambda _: [], "holds no search; remove it"),
    ],
)
def test_a_damaged_file_of_results_is_refused_by_its_line(
    job: SearchJob, damage: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    search_schedules(replace(job, tries=2))
    lines = damage(job.output.read_bytes().splitlines())
    job.output.write_bytes(b"".join(line + b"\n" for line in lines))
    before = job.output.read_bytes()
    with pytest.raises(CalibrationError, match=said):
        search_schedules(job)
    assert job.output.read_bytes() == before


def test_a_bundle_without_measured_times_is_told_what_to_run(toy: Path, job: SearchJob) -> None:
    with pytest.raises(CalibrationError, match=r"has no measured times of onnxruntime .*; run: lssgen bench guarantee"):
        search_schedules(replace(job, bundle=read_bundle(toy)))


def test_an_axis_is_a_line_of_the_table(job: SearchJob) -> None:
    axes = (*AXES, Axis("solver", lambda *_: ("own", "dpm++2m")))
    found = search_schedules(replace(job, axes=axes, tries=3))
    assert all(one.tried.words["solver"] in ("own", "dpm++2m") for one in found)
    assert len(found[0].point) == len(found[0].tried.words) == len(AXES) - len(FIXED) + 1


def test_every_point_of_the_table_is_a_run_or_none(bundle: Bundle) -> None:
    table = Table(bundle, Options(scaling_space="latent", num_inference_steps=4, solver="heun"))
    points = [point for start in table.starts for near in table.neighbours(start) for point in table.neighbours(near)]
    made = [table.run(point) for point in points]
    assert None in made  # Heun takes no mask
    for words, run in filter(None, made):
        assert set(words) == set(table.words)
        assert make_plan(bundle.manifest.facts, run.plan_options) == run.plan


def test_equal_pictures_have_the_highest_likeness_and_others_a_finite_one() -> None:
    black, grey = (Image.new("RGB", (8, 8), colour) for colour in ("black", (16, 16, 16)))
    psnr = JUDGES["psnr"].judge
    assert psnr("", black, black) == 100
    assert psnr("", black, grey) == pytest.approx(20 * np.log10(255 / 16))


@pytest.mark.parametrize("name", ["ssim", "nothing:here", "json:nothing", ":", "a:"])
def test_a_judge_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(CalibrationError, match="give psnr, or MODULE:FUNCTION"):
        judge_of(name)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    found = front(points, lambda one: one[0], lambda one: one[1])
    for one in points:
        beaten = any(o[0] <= one[0] and o[1] >= one[1] and o != one for o in points)
        assert (one in found) or beaten
    assert found == sorted(found)
    assert [quality for _, quality in found] == sorted({quality for _, quality in found})


def test_the_command_searches_writes_and_says_where(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--limit", "1", "--tries", "3", "--threads", "1", "--scaling-space", "latent", "--steps", "4"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red\na blue\n")
    assert main(["schedule", str(bundle.folder), "--prompts", str(prompts), *flags]) == 0
    said = capsys.readouterr().out
    assert "| evaluations | predicted ms | quality (psnr, dB) |" in said
    assert (tmp_path / "toy.schedules.jsonl").read_bytes().count(b"\n") == 4
    assert (tmp_path / "toy.schedules.png").exists()
    assert len(read_searches(bundle)[0].tried) == 3
    assert main(["schedule", str(bundle.folder), "--prompts", str(prompts), *flags, "--judge", "beauty"]) == 1
    assert "judge 'beauty' is not known" in capsys.readouterr().err
