"""A time that a picture may take: the best schedule that a search has found for it, a guess, or a refusal."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lssgen.bench.idle import IdleBackend
from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.plan import main as plan_main
from lssgen.commands.run import main as run_main
from lssgen.engines.registry import open_backend
from lssgen.errors import PlanError
from lssgen.measured import Guarantee, Measured, Ratio, place_of, write_measured
from lssgen.plan import Plan
from lssgen.plan.budget import Budget
from lssgen.plan.timing import Line, TimeCosts, predicted_ms
from lssgen.runtime import Pipeline
from lssgen.runtime.pipeline import MOST_NOTES
from lssgen.schedules import SCHEDULES, Search, Tried, read_searches, write_search

FREE = Line(fixed=0.0, per=(0.0,))
COSTS = TimeCosts(run=0.0, step=Line(fixed=0.0, per=(1e9, 0.0)), stage=FREE, transition=FREE, decode=FREE)
"""A machine on which a step takes a millisecond a latent cell and branch: 64 px in one stage take 6 x 2 x 64 = 768."""

SINGLE_MS = 768.0
RUN: dict[str, Any] = {"scaling_space": "latent"}


def tried(quality: float, **words: Any) -> Tried:
    all_words = {"start_sigma": 0.75, "num_inference_steps": 6, "cached_steps": "off", **words}
    return Tried(words=all_words, steps=(), quality=quality, ms=0.0)


SEARCH = Search(
    height=64,
    width=64,
    written="now",
    judge="score",
    prompts=8,
    axes=("start_sigma", "num_inference_steps", "cached_steps"),
    tried=(
        tried(1.0, start_sigma=1.0),
        tried(0.9, start_sigma=1.0, num_inference_steps=4),
        tried(0.95, start_sigma=0.5, num_inference_steps=4),
        tried(0.3, start_sigma=0.5, num_inference_steps=5),
        tried(0.2, start_sigma=0.5, num_inference_steps=2),
    ),
)


@pytest.fixture
def bundle(toy: Path, tmp_path: Path) -> Bundle:
    """A bundle that was measured on an engine that does nothing."""
    made = read_bundle(shutil.copytree(toy, tmp_path / "toy"))
    measure(made)
    return made


def measure(bundle: Bundle, *guarantees: Guarantee) -> None:
    place = place_of("idle", IdleBackend().describe())
    write_measured(bundle, place, Measured(written="now", costs=COSTS, guarantees=guarantees))


def planned(bundle: Bundle, **asked: Any) -> Plan:
    with Pipeline(bundle, IdleBackend()) as pipeline:
        return pipeline.plan(**RUN, **asked)


def ms(bundle: Bundle, plan: Plan) -> float:
    return predicted_ms(plan, bundle.manifest.facts, COSTS)


def test_the_best_schedule_that_fits_is_chosen_and_not_the_slowest(bundle: Bundle) -> None:
    write_search(bundle, SEARCH)
    plan = planned(bundle, budget_ms=500)
    assert [len(stage.steps) for stage in plan.stages] == [4, 2]  # 0.95, though the one of 0.3 takes longer
    assert ms(bundle, plan) <= 500
    assert planned(bundle, speedup=SINGLE_MS / 500) == plan
    assert planned(bundle, budget_ms=10_000) == planned(bundle)  # as asked, if it fits


def test_a_search_is_heeded_when_pictures_are_painted(bundle: Bundle) -> None:
    write_search(bundle, SEARCH)
    with Pipeline(bundle, IdleBackend()) as pipeline:
        result = pipeline("a", budget_ms=500, **RUN)
    assert result.plan == planned(bundle, budget_ms=500)
    assert result.request.plan_options.num_inference_steps == 4  # what run.json says, to paint it again


def test_words_that_the_caller_said_stay_in_a_budget(bundle: Bundle) -> None:
    write_search(bundle, SEARCH)
    plan = planned(bundle, budget_ms=600, start_sigma=1.0)
    assert [len(stage.steps) for stage in plan.stages] == [4]
    with pytest.raises(PlanError, match=r"the fastest schedule takes 768 ms here"):
        planned(bundle, budget_ms=100, start_sigma=1.0, num_inference_steps=6)


@pytest.mark.parametrize("asked", [{"budget_ms": 20}, {"speedup": 40}, {"budget_ms": 900, "speedup": 40}])
def test_a_budget_that_nobody_can_meet_is_refused_with_the_fastest(bundle: Bundle, asked: dict[str, Any]) -> None:
    write_search(bundle, SEARCH)
    with pytest.raises(PlanError, match=r"in (20|19) ms .*, but the fastest schedule takes 320 ms"):
        planned(bundle, **asked)
    fastest = ms(bundle, planned(bundle, start_sigma=0.5, num_inference_steps=2))
    assert ms(bundle, planned(bundle, budget_ms=fastest * 1.001)) == fastest


def test_without_a_search_a_schedule_is_guessed_and_the_search_named(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lssgen"):
        plan = planned(bundle, budget_ms=500)
    assert 250 < ms(bundle, plan) <= 500
    assert "a guess of unknown quality; run: lssgen calibrate schedule" in caplog.text
    assert "--size 64x64" in caplog.text
    write_search(bundle, SEARCH)
    caplog.clear()
    planned(bundle, budget_ms=500)
    assert "guess" not in caplog.text
    assert planned(bundle, budget_ms=1_500, height=128, width=128)  # another size was not searched
    assert "--size 128x128" in caplog.text


def test_without_measured_times_a_budget_is_refused_with_what_to_run(toy: Path) -> None:
    with pytest.raises(
        PlanError, match=r"needs the times of steps, .* has none of idle .*; run: lssgen bench guarantee"
    ):
        planned(read_bundle(toy), budget_ms=500)


def test_a_budget_never_chooses_stages_where_one_stage_was_measured_to_be_faster(bundle: Bundle) -> None:
    write_search(bundle, SEARCH)
    slower = Guarantee(width=64, height=64, staged_over_single=Ratio(ratio=1.3, lower=1.2, upper=1.4, pairs=12))
    measure(bundle, slower)
    assert len(planned(bundle, budget_ms=600).stages) == 1
    with pytest.raises(PlanError, match=r"the fastest schedule takes 512 ms"):
        planned(bundle, budget_ms=400)
    assert len(planned(bundle, budget_ms=400, start_sigma=0.5).stages) == 2  # who asks is heard


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9, "manifest_sha256": "x"}'])
def test_a_damaged_file_of_schedules_is_none(bundle: Bundle, text: str) -> None:
    (bundle.folder / SCHEDULES).write_text(text)
    assert read_searches(bundle) == ()
    assert planned(bundle, budget_ms=500)


def test_a_schedule_that_cannot_be_planned_any_more_is_passed_over(bundle: Bundle) -> None:
    impossible = tried(5.0, start_sigma=0.5, num_inference_steps=4, stage_steps=[1, 2, 3])
    write_search(bundle, msgspec.structs.replace(SEARCH, tried=(*SEARCH.tried, impossible)))
    assert [len(stage.steps) for stage in planned(bundle, budget_ms=500).stages] == [4, 2]


@pytest.mark.parametrize("words", [{"budget_ms": 0}, {"speedup": 0.5}, {"budget_ms": float("nan")}, {"speedup": "x"}])
def test_a_budget_that_is_no_time_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"(budget_ms|speedup) is .*; it must be"):
        Budget(**words)


def test_the_plan_command_goes_by_the_place_that_was_measured(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    write_search(bundle, SEARCH)
    flags = ["--bundle", str(bundle.folder), "--scaling-space", "latent", "--json"]
    assert plan_main([*flags, "--budget-ms", "500"]) == 0
    said = capsys.readouterr()
    assert [len(stage["steps"]) for stage in json.loads(said.out)["plan"]["stages"]] == [4, 2]
    assert "predicted" in said.err
    assert "quality 0.95" in said.err
    write_measured(bundle, "another engine", Measured(written="now", costs=COSTS))
    assert plan_main([*flags, "--budget-ms", "500"]) == 1
    assert "2 places of measured times fit; say with --place which of: idle" in capsys.readouterr().err
    assert plan_main([*flags, "--speedup", "1.5", "--place", "another"]) == 0
    capsys.readouterr()
    assert plan_main(["--model", "sd3", "--speedup", "2"]) == 1
    assert "which a bundle has; give --bundle" in capsys.readouterr().err


def test_the_run_command_says_what_to_measure(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a.png"
    flags = ["--bundle", str(toy), "--scaling-space", "latent", "--engine", "onnxruntime", "-o", str(output)]
    assert run_main(["a", "--budget-ms", "500", *flags]) == 1
    assert "run: lssgen bench guarantee" in capsys.readouterr().err
    assert not output.exists()


def test_the_run_command_paints_the_schedule_that_fits_and_records_it(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = place_of("onnxruntime", open_backend("onnxruntime", threads=1).describe())
    write_measured(bundle, here, Measured(written="now", costs=COSTS))
    write_search(bundle, SEARCH)
    output = tmp_path / "a.png"
    flags = ["--scaling-space", "latent", "--engine", "onnxruntime", "--threads", "1", "-o", str(output)]
    assert run_main(["a", "--bundle", str(bundle.folder), "--budget-ms", "500", *flags]) == 0
    assert capsys.readouterr().err.count("quality 0.95") == 1
    said = json.loads((tmp_path / "a.run.json").read_text())
    assert said["configuration"]["num_inference_steps"] == 4
    assert [len(stage["steps"]) for stage in said["plan"]["stages"]] == [4, 2]


def test_a_pipeline_forgets_what_it_has_said_before_that_fills_the_memory(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    write_search(bundle, SEARCH)
    with Pipeline(bundle, IdleBackend()) as pipeline, caplog.at_level(logging.INFO, "lssgen"):
        for _ in range(2):
            pipeline.plan(budget_ms=500, **RUN)
        assert caplog.text.count("budget_ms 500: ") == 1
        for index in range(MOST_NOTES):
            pipeline._tell(logging.DEBUG, f"note {index}")
        pipeline.plan(budget_ms=500, **RUN)
        assert caplog.text.count("budget_ms 500: ") == 2


def outrun_at_64(bundle: Bundle, engine: str = "onnxruntime") -> None:
    """The engine of this machine, slower than its reference and in stages slower than in one."""
    slower = Ratio(ratio=1.3, lower=1.2, upper=1.4, pairs=12)
    known = Guarantee(
        width=64, height=64, staged_over_single=slower, engine_over_reference=slower, reference="another"
    )  # fmt: skip
    here = place_of(engine, open_backend(engine, threads=1).describe())
    write_measured(bundle, here, Measured(written="now", costs=COSTS, guarantees=(known,)))


@pytest.mark.parametrize("words", [[], ["--budget-ms", "600"], ["--plan-only"], ["--budget-ms", "600", "--plan-only"]])
def test_the_run_command_says_a_note_once_and_plans_what_it_paints(
    bundle: Bundle, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outrun_at_64(bundle)
    write_search(bundle, SEARCH)
    flags = ["--bundle", str(bundle.folder), "--scaling-space", "latent", "--engine", "onnxruntime", "--threads", "1"]
    assert run_main(["a", *flags, "-o", str(tmp_path / "a.png"), *words]) == 0
    said = capsys.readouterr()
    assert said.err.count("this engine was measured to be slower") == 1
    assert said.err.count("one stage: at 64 x 64 px it was measured to be faster") == 1
    if "--plan-only" in words:
        assert "start_sigma 1, " in said.out
    else:
        assert len(json.loads((tmp_path / "a.run.json").read_text())["plan"]["stages"]) == 1


def test_a_prompt_file_says_a_note_once_and_not_for_every_prompt(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outrun_at_64(bundle)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    flags = ["--bundle", str(bundle.folder), "--scaling-space", "latent", "--engine", "onnxruntime", "--threads", "1"]
    assert run_main(["--prompts", str(tmp_path / "p.jsonl"), "--outdir", str(tmp_path / "out"), *flags]) == 0
    assert capsys.readouterr().err.count("this engine was measured to be slower") == 1
