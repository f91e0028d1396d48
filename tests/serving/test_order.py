"""Who is painted when, and with whom: batches with profiles, small stages together, deadlines first, nobody never."""

from collections.abc import Callable
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rooms import Follower, alone, ask, fake_server
from test_life import Gate

from lssgen.serving import Server, Ticket
from lssgen.serving.memory import fitting
from lssgen.serving.queues import Waiting


def ends(server: Server, gate: Gate, requests: list[Any]) -> list[int]:
    """Let requests come at once, behind one that is painted; their numbers in the order of their ends."""
    gate.shut()
    first = server.submit(ask(num_inference_steps=2))
    assert gate.reached.wait(10)
    ended: list[int] = []

    def hear(number: int) -> Callable[[Any], None]:
        return lambda event: ended.append(number) if type(event).__name__ == "Done" else None

    tickets = [server.submit(request, hear(number)) for number, request in enumerate(requests)]
    gate.open.set()
    for ticket in [first, *tickets]:
        ticket.result(20)
    return ended


def test_pictures_at_unlike_steps_share_calls_in_the_smallest_batch_that_has_a_profile(tmp_path: Path) -> None:
    follower = Follower()
    with fake_server(tmp_path, observe=follower, batches=(1, 3)) as server:
        tickets: list[Ticket] = []

        def come() -> None:
            tickets.append(server.submit(ask(num_inference_steps=8, seed=len(tickets))))

        def start() -> None:
            follower.calls.clear()
            come()
            follower.after(2, come)

        server._scheduler.call(start)
        while len(tickets) < 2:
            pass
        for ticket in tickets:
            ticket.result(10)
    steps = [seen for seen in follower.seen if seen.kind == "step"]
    assert {(seen.rows, seen.batch) for seen in steps} == {(1, 1), (2, 3)}
    assert [seen.rows for seen in steps if seen.height_px == 32][:4] == [1, 1, 2, 2]


def test_the_small_stage_of_a_large_picture_is_painted_with_small_pictures(tmp_path: Path) -> None:
    follower, gate = Follower(), Gate()
    with fake_server(tmp_path, gate, observe=follower) as server:
        follower.seen.clear()
        ends(server, gate, [ask(height=64, width=64), ask(height=32, width=32, guidance_scale=5.0)])
    together = {(seen.height_px, seen.rows) for seen in follower.seen if seen.kind == "step"}
    assert (32, 2) in together


def test_other_branches_do_not_share_a_call(tmp_path: Path) -> None:
    follower, gate = Follower(), Gate()
    with fake_server(tmp_path, gate, observe=follower) as server:
        follower.calls.clear()
        ends(server, gate, [ask(guidance_scale=1.0)])  # beside one that is painted with guidance
    assert set(follower.calls) == {1}


def test_the_earliest_deadline_goes_first_and_then_the_oldest(tmp_path: Path) -> None:
    gate = Gate()
    late, soon = ask(deadline_ms=9e5), ask(deadline_ms=6e5)
    with fake_server(tmp_path, gate, batches=(1,)) as server:
        assert ends(server, gate, [ask(), ask(), late, soon]) == [3, 2, 0, 1]


def test_a_deadline_takes_the_place_of_a_picture_without_one_which_goes_on_later_as_if_nothing_was(
    tmp_path: Path,
) -> None:
    follower, order = Follower(), []
    with fake_server(tmp_path, observe=follower, batches=(1,), patience=100) as server:
        tickets: list[Ticket] = []

        def hurry() -> None:
            tickets.append(server.submit(ask(seed=5, deadline_ms=6e5), lambda event: order.append((1, type(event)))))

        def start() -> None:
            follower.after(3, hurry)
            asked = ask(num_inference_steps=20, solver="dpm++2m-sde")
            tickets.append(server.submit(asked, lambda event: order.append((0, type(event)))))

        server._scheduler.call(start)
        while len(tickets) < 2:
            pass
        calm, _ = (ticket.result(10) for ticket in tickets)
        expected = alone(server)("a red circle", **asked_words(calm))
    last = [number for number, kind in order if kind.__name__ == "Done"]
    assert last == [1, 0]
    assert calm.pictures[0].latent.tobytes() == expected.pictures[0].latent.tobytes()


def asked_words(answer: Any) -> dict[str, Any]:
    return {"num_inference_steps": 20, "solver": "dpm++2m-sde", "seed": answer.request.seed, "scaling_space": "latent"}


def test_nothing_starves_however_many_are_in_a_hurry(tmp_path: Path) -> None:
    """Hurried requests keep coming, each when the one before has ended; one without a deadline ends all the same."""
    follower = Follower()
    with fake_server(tmp_path, observe=follower, batches=(1,), patience=4) as server:
        ended: list[int] = []
        calm: list[Ticket] = []

        def hurry(number: int) -> None:
            def hear(event: Any) -> None:
                if type(event).__name__ == "Done":
                    ended.append(number)
                    if number < 60:
                        hurry(number + 2)

            server.submit(ask(deadline_ms=6e5, num_inference_steps=2, seed=number), hear)

        def start() -> None:
            hurry(0)
            hurry(1)
            calm.append(server.submit(ask(num_inference_steps=2)))

        server._scheduler.call(start)
        while not calm:
            pass
        calm[0].result(20)
        assert len(ended) < 30


def test_a_lane_is_passed_over_no_more_often_than_patience_allows(tmp_path: Path) -> None:
    """Pictures in a hurry at one size, and one without a deadline at another, which shares no calls with them."""
    follower = Follower()
    with fake_server(tmp_path, observe=follower, patience=3) as server:
        tickets: list[Ticket] = []

        def start() -> None:
            follower.seen.clear()
            tickets.append(server.submit(ask(deadline_ms=6e5, num_inference_steps=60, start_sigma=1.0)))
            tickets.append(server.submit(ask(height=96, width=96, num_inference_steps=10, start_sigma=1.0)))

        server._scheduler.call(start)
        while len(tickets) < 2:
            pass
        for ticket in tickets:
            ticket.result(10)
    steps = [seen.height_px for seen in follower.seen if seen.kind == "step"]
    calm = [number for number, height in enumerate(steps) if height == 96]
    assert len(calm) == 10
    assert max(later - earlier for earlier, later in pairwise(calm)) == 3 + 1


@given(
    deadlines=st.lists(st.sampled_from([1.0, 2.0, inf]), min_size=1, max_size=30),
    coming=st.lists(st.sampled_from([1.0, 2.0, inf]), max_size=60),
    patience=st.integers(1, 5),
)
def test_who_waits_is_passed_over_no_more_often_than_patience_allows(
    deadlines: list[float], coming: list[float], patience: int
) -> None:
    waiting: Any = Waiting(patience)
    pieces = [Stub(number, deadline) for number, deadline in enumerate([*deadlines, *coming])]
    for piece in pieces[: len(deadlines)]:
        waiting.add(piece)
    later, passed = iter(pieces[len(deadlines) :]), 0
    while len(waiting):
        oldest = min(waiting, key=lambda piece: piece.job.number)
        chosen = waiting.pop()
        passed = 0 if chosen is oldest else passed + 1
        assert passed <= patience
        if (more := next(later, None)) is not None:
            waiting.add(more)


class Stub:
    """As much of a picture as a queue looks at."""

    def __init__(self, number: int, deadline: float) -> None:
        self.number, self.deadline, self.index = number, deadline, 0
        self.job = self
        self.rank = (deadline, number, 0)


def test_a_small_picture_does_not_wait_for_large_ones_that_came_before(tmp_path: Path) -> None:
    gate = Gate()
    large = [ask(height=128, width=128, num_inference_steps=20, seed=seed, start_sigma=1.0) for seed in range(4)]
    small = ask(height=32, width=32, num_inference_steps=3)
    with fake_server(tmp_path, gate) as server:
        assert ends(server, gate, [*large, small])[0] == 4
    with fake_server(tmp_path / "by age", gate, order=("age",), patience=10**6) as server:
        assert ends(server, gate, [*large, small])[-1] == 4


@given(count=st.integers(1, 20), batches=st.sets(st.integers(1, 16), min_size=1).map(sorted).map(tuple))
def test_a_batch_is_the_smallest_that_holds_all_or_the_largest(count: int, batches: tuple[int, ...]) -> None:
    chosen = fitting(count, batches)
    assert chosen in batches
    assert chosen >= count or chosen == batches[-1]
    assert all(batch < count for batch in batches if batch < chosen)


def test_estimates_of_the_queue_grow_with_it(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, batches=(1,)) as server:
        alone_seconds = server.quote(ask()).seconds
        gate.shut()
        tickets = [server.submit(ask(seed=seed)) for seed in range(5)]
        assert gate.reached.wait(10)
        busy = server.quote(ask()).seconds
        gate.open.set()
        for ticket in tickets:
            ticket.result(10)
    assert alone_seconds is not None
    assert busy is not None
    assert busy == pytest.approx(6 * alone_seconds, rel=0.2)  # five before it, and itself
