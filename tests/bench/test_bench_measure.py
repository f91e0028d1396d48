"""What a measurement says: counts, components, the device's own time, and what it refuses to say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lssgen.bench import plots
from lssgen.bench.cases import Case, Effort, Grid, cases_of, wordings
from lssgen.bench.clocks import Pace
from lssgen.bench.environment import Environment, differences, environment
from lssgen.bench.idle import IdleBackend, IdleEngines
from lssgen.bench.measure import measure, measure_all
from lssgen.bench.meter import Call, Meter, MeteredBackend
from lssgen.bench.results import BenchResult, CaseResult, read_result, write_result
from lssgen.bench.summary import summarised
from lssgen.bench.tables import as_table, conditions
from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.base import Binding, Buffer
from lssgen.engines.demand import Demand
from lssgen.errors import BenchError
from lssgen.runtime import Pipeline

LATENT: Mapping[str, Any] = {"scaling_space": "latent"}


@pytest.fixture(scope="module")
def bundle(toy: Path) -> Bundle:
    return read_bundle(toy)


@pytest.fixture(scope="module")
def result(bundle: Bundle) -> CaseResult:
    return measure(
        bundle, IdleBackend, Case(name="toy", options=LATENT), Effort(runs=12, warmup=1), prompt="a red circle"
    )


def whole(case: CaseResult) -> BenchResult:
    return BenchResult(
        bundle={"name": "toy", "manifest_sha256": "0"}, engine="idle", prompt="a red circle",
        environment=environment({}), cases=(case,),
    )  # fmt: skip


class Clock:
    """A device that works behind the host's back: launches return at once, and every call takes a second there."""

    def __init__(self) -> None:
        self.device = 0.0


class LateMark:
    def __init__(self, at: float) -> None:
        self._at = at

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: "LateMark") -> float:
        return self._at - earlier._at


class LateBackend(IdleBackend):
    """Asynchronous: the host never waits, the device's own clock goes on by a second a call."""

    def __init__(self) -> None:
        self.clock = Clock()

    def mark(self) -> Any:
        return LateMark(self.clock.device)

    def open(self, bundle: Bundle, demand: Any) -> Any:
        engines, clock = super().open(bundle, demand), self.clock

        class Late:
            def __init__(self, engine: Any) -> None:
                self.name, self.inputs, self.outputs = engine.name, engine.inputs, engine.outputs

            def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
                del buffers

                def run() -> None:
                    clock.device += 1.0

                return run

        known = {name: Late(engines[name]) for name in demand.graphs}

        class All:
            __getitem__ = staticmethod(known.__getitem__)
            require, close = staticmethod(engines.require), staticmethod(engines.close)

        return All()


def test_a_case_has_its_stages_steps_and_components(bundle: Bundle, result: CaseResult) -> None:
    with Pipeline(bundle, IdleBackend()) as pipeline:
        plan = pipeline.plan(scaling_space="latent")
    assert [(stage.width_px, stage.steps) for stage in result.stages] == [
        (stage.width * plan.cell_px, len(stage.steps)) for stage in plan.stages
    ]
    assert result.stages[0].transition_ms is None
    assert result.stages[1].transition_ms is not None
    parts = result.text_ms.p50 + result.decode_ms.p50 + sum(stage.stage_ms.p50 for stage in result.stages)
    assert 0 < parts <= 1.2 * result.request_latency_ms.p50  # medians of parts need not add up to the whole's
    assert result.time_to_first_image_ms >= result.load_ms
    assert result.time_to_first_preview_ms is not None
    assert len(result.latencies_ms) == 12


def test_times_of_a_device_that_works_alone_are_the_devices_and_not_those_of_a_launch(bundle: Bundle) -> None:
    found = measure(
        bundle, LateBackend, Case(name="late", options=LATENT), Effort(runs=3, warmup=1), prompt="a red circle"
    )
    steps = sum(stage.steps for stage in found.stages)
    assert found.gpu_compute_ms.p50 == pytest.approx(1e3 * (steps + 3))  # text, transition and decode
    assert found.stages[0].step_ms.p50 == pytest.approx(1e3)
    assert found.enqueue_ms.p50 < 1e3  # a real launch: microseconds


def test_the_meter_counts_calls_copies_and_allocations(bundle: Bundle) -> None:
    meter = Meter()
    with Pipeline(bundle, MeteredBackend(IdleBackend(), meter)) as pipeline:
        plan = pipeline("a", scaling_space="latent").plan
    calls = {name: count for name, count in meter.tally.calls.items() if name.startswith("step")}
    assert calls == {f"step {s.width * plan.cell_px}x{s.height * plan.cell_px}": len(s.steps) for s in plan.stages}
    assert meter.tally.allocated_bytes > 0
    assert meter.tally.uploads > plan.evaluations  # a row for each step at least
    meter.forget()
    assert not meter.log
    assert meter.tally.uploads == 0


def test_the_gap_is_what_the_device_waits_between_two_steps_of_one_stage() -> None:
    meter = Meter()
    spans = [("step", "a", 0.0, 1.0), ("step", "a", 1.5, 2.0), ("step", "b", 9.0, 10.0), ("decode", "b", 11.0, 12.0)]
    meter.log = [Call(graph, size, 0.0, LateMark(begin), LateMark(end)) for graph, size, begin, end in spans]  # type: ignore[arg-type]
    assert meter.gaps() == [0.5]


def test_a_percentile_is_not_told_from_too_few_runs() -> None:
    few, some, many = (summarised(list(range(1, count + 1))) for count in (9, 10, 100))
    assert (few.p90, some.p99) == (None, None)
    assert some.p90 is not None
    assert many.p99 == pytest.approx(99.01)


def test_a_device_that_throttles_is_told() -> None:
    clock = iter([2000.0] * 4 + [1500.0] * 4)
    pace = Pace(clocks={"GPU": lambda: next(clock)}, work=lambda: 1.0)
    for _ in range(8):
        pace.look()
    (said,) = pace.complaints()
    assert said.startswith("the GPU's clock fell from 2000 to 1500 MHz during the run: it throttles")


def test_a_processor_that_is_taken_away_is_told_though_its_clock_stands_still() -> None:
    spells = iter([1.0] * 3 + [2.0] * 3)
    pace = Pace(clocks={"CPU": lambda: 2600.0}, work=lambda: next(spells))
    for _ in range(6):
        pace.look()
    assert "took 2.00 times as long at the end" in " ".join(pace.complaints())


def test_a_steady_machine_is_not_complained_about_and_a_clock_that_is_not_there_not_asked_again() -> None:
    asked: list[int] = []
    pace = Pace(clocks={"GPU": lambda: asked.append(1)}, work=lambda: 1.0)  # type: ignore[dict-item]
    for _ in range(5):
        pace.look()
    assert pace.complaints() == ()
    assert len(asked) == 1


@pytest.mark.parametrize("runs", [0, 2])
def test_too_few_runs_are_refused(runs: int) -> None:
    with pytest.raises(BenchError, match=f"runs is {runs}; it must be at least 3"):
        Effort(runs=runs)


def test_a_grid_is_every_combination_in_words() -> None:
    cases = cases_of(Grid(sizes=((64, 128),), steps=(4, 8), batches=(1, 2), single=True), {"guidance_scale": 2.0})
    assert len(cases) == 8
    assert cases[0].name == "128x64, 4 steps, batch 1, staged, guidance_scale 2.0"
    assert cases[1].options["start_sigma"] == 1.0
    assert all(case.options["guidance_scale"] == 2.0 for case in cases)


def test_prompts_are_the_same_words_in_another_order() -> None:
    found = wordings("a b c", 8)
    assert len(set(found[:6])) == 6
    assert found[6:] == [f"{order} " for order in found[:2]]  # few words have few orders; a blank more is another text
    assert {"".join(sorted(one.rstrip())) for one in found} == {"  abc"}


@pytest.mark.parametrize("prompt", ["", "lighthouse", "red red", "a b a c"])
def test_no_two_prompts_are_alike(prompt: str) -> None:
    assert len(set(wordings(prompt, 40))) == 40


def test_a_prompt_of_one_word_is_encoded_in_every_timed_run(bundle: Bundle) -> None:
    calls: list[int] = []

    class Counting(IdleBackend):
        def open(self, bundle: Bundle, demand: Demand) -> IdleEngines:
            engines = super().open(bundle, demand)
            engines["text"].bind = lambda _: lambda: calls.append(1)  # type: ignore[method-assign]
            return engines

    measure(bundle, Counting, Case(name="toy", options=LATENT), Effort(runs=3, warmup=1), prompt="lighthouse")
    assert len(calls) == 1 + 1 + 1 + 3  # no words, which guidance hears; the first picture, warm-up and timed runs


def test_a_result_comes_back_as_it_was(result: CaseResult, tmp_path: Path) -> None:
    made = whole(result)
    write_result(made, tmp_path / "r.json")
    assert read_result(tmp_path / "r.json") == made
    table = as_table(made)
    assert "toy" in table
    assert as_table(made, markdown=True).startswith("| case | p50 ms |")
    assert "12 runs a case" in conditions(made)


def test_a_case_that_is_called_staged_and_has_one_stage_is_told(result: CaseResult) -> None:
    small = msgspec.structs.replace(result, name="32x32, batch 1, staged", stages=result.stages[:1])
    said = as_table(msgspec.structs.replace(whole(small), cases=(small, result))).splitlines()
    assert said[-1] == f"32x32, batch 1, staged: its plan has one stage anyway, of {result.stages[0].steps} steps"


@pytest.mark.parametrize(
    ("damage", "said"),
    [(lambda text: text[:-40], "is damaged"), (lambda text: text[:0], "is damaged"),
     (lambda text: text.replace('"format": 3', '"format": 7'), "has format 7"),
     (lambda text: text.replace('"cases"', '"casse"').replace('"batch": 1', '"batch": "x"'), "")],
)  # fmt: skip
def test_a_damaged_result_is_told_by_name(result: CaseResult, tmp_path: Path, damage: Any, said: str) -> None:
    path = tmp_path / "r.json"
    write_result(whole(result), path)
    path.write_text(damage(path.read_text()))
    if not said:  # a key that nobody knows is none: the file has no cases
        assert read_result(path).cases == ()
        return
    with pytest.raises(BenchError, match=said):
        read_result(path)


def test_the_plot_of_costs_shows_measured_arithmetic_and_prediction(
    result: CaseResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: drawn.extend(figure.axes[0].get_legend_handles_labels()[1]))
    plots.plot_cost(whole(result), tmp_path / "cost.png", {stage.tokens: 1.0 for stage in result.stages})
    assert drawn == ["measured", "arithmetic alone", "plan's prediction"]


def test_engines_and_batches_are_curves_of_their_own_in_the_plot_of_costs(
    result: CaseResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(plots, "_save", lambda figure, _: drawn.extend(figure.axes[0].get_legend_handles_labels()[1]))
    other = msgspec.structs.replace(result, name="other", backend={"backend": "slow"}, batch=2)
    plots.plot_cost(msgspec.structs.replace(whole(result), cases=(result, other)), tmp_path / "cost.png")
    assert drawn == ["measured, idle, batch 1", "measured, slow, batch 2", "arithmetic alone"]


def test_a_result_that_is_not_there_is_told_with_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"none.json cannot be read .*; make one with lssgen bench BUNDLE"):
        read_result(tmp_path / "none.json")


def test_cases_that_are_known_are_not_measured_again(bundle: Bundle, result: CaseResult) -> None:
    def never(case: Case) -> Any:
        del case
        pytest.fail("it was measured")

    case = Case(name="toy", options=dict(LATENT))
    (found,) = measure_all(bundle, never, [case], Effort(runs=12), known={"toy": result})
    assert found == result


def test_environments_differ_by_machine_software_and_engine_and_not_by_load() -> None:
    one = environment({"backend": "onnxruntime", "threads": 1})
    assert differences(one, msgspec.structs.replace(one, state={"load": "99"})) == []
    other = msgspec.structs.replace(one, machine={**one.machine, "cpu": "abacus"}, backend={"backend": "onnxruntime"})
    said = differences(one, other)
    assert f"machine cpu was abacus and is {one.machine['cpu']}" in said
    assert "backend threads was absent and is 1" in said


def test_an_environment_survives_the_disk() -> None:
    one = environment({"backend": "x"})
    assert msgspec.json.decode(msgspec.json.encode(one), type=Environment) == one
    assert {"cpu", "cores"} <= set(one.machine)
    assert "numpy" in one.software
