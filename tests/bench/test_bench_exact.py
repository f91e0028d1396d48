"""The gate without a clock: our own baselines, and what it says of a change."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lssgen.bench.exact import (
    Baseline,
    baseline_of_bundle,
    baseline_of_plan,
    changes,
    not_compared,
    plan_lines,
    read_baseline,
    write_baseline,
)
from lssgen.bundle import Bundle
from lssgen.errors import BenchError, MismatchError
from lssgen.models.aliases import ALIASES
from lssgen.plan import PlanOptions, make_plan

BASELINES = Path(__file__).parents[2] / "benchmarks" / "baselines"
UPDATE = "python -m benchmarks.baselines.make"


def plan_of(alias: str) -> Baseline:
    facts = ALIASES[alias].facts()
    return baseline_of_plan(make_plan(facts, PlanOptions.from_defaults(facts.defaults)), facts)


@pytest.mark.parametrize("alias", ALIASES)
def test_every_published_models_run_asks_for_what_it_did(alias: str) -> None:
    found = changes(plan_of(alias), read_baseline(BASELINES / "plans" / f"{alias}.json"))
    assert not found, f"{found}; if that is meant: {UPDATE}"


def test_a_baseline_belongs_to_a_model_that_there_is() -> None:
    assert {path.stem for path in (BASELINES / "plans").glob("*.json")} == set(ALIASES)


@pytest.mark.parametrize("name", ["staged", "one-stage", "batch-8"])
def test_the_demo_models_run_asks_for_what_it_did(demo: Bundle, name: str) -> None:
    options: dict[str, Any] = {
        "staged": {},
        "one-stage": {"start_sigma": 1.0},
        "batch-8": {"batch": 8, "num_images": 8},
    }[name]
    now = msgspec.structs.replace(baseline_of_bundle(demo, options), ratios={})  # no timing in tests
    before = msgspec.structs.replace(read_baseline(BASELINES / "demo" / f"{name}.json"), ratios={})
    found = changes(now, before)
    assert not found, f"{found}; if that is meant: {UPDATE}"


def test_a_run_calls_the_network_once_a_step_and_later_runs_make_no_buffers_but_the_texts(demo: Bundle) -> None:
    lines = baseline_of_bundle(demo, {"num_inference_steps": 7}).exact
    steps = sum(value for name, value in lines.items() if name.endswith("network calls"))  # type: ignore[misc]
    calls = sum(value for name, value in lines.items() if name.startswith("later runs: calls of step"))  # type: ignore[misc]
    assert steps == calls > 0
    text_ports = demo.manifest.graphs["text"]
    assert lines["later runs: allocations"] == len(text_ports.inputs) + len(text_ports.outputs)


def test_each_line_that_changes_is_named_with_both_values() -> None:
    before = plan_of("sd3")
    facts = ALIASES["sd3"].facts()
    options = replace(PlanOptions.from_defaults(facts.defaults), num_inference_steps=9)
    now = baseline_of_plan(make_plan(facts, options), facts)
    found = changes(now, before)
    assert any("stage 1 network calls was" in line and "and is 9" in line for line in found)


def test_a_ratio_may_move_a_little_and_not_much() -> None:
    before = Baseline(name="x", exact={}, ratios={"host": 2.0})
    assert not changes(Baseline(name="x", exact={}, ratios={"host": 2.9}), before)
    (line,) = changes(Baseline(name="x", exact={}, ratios={"host": 3.1}), before)
    assert line == "host was 2 and is 3.1, more than 1.5 times as much"


def test_what_depends_on_versions_is_compared_under_the_same_versions_only() -> None:
    before = Baseline(name="x", exact={}, host={"calls": 1}, conditions={"python": "3.11"})
    now = Baseline(name="x", exact={}, host={"calls": 2}, conditions={"python": "3.12"})
    assert not changes(now, before)
    assert changes(msgspec.structs.replace(now, conditions={"python": "3.11"}), before) == ["calls was 1 and is 2"]


def test_instructions_may_move_by_two_percent_where_both_machines_count_them() -> None:
    before = Baseline(name="x", exact={}, instructions=1_000_000)
    assert not changes(msgspec.structs.replace(before, instructions=1_019_000), before)
    (line,) = changes(msgspec.structs.replace(before, instructions=1_021_000), before)
    assert line == "instructions of a run were 1000000 and are 1021000"
    assert not changes(msgspec.structs.replace(before, instructions=None), before)


def test_a_passed_gate_says_what_it_has_not_compared() -> None:
    before = Baseline(name="x", exact={}, host={"calls": 1}, conditions={"python": "3.11"}, instructions=5)
    assert not not_compared(before, before)
    (said,) = not_compared(msgspec.structs.replace(before, conditions={"python": "3.12"}), before)
    assert said.endswith("they are those of python 3.11, and this is python 3.12")
    (said,) = not_compared(msgspec.structs.replace(before, instructions=None), before)
    assert said == "instructions are not compared: this machine does not count them"
    (said,) = not_compared(before, msgspec.structs.replace(before, instructions=None))
    assert said == "instructions are not compared: the baseline was made where they are not counted"
    (said,) = not_compared(msgspec.structs.replace(before, ratios={"host": 1.0}), before)
    assert said == "host is not compared: the baseline has none"
    (said,) = changes(before, msgspec.structs.replace(before, ratios={"host": 1.0}))
    assert said == "host was 1 and is not there"


def test_the_baseline_of_another_bundle_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"baseline is of a .* and this is b .*--update"):
        changes(Baseline(name="b", exact={}), Baseline(name="a", exact={}))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ('{"format": 1, "name": 3}', BenchError, "is damaged"),
        ("{", BenchError, "is damaged"),
        ('{"format": 99}', MismatchError, "has format 99"),
    ],
)
def test_a_baseline_that_cannot_be_read_is_told(tmp_path: Path, text: str, error: type, said: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(error, match=said):
        read_baseline(tmp_path / "b.json")
    with pytest.raises(BenchError, match="make it with --update"):
        read_baseline(tmp_path / "none.json")


def test_a_baseline_comes_back_as_it_was_and_has_a_line_a_number(tmp_path: Path) -> None:
    baseline = plan_of("flux-dev" if "flux-dev" in ALIASES else next(iter(ALIASES)))
    write_baseline(baseline, tmp_path / "b.json")
    assert read_baseline(tmp_path / "b.json") == baseline
    assert len((tmp_path / "b.json").read_text().splitlines()) >= len(baseline.exact)


def test_arithmetic_of_a_plan_counts_every_branch() -> None:
    facts = ALIASES["sd3"].facts()
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults))
    lines = plan_lines(plan, facts)
    assert lines["stage 1 network passes"] == 2 * int(lines["stage 1 network calls"])
    assert json.dumps(lines)
