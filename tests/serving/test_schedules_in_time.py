"""Deadlines and budgets: the best schedule that fits what was measured, or a refusal that says what is possible."""

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rooms import ask, fake_server
from test_life import Gate

from lssgen.errors import RefusedError
from lssgen.plan.facts import NetworkCost
from lssgen.runtime.candidates import Candidate, best_within
from lssgen.schedules import Search, Tried
from lssgen.serving import ImageRequest, Server
from lssgen.serving.times import Call, StepTimes, remember, remembered

MS = 1e-3


def slow(server: Server, *, per_cell: float = 1e-4) -> StepTimes:
    """Pretend that every step was measured to take so many seconds a latent cell, picture and branch."""
    times = StepTimes(NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
    times.note(Call("step", 4, 4, 1, 1), 16 * per_cell)
    server._models.first.times = times
    return times


def test_the_schedule_stays_as_asked_where_there_is_time(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        slow(server)
        asked = ImageRequest(prompt="a", options={"seed": 0}, max_latency_ms=10_000)
        quote = server.quote(asked)
        assert quote.request.plan == server.quote(ImageRequest(prompt="a", options={"seed": 0})).request.plan
        assert quote.notes == ()


@pytest.mark.parametrize("word", ["max_latency_ms", "deadline_ms"])
def test_a_shorter_schedule_is_chosen_the_longest_that_fits(tmp_path: Path, word: str) -> None:
    with fake_server(tmp_path, least_steps=2) as server:
        slow(server, per_cell=1e-3)
        plain = server.quote(ImageRequest(prompt="a", options={"seed": 0}))
        assert plain.alone_seconds is not None
        budget = 0.7 * plain.alone_seconds
        quote = server.quote(ImageRequest(prompt="a", options={"seed": 0}, **{word: 1e3 * budget}))  # type: ignore[arg-type]
        assert quote.alone_seconds is not None
        assert 0.4 * budget < quote.alone_seconds <= budget
        assert quote.request.plan.evaluations < plain.request.plan.evaluations
        assert any("the schedule was changed to be done in time" in note for note in quote.notes)


def test_what_a_search_has_found_is_chosen_by_its_quality(tmp_path: Path) -> None:
    with fake_server(tmp_path, least_steps=4) as server:
        slow(server, per_cell=1e-3)
        few, many = (
            Tried(words={"num_inference_steps": steps, "start_sigma": 1.0}, steps=(steps,), quality=quality, ms=0.0)
            for steps, quality in ((2, 0.9), (4, 0.5))
        )
        search = Search(
            height=64,
            width=64,
            written="now",
            judge="score",
            prompts=1,
            axes=("num_inference_steps", "start_sigma"),
            tried=(few, many),
        )
        server._models.first._searches = {(64, 64): search}
        plain = server.quote(ImageRequest(prompt="a", options={"seed": 0}))
        assert plain.alone_seconds is not None
        budget = {"max_latency_ms": 0.9e3 * plain.alone_seconds}
        quote = server.quote(ImageRequest(prompt="a", options={"seed": 0}, **budget))
        assert [len(stage.steps) for stage in quote.request.plan.stages] == [2]
        assert any("num_inference_steps 2, start_sigma 1.0" in note for note in quote.notes)


def test_what_no_schedule_can_do_is_refused_at_once_with_the_fastest(tmp_path: Path) -> None:
    with fake_server(tmp_path, least_steps=2) as server:
        slow(server, per_cell=1.0)
        with pytest.raises(RefusedError, match="the fastest schedule takes") as refusal:
            server.submit(ImageRequest(prompt="a", options={"seed": 0}, deadline_ms=5))
        assert (refusal.value.code, refusal.value.param) == ("deadline_impossible", "deadline_ms")
        fastest = refusal.value.fastest_ms
        assert fastest is not None
        again = ImageRequest(prompt="a", options={"seed": 0}, deadline_ms=1.01 * fastest)
        assert server.quote(again).alone_seconds == pytest.approx(fastest * MS, rel=0.01)


def test_words_that_the_caller_said_stay(tmp_path: Path) -> None:
    with fake_server(tmp_path, least_steps=1) as server:
        slow(server, per_cell=1e-3)
        asked = ImageRequest(prompt="a", options={"seed": 0, "num_inference_steps": 6, "start_sigma": 0.75})
        whole = server.quote(asked).alone_seconds
        assert whole is not None
        words = {**asked.options, "shorten": False}
        with pytest.raises(RefusedError, match="the fastest schedule takes"):
            server.quote(ImageRequest(prompt="a", options=words, max_latency_ms=900 * whole))  # type: ignore[arg-type]


def test_what_waits_counts_against_a_deadline_and_not_against_a_budget(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, batches=(1,)) as server:
        slow(server)
        one = server.quote(ask()).alone_seconds
        assert one is not None
        gate.shut()
        taken = [server.submit(ask(deadline_ms=1e7, seed=seed)) for seed in range(4)]
        assert gate.reached.wait(10)
        assert server.quote(ask(max_latency_ms=1500 * one)).pixels
        with pytest.raises(RefusedError) as refusal:
            server.quote(ask(deadline_ms=1e7 + 1, max_latency_ms=1))
        assert refusal.value.param == "max_latency_ms"
        hurried = server.quote(ask(deadline_ms=1e8)).seconds
        assert hurried == pytest.approx(5 * one, rel=0.05)
        gate.open.set()
        for ticket in taken:
            ticket.result(10)


def test_a_deadline_that_passes_ends_the_request_in_words(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate) as server:
        server._models.first.times = StepTimes(NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
        gate.shut()
        ticket = server.submit(ask(deadline_ms=50, num_inference_steps=20))
        assert gate.reached.wait(10)
        ticket._changed.acquire()
        ticket._changed.wait(0.1)
        ticket._changed.release()
        gate.open.set()
        with pytest.raises(RefusedError, match=r"the deadline passed when \d+ of \d+ steps were done") as refusal:
            ticket.result(10)
        assert (refusal.value.code, refusal.value.param) == ("deadline_passed", "deadline_ms")
        assert server.stats().refused["deadline_passed"] == 1


def test_warming_up_measures_what_a_deadline_needs_and_the_next_server_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    with fake_server(tmp_path) as server:
        known = {(line.kind, line.height, line.branches, line.batch) for line in server._models.first.times.lines()}
        quote = server.quote(ask())
    assert {("step", cells, 2, batch) for cells in (4, 8) for batch in (1, 2, 4)} <= known
    assert {("decode", 8, 1, 1), ("transition", 8, 1, 1)} <= known
    assert quote.alone_seconds is not None
    (kept,) = (tmp_path / "home" / "serving").iterdir()
    again = remembered(kept, NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
    assert {(line.kind, line.height, line.branches, line.batch) for line in again.lines()} == known


@given(
    known=st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8)), min_size=1, max_size=5),
    asked=st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8)),
)
def test_what_was_not_measured_is_estimated_by_arithmetic(
    known: list[tuple[int, int, int]], asked: tuple[int, int, int]
) -> None:
    """Where time is proportional to the arithmetic, the estimate is exact."""
    cost = NetworkCost(fixed=5.0, per_cell=2.0, per_cell_pair=0.1)
    times = StepTimes(cost)
    for height, width, batch in known:
        times.note(Call("step", height, width, 2, batch), 1e-6 * cost.flops(height * width) * 2 * batch)
    height, width, batch = asked
    expected = 1e-6 * cost.flops(height * width) * 2 * batch
    assert times.seconds(Call("step", height, width, 2, batch)) == pytest.approx(expected)


@given(seconds=st.lists(st.none() | st.floats(0.1, 100), min_size=1, max_size=8), budget=st.floats(0.05, 120))
def test_the_longest_schedule_that_fits_is_chosen_and_the_one_that_was_asked_for_if_it_fits(
    seconds: list[float | None], budget: float
) -> None:
    found: list[Any] = [Candidate(cast(Any, number), time) for number, time in enumerate(seconds)]
    chosen, fastest = best_within(iter(found), budget)
    times = [time or 0.0 for time in seconds]
    assert (fastest.seconds or 0.0) == min(times)
    if times[0] <= budget:
        assert chosen is found[0]
    elif min(times) > budget:
        assert chosen is None
    else:
        assert chosen is not None
        assert (chosen.seconds or 0.0) == max(time for time in times if time <= budget)


def test_nothing_is_estimated_from_nothing(tmp_path: Path) -> None:
    times = StepTimes(NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
    assert times.seconds(Call("step", 4, 4)) is None
    (tmp_path / "damaged.json").write_text("{")
    assert len(remembered(tmp_path / "damaged.json", NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))) == 0
    remember(tmp_path / "times.json", times)
    assert (tmp_path / "times.json").read_text().strip() == "[]"
