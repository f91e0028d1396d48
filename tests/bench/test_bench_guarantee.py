"""Which way is faster, per size, and what it is to cost: written beside the bundle, and heeded."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from lssgen.bench.cases import Case, Effort
from lssgen.bench.guarantee import costs_of, guarantee, measured_now
from lssgen.bench.idle import IdleBackend, IdleEngines
from lssgen.bench.measure import measure
from lssgen.bundle import Bundle, read_bundle
from lssgen.commands.bench import main
from lssgen.commands.bench.guarantee import _other_ways, better_costs
from lssgen.commands.plan import as_measured
from lssgen.commands.plan import main as plan_main
from lssgen.engines.base import Binding
from lssgen.engines.demand import Demand
from lssgen.engines.registry import ENGINES, Place
from lssgen.errors import BenchError, PlanError
from lssgen.measured import (
    MEASURED,
    Guarantee,
    Measured,
    Ratio,
    fault_of,
    place_of,
    read_measured,
    write_measured,
)
from lssgen.plan import ModelFacts, PlanOptions, make_plan, predicted_speedup
from lssgen.plan.timing import Line, TimeCosts, predicted_ms, predicted_time_ratio
from lssgen.runtime import Pipeline


@pytest.fixture
def bundle(toy: Path, tmp_path: Path) -> Bundle:
    return read_bundle(shutil.copytree(toy, tmp_path / "toy"))


def about(ratio: float) -> Ratio:
    return Ratio(ratio=ratio, lower=ratio - 0.05, upper=ratio + 0.05, pairs=12)


def found(staged_over_single: float, engine_over_reference: float | None = None) -> Guarantee:
    engine = None if engine_over_reference is None else about(engine_over_reference)
    return Guarantee(
        width=64, height=64, staged_over_single=about(staged_over_single), engine_over_reference=engine,
        reference="onnxruntime" if engine else "",
    )  # fmt: skip


def place(backend: IdleBackend) -> str:
    return place_of(backend.name, backend.describe())


@pytest.mark.parametrize(("ratio", "stages"), [(0.8, 2), (1.0, 2), (1.3, 1)])
def test_the_planner_uses_one_stage_where_stages_were_measured_to_be_slower(
    bundle: Bundle, ratio: float, stages: int, caplog: pytest.LogCaptureFixture
) -> None:
    backend = IdleBackend()
    write_measured(bundle, place(backend), measured_now(None, 0, [found(ratio)]))
    with caplog.at_level(logging.INFO, "lssgen"), Pipeline(bundle, backend) as pipeline:
        assert len(pipeline("a", scaling_space="latent").plan.stages) == stages
        assert len(pipeline("a", scaling_space="latent", start_sigma=0.5).plan.stages) == 2  # who asks is heard
        assert len(pipeline.plan(scaling_space="latent", height=128, width=128).stages) > 1  # another size
    assert ("one stage: at 64 x 64 px it was measured to be faster" in caplog.text) == (stages == 1)


@pytest.mark.parametrize(("ratio", "said"), [(None, False), (0.5, False), (1.0, False), (1.2, True)])
def test_a_run_says_that_the_reference_was_measured_to_be_faster_than_its_engine(
    bundle: Bundle, ratio: float | None, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    backend = IdleBackend()
    write_measured(bundle, place(backend), measured_now(None, 0, [found(0.8, ratio)]))
    with caplog.at_level(logging.INFO, "lssgen"), Pipeline(bundle, backend) as pipeline:
        assert len(pipeline("a", scaling_space="latent", start_sigma=0.5).plan.stages) == 2
    assert ("slower on this machine than onnxruntime (it took 1.20 times as long)" in caplog.text) == said


def test_a_plan_says_what_was_measured_of_its_size(bundle: Bundle) -> None:
    write_measured(bundle, "here", measured_now(None, 0, [found(1.3, 1.2)]))
    options = PlanOptions.from_defaults(bundle.manifest.facts.defaults, scaling_space="latent")
    assert as_measured(bundle, options, make_plan(bundle.manifest.facts, options)) == [
        "There, runs that name no start_sigma use one stage: stages take 1.30 (1.25 to 1.35)",
        "There, onnxruntime is faster: this engine takes 1.20 (1.15 to 1.25)",
    ]


def test_what_another_engine_machine_or_manifest_was_measured_to_do_is_not_heeded(bundle: Bundle) -> None:
    backend = IdleBackend()
    write_measured(bundle, place_of("onnxruntime", {"threads": 1}), measured_now(None, 0, [found(1.3)]))
    assert read_measured(bundle, place(backend)) is None
    write_measured(bundle, place(backend), measured_now(None, 0, [found(1.3)]))
    assert read_measured(bundle, place(backend)) is not None
    manifest = bundle.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("toy", "toi"))
    assert read_measured(bundle, place(backend)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 9, "manifest_sha256": "x"}'])
def test_a_damaged_file_of_measurements_is_none(bundle: Bundle, text: str) -> None:
    (bundle.folder / MEASURED).write_text(text)
    assert read_measured(bundle, place(IdleBackend())) is None
    write_measured(bundle, "here", measured_now(None, 0, []))
    assert read_measured(bundle, "here") is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-9], "is damaged: it is not what it should be"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "has format 1, and this lssgen reads format 2"),
        (lambda text: text.replace('"manifest_sha256": "', '"manifest_sha256": "0'), "before the bundle was exported"),
    ],
)
def test_a_plan_says_why_a_file_of_measurements_is_not_heeded(bundle: Bundle, change: Any, said: str) -> None:
    path = bundle.folder / MEASURED
    options = PlanOptions.from_defaults(bundle.manifest.facts.defaults, scaling_space="latent")
    plan = make_plan(bundle.manifest.facts, options)
    assert fault_of(bundle) == ""
    assert as_measured(bundle, options, plan) == []
    write_measured(bundle, "here", measured_now(None, 0, [found(0.8)]))
    assert fault_of(bundle) == ""
    path.write_text(change(path.read_text()))
    (line,) = as_measured(bundle, options, plan)
    assert said in line
    assert line.endswith(f"measure again with lssgen bench guarantee {bundle.folder}")


def test_a_place_is_an_engine_with_its_options_on_a_machine() -> None:
    plain = place_of("openvino", {"threads": 2, "inference_precision": "auto", "low_memory": False})
    assert plain.startswith("openvino with 2 threads on ")
    slower = place_of("openvino", {"threads": 2, "inference_precision": "fp32", "low_memory": True})
    assert slower.startswith("openvino with 2 threads, inference_precision fp32, low_memory True on ")
    assert place_of("tensorrt", {"device": "NVIDIA H100"}) == "tensorrt with all threads on NVIDIA H100"


def test_places_are_kept_beside_each_other(bundle: Bundle) -> None:
    write_measured(bundle, "a", measured_now(None, 0, [found(0.8)]))
    write_measured(bundle, "b", measured_now(None, 0, [found(1.2)]))
    first = read_measured(bundle, "a")
    assert first is not None
    assert first.guarantees[0].faster == "staged"


class SlowDecoder(IdleBackend):
    """Engines that do nothing, but for a decoder that takes its time."""

    def open(self, bundle: Bundle, demand: Demand) -> IdleEngines:
        del demand
        engines = super().open(bundle, Demand())
        engines["decode"].bind = lambda _: lambda: sleep(0.02)  # type: ignore[method-assign]
        return engines


def test_engine_and_reference_are_measured_in_turn_where_both_are_there(bundle: Bundle) -> None:
    asked = {
        "size": (64, 64),
        "options": {"scaling_space": "latent", "start_sigma": 0.75},
        "pairs": 6,
        "prompt": "a red",
    }
    with Pipeline(bundle, SlowDecoder()) as slow, Pipeline(bundle, IdleBackend()) as idle:
        behind = guarantee(slow, reference=idle, reference_name="idle", **asked)  # type: ignore[arg-type]
        ahead = guarantee(idle, reference=slow, reference_name="slow", **asked)  # type: ignore[arg-type]
        alone = guarantee(idle, **asked)  # type: ignore[arg-type]
    assert behind is not None
    assert ahead is not None
    assert alone is not None
    assert (behind.outrun, behind.reference, ahead.outrun) == (True, "idle", False)
    assert (alone.engine_over_reference, alone.reference, alone.outrun) == (None, "", False)


@pytest.mark.parametrize(("name", "entry"), ENGINES.items())
def test_every_engine_has_a_reference_of_its_kind_of_device_or_is_one(name: str, entry: Place) -> None:
    if entry.reference:
        assert ENGINES[entry.reference].reference == ""
        assert (name in ("auto", "openvino")) == (entry.reference == "onnxruntime")


class SlowTransition(IdleBackend):
    """Engines that do nothing, but for a transition that takes longer than all steps of a stage."""

    def open(self, bundle: Bundle, demand: Demand) -> IdleEngines:
        del demand
        engines = super().open(bundle, Demand())  # all graphs, so that a later demand finds this one

        def bind(buffers: object) -> Binding:
            del buffers
            return lambda: sleep(0.05)

        engines["transition_latent"].bind = bind  # type: ignore[method-assign]
        return engines


def test_both_ways_are_measured_in_turn_and_the_slower_is_known(bundle: Bundle) -> None:
    with Pipeline(bundle, SlowTransition()) as pipeline:
        slow = guarantee(pipeline, (64, 64), {"scaling_space": "latent", "start_sigma": 0.75}, pairs=6, prompt="a red")
    assert slow is not None
    assert slow.faster == "single"
    with Pipeline(bundle, IdleBackend()) as pipeline:
        assert guarantee(pipeline, (32, 32), {"scaling_space": "latent"}, pairs=6, prompt="a red") is None
        with pytest.raises(BenchError, match="5 pairs are too few for an interval; measure 6 or more"):
            guarantee(pipeline, (64, 64), {}, pairs=5)


def test_a_line_goes_through_exact_measurements_and_has_no_part_below_zero() -> None:
    sizes = [(1.0, 1.0), (4.0, 16.0), (16.0, 256.0)]
    line = Line.through(sizes, [2 + 3 * a + 0.1 * b for a, b in sizes])
    assert (line.fixed, *line.per) == pytest.approx((2, 3, 0.1))
    falling = Line.through([(1.0,), (2.0,)], [10.0, 5.0])
    assert min(falling.fixed, *falling.per) >= 0
    assert Line.through([(4.0, 16.0)], [8.0]).at(2.0, 4.0) == pytest.approx(4)
    with pytest.raises(PlanError, match="needs a measurement"):
        Line.through([], [])


def test_costs_predict_a_run_that_they_were_not_measured_at(demo: Bundle) -> None:
    """Of a machine that takes exactly what the costs say: the prediction is the sum of its parts."""
    facts: ModelFacts = demo.manifest.facts
    costs = TimeCosts(
        run=2.0, step=Line(fixed=1.0, per=(0.01, 0.02)), stage=Line(fixed=0.5, per=(0.0,)),
        transition=Line(fixed=1.0, per=(1.0,)), decode=Line(fixed=0.0, per=(5.0,)),
    )  # fmt: skip
    staged, single = (
        make_plan(facts, PlanOptions.from_defaults(facts.defaults, **more)) for more in ({}, {"start_sigma": 1.0})
    )
    assert predicted_time_ratio(staged, single, facts, costs) == pytest.approx(
        predicted_ms(single, facts, costs) / predicted_ms(staged, facts, costs)
    )
    free = TimeCosts(
        run=0.0,
        step=Line(fixed=0.0, per=(1.0, 1.0)),
        **dict.fromkeys(("stage", "transition", "decode"), Line(fixed=0.0, per=(0.0,))),
    )
    assert predicted_time_ratio(staged, single, facts, free) == pytest.approx(predicted_speedup(staged, facts))


def test_every_way_to_the_next_size_has_its_own_cost(demo: Bundle) -> None:
    facts = demo.manifest.facts
    free, dear = (Line(fixed=fixed, per=(0.0,)) for fixed in (0.0, 7.0))
    step = Line(fixed=0.0, per=(0.0, 0.0))
    costs = TimeCosts(run=0.0, step=step, stage=free, transition=free, decode=free, transitions={"pixel": dear})
    plans = [
        make_plan(facts, PlanOptions.from_defaults(facts.defaults, scaling_space=space))
        for space in ("latent", "pixel")
    ]
    assert [predicted_ms(plan, facts, costs) for plan in plans] == [0.0, 7.0]


def test_costs_come_from_measured_cases_and_survive_the_disk(bundle: Bundle) -> None:
    case = measure(bundle, IdleBackend, Case(name="x", options={"scaling_space": "latent"}), Effort(runs=3), prompt="a")
    costs = costs_of([case], bundle.manifest.facts, 2)
    assert costs.step.at(1.0, 0.0) > 0
    assert set(costs.transitions) == {"latent"}
    write_measured(bundle, "here", measured_now(costs, 1, []))
    known = read_measured(bundle, "here")
    assert isinstance(known, Measured)
    assert known.costs == costs
    with pytest.raises(BenchError, match="measure with --batches 1"):
        costs_of([], bundle.manifest.facts, 2)


def test_every_way_to_the_next_size_is_measured_where_there_are_stages(bundle: Bundle) -> None:
    graphs = bundle.manifest.graphs
    both = {**graphs, "transition_pixel": graphs["transition_latent"]}
    bundle = replace(bundle, manifest=replace(bundle.manifest, graphs=both))
    options = {"height": 64, "width": 64, "scaling_space": "latent", "start_sigma": 0.75}
    (other,) = _other_ways(bundle, Case(name="64x64", options=options))
    assert (other.name, other.options) == ("64x64, pixel", {**options, "scaling_space": "pixel"})
    assert _other_ways(bundle, Case(name="64x64", options={**options, "start_sigma": 1.0})) == []


def test_costs_of_few_sizes_do_not_take_the_place_of_those_of_more(bundle: Bundle) -> None:
    """One size cannot tell what is fixed from what grows; the first of several is one too, should the rest not come."""
    one, three = (
        TimeCosts(run=run, step=Line.through([(1.0, 1.0)], [1.0]), stage=LINE, transition=LINE, decode=LINE)
        for run in (1.0, 3.0)
    )
    known = measured_now(three, 3, [])
    assert better_costs(None, one, 1) == (one, 1)
    assert better_costs(known, one, 1) == (three, 3)
    assert better_costs(known, one, 3) == (one, 3)
    write_measured(bundle, "here", known)
    again = read_measured(bundle, "here")
    assert again is not None
    assert again.sizes == 3


LINE = Line(fixed=0.0, per=(0.0,))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (("costs", "step", "per"), [1.0]),
        (("costs", "decode", "per"), []),
        (("costs", "transitions"), {"resnet": {"fixed": 1.0, "per": []}}),
        (("costs", "stage", "fixed"), -1.0),
        (("costs", "run"), -1.0),
        (("guarantees", 0, "width"), 0),
        (("guarantees", 0, "staged_over_single", "lower"), -1.0),
    ],
)
def test_numbers_that_nobody_has_measured_are_damage(
    bundle: Bundle, part: tuple[Any, ...], value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that somebody has edited must neither be believed nor end a plan with a traceback."""
    costs = TimeCosts(run=1.0, step=Line.through([(1.0, 1.0)], [1.0]), stage=LINE, transition=LINE, decode=LINE)
    write_measured(bundle, "here", measured_now(costs, 1, [found(0.8)]))
    whole = json.loads((bundle.folder / MEASURED).read_text())
    inner = whole["places"]["here"]
    for name in part[:-1]:
        inner = inner[name]
    inner[part[-1]] = value
    (bundle.folder / MEASURED).write_text(json.dumps(whole))
    assert read_measured(bundle, "here") is None
    assert plan_main(["--bundle", str(bundle.folder), "--scaling-space", "latent"]) == 0
    assert "measured.json is damaged: it is not what it should be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "stage_steps=[3,4]"], "leave out --set stage_steps=...: it fixes the number of stages"),
        (["--set", "cached_steps=1,2"], "leave out --set cached_steps=...,...: with a part for every stage"),
        (["--set", "start_sigma=1.0"], "leave out --set start_sigma=...: at 1 there is one stage"),
        (["--set", "height=64"], "sizes are named with --sizes"),
        (["--set", "num_images=2"], "costs are those of one picture at a time"),
        (["--sizes", "64,8"], "8 x 8 px is below min_resolution"),
    ],
)
def test_options_that_leave_nothing_to_compare_are_refused_before_anything_is_measured(
    bundle: Bundle, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lssgen.commands.bench.guarantee.measure", lambda *_, **__: pytest.fail("it was measured"))
    flags = ["guarantee", str(bundle.folder), "--threads", "1", "--set", "scaling_space=latent", "--quiet"]
    assert main([*flags, *words]) == 1
    assert said in capsys.readouterr().err
    assert not (bundle.folder / MEASURED).exists()


def test_a_bundle_that_cannot_be_written_is_told_before_anything_is_measured(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lssgen.commands.bench.guarantee.measure", lambda *_, **__: pytest.fail("it was measured"))

    def refuse(folder: Path) -> None:
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr("lssgen.bench.records.check_writable", refuse)
    assert main(["guarantee", str(bundle.folder), "--threads", "1", "--quiet"]) == 1
    assert "measured.json cannot be written: Read-only file system" in capsys.readouterr().err
