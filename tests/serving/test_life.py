"""A server's life: warm, cancelled within a step, drained, closed, stuck, broken; and every request ends once."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from threading import Event as Flag
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rooms import Follower, ask, bundle_of, denoise, fake_server, kinds, networks

import lssgen
from lssgen.bundle import MANIFEST
from lssgen.errors import BackendError, BundleError, CancelledError, EngineError, NonFiniteError, RefusedError
from lssgen.ports import Array
from lssgen.serving import Server, ServerOptions
from lssgen.serving.api import Event, PictureDone, Progress, Queued
from lssgen.serving.watch import Watch
from lssgen.testing import Ask, FakeBackend


class Gate:
    """A network that waits where it is told to, so that a test can be sure of when it looks."""

    def __init__(self) -> None:
        self.open, self.reached = Flag(), Flag()
        self.open.set()

    def __call__(self, given: Ask) -> Array:
        if not self.open.is_set():
            self.reached.set()
            assert self.open.wait(20), "nobody opened the gate"
        return denoise(given)

    def shut(self) -> None:
        self.reached.clear()
        self.open.clear()


def test_the_door_is_in_the_package() -> None:
    assert lssgen.Server is Server


def test_a_request_tells_what_happens_to_it_in_order(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        heard: list[Event] = []
        ticket = server.submit(ask(n=2), heard.append)
        answer = ticket.result(10)
        told = list(ticket.events(10))
        late: list[Event] = []
        ticket.listen(late.append)
    assert told == heard == late
    steps = answer.request.plan.evaluations
    assert kinds(told)[0] == "Queued"
    assert kinds(told)[-1] == "Done"
    assert kinds(told).count("Progress") == 2 * steps
    progress = [event for event in told if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, 2 * steps + 1))
    assert {event.total for event in progress} == {2 * steps}
    assert [event.index for event in told if isinstance(event, PictureDone)] == [0, 1]
    assert ticket.state == "done"


def test_an_answer_says_what_it_cost(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        answer = server.submit(ask("a red circle", n=2, negative_prompt="blue")).result(10)
    steps = answer.request.plan.evaluations
    usage, timings = answer.usage, answer.timings
    assert (usage.text_tokens, usage.image_tokens, usage.pixels) == (4, 2 * 64, 2 * 64 * 64)
    assert (usage.steps, usage.passes) == (2 * steps, 4 * steps)
    assert 0 < usage.device_seconds < timings.total
    assert {span.name for span in timings.spans} == {"load", "queue", "text", "stage", "transition", "decode"} - (
        set() if any(span.name == "load" for span in timings.spans) else {"load"}
    )
    assert sum(span.steps for span in timings.spans) == 2 * steps
    assert all(0 <= span.began_s <= span.ended_s <= timings.total for span in timings.spans)


def test_what_is_taken_back_costs_at_most_one_more_step(tmp_path: Path) -> None:
    follower = Follower()
    with fake_server(tmp_path, observe=follower) as server:
        ticket = None

        def come() -> None:
            nonlocal ticket
            follower.calls.clear()
            ticket = server.submit(ask(num_inference_steps=20))
            follower.after(3, ticket.cancel)

        server._scheduler.call(come)
        while ticket is None:
            time.sleep(0.001)
        with pytest.raises(CancelledError, match="taken back"):
            ticket.result(10)
        assert ticket.state == "cancelled"
        assert len(follower.calls) <= 3 + 1
        stats = server.stats()
        assert (stats.cancelled, stats.running, stats.lanes) == (1, 0, ())
        ticket.cancel()  # nothing happens any more
        assert server.submit(ask()).result(10).pictures


def test_what_waits_can_be_taken_back_before_it_is_begun(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, batches=(1,)) as server:
        gate.shut()
        first, second, third = (server.submit(ask(seed=seed)) for seed in range(3))
        assert gate.reached.wait(10)
        assert [ticket.queued().position for ticket in (first, second, third)] == [0, 0, 1]
        second.cancel()
        gate.open.set()
        with pytest.raises(CancelledError):
            second.result(10)
        assert third.result(10).pictures
        assert "Progress" not in kinds(list(second.events()))
        assert first.result(10).pictures


def test_the_queue_is_bounded_and_says_when_to_come_again(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, batches=(1,), most_requests=2, most_queued_pixels=3 * 64 * 64) as server:
        gate.shut()
        taken = [server.submit(ask())]
        assert gate.reached.wait(10)
        taken += [server.submit(ask()), server.submit(ask())]
        with pytest.raises(RefusedError, match=r"2 requests .* wait already") as refusal:
            server.submit(ask())
        assert refusal.value.code == "queue_full"
        assert refusal.value.retry_after_s is not None
        assert 1 <= refusal.value.retry_after_s <= 60
        gate.open.set()
        assert all(ticket.result(10).pictures for ticket in taken)


def test_pixels_that_wait_are_bounded_but_one_large_request_can_always_wait(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, batches=(1,), most_queued_pixels=64 * 64) as server:
        gate.shut()
        taken = [server.submit(ask())]
        assert gate.reached.wait(10)
        taken.append(server.submit(ask(height=128, width=128)))
        assert server.stats().waiting_pixels == 128 * 128
        with pytest.raises(RefusedError) as refusal:
            server.submit(ask())
        assert refusal.value.code == "queue_full"
        gate.open.set()
        assert all(ticket.result(10).pictures for ticket in taken)
        assert server.stats().waiting_pixels == 0


def test_a_server_that_drains_finishes_what_it_took_and_takes_no_more(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate) as server:
        gate.shut()
        tickets = [server.submit(ask(seed=seed)) for seed in range(5)]
        assert not server.drain(timeout=0.01)
        assert (server.phase, server.ready, server.live) == ("draining", False, True)
        with pytest.raises(RefusedError) as refusal:
            server.submit(ask())
        assert refusal.value.code == "draining"
        gate.open.set()
        assert server.drain(timeout=10)
        assert [ticket.state for ticket in tickets] == ["done"] * 5


def test_closing_takes_back_what_is_left_and_frees_the_engines(tmp_path: Path) -> None:
    gate = Gate()
    server = fake_server(tmp_path, gate, batches=(1,))
    gate.shut()
    tickets = [server.submit(ask(seed=seed)) for seed in range(3)]
    assert gate.reached.wait(10)
    threading.Timer(0.05, gate.open.set).start()
    server.close()
    server.close()
    assert {ticket.state for ticket in tickets} == {"cancelled"}
    backend = server._backend
    assert isinstance(backend, FakeBackend)
    assert all(not engines._loaded for engines in backend.opened)
    assert (server.phase, server.live) == ("closed", False)
    with pytest.raises(RefusedError):
        server.submit(ask())


def test_closing_may_wait(tmp_path: Path) -> None:
    server = fake_server(tmp_path)
    tickets = [server.submit(ask(seed=seed)) for seed in range(6)]
    server.close(wait=True)
    assert {ticket.state for ticket in tickets} == {"done"}


def test_a_server_is_ready_when_every_batch_of_every_declared_size_has_run(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def spy(given: Ask) -> Array:
        seen.append((given.u.shape[0], *given.u.shape[-2:]))
        return denoise(given)

    gate = Gate()
    gate.shut()
    graphs = networks(lambda given: spy(given) if gate(given) is not None else given.u)
    bundle = bundle_of(tmp_path / "toy", graphs)
    options = ServerOptions(batches=(1, 3), sizes=((64, 64), (32, 64)))
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options) as server:
        assert gate.reached.wait(10)
        assert (server.phase, server.live, server.ready) == ("starting", True, False)
        assert not server.wait_ready(0.01)
        early = server.submit(ask())  # taken, and waits
        gate.open.set()
        assert server.wait_ready(10)
        assert early.result(10).pictures
    expected = {(batch, *cells) for batch in (1, 3) for cells in ((4, 4), (8, 8), (4, 8))}
    assert expected <= set(seen)


def test_a_bundle_that_does_not_load_breaks_the_server_in_words(tmp_path: Path) -> None:
    graphs = networks()
    bundle = bundle_of(tmp_path / "toy", graphs)
    lacking = {name: graph for name, graph in graphs.items() if name != "decode"}
    with Server(bundle.folder, engine=Lacking(lacking), verify="never") as server:
        with pytest.raises(EngineError, match="no decode"):
            server.wait_ready(10)
        assert (server.phase, server.live) == ("broken", False)
        with pytest.raises(RefusedError, match="no decode") as refusal:
            server.submit(ask())
        assert refusal.value.code == "device_stuck"


class Lacking(FakeBackend):
    """A backend without some networks."""

    def open(self, bundle: Any, demand: Any) -> Any:
        if set(demand.graphs) - set(self.networks):
            raise EngineError("there is no decode")
        return super().open(bundle, demand)


def test_a_mistake_of_ours_ends_every_request_and_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate) as server, caplog.at_level(logging.CRITICAL, "lssgen"):
        gate.shut()
        ticket = server.submit(ask())
        server._scheduler.call(lambda: setattr(server, "nothing", 1 // 0))
        gate.open.set()
        with pytest.raises(EngineError, match="a mistake of its own: ZeroDivisionError"):
            ticket.result(10)
        server._life._thread.join(10)
        assert (server.phase, server.live, len(server._desk)) == ("broken", False, 0)
        with pytest.raises(RefusedError, match="start the server again"):
            server.submit(ask())


def test_a_device_that_does_not_answer_is_noticed_and_nobody_waits_for_it(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate, stuck_seconds=0.2) as server:
        gate.shut()
        tickets = [server.submit(ask(seed=seed)) for seed in range(6)]
        for ticket in tickets:
            with pytest.raises(RefusedError, match="has not answered for") as refusal:
                ticket.result(10)
            assert refusal.value.code == "device_stuck"
        assert (server.phase, server.live) == ("stuck", False)
        with pytest.raises(RefusedError, match="start the server again"):
            server.submit(ask())
        gate.open.set()
        until = time.monotonic() + 10
        while server.phase != "ready" and time.monotonic() < until:
            time.sleep(0.01)
        assert server.submit(ask()).result(10).pictures  # it answers after all


def test_the_watch_tells_once_of_every_call_that_hangs() -> None:
    since: list[float | None] = [None]
    told: list[str] = []
    watch = Watch(lambda: since[0], 10.0, lambda _: told.append("stuck"), lambda: told.append("free"))
    for now, begun in ((5, 4.0), (13, 4.0), (15, 4.0), (16, 4.0), (17, 16.5), (18, None), (40, 29.0), (41, None)):
        since[0] = begun
        watch.look(now)
    assert told == ["stuck", "free", "stuck", "free"]


def test_a_picture_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    def explode(given: Ask) -> Array:
        hot = given.extra["text"][:, :, None, None] > 2.5  # "circle" is a large number
        return np.where(hot, np.float32("nan"), denoise(given))

    with fake_server(tmp_path, explode) as server:
        bad, good = server.submit(ask("square square square square square")), server.submit(ask("a"))
        with pytest.raises(NonFiniteError, match="in picture 0 of the request"):
            bad.result(10)
        assert np.isfinite(good.result(10).pictures[0].latent).all()
        assert (server.stats().nonfinite, server.stats().failed, server.stats().done) == (1, 1, 1)
        assert server.submit(ask("a", seed=3)).result(10).pictures


def test_a_call_that_fails_ends_those_who_were_in_it_and_nobody_else(tmp_path: Path) -> None:
    def fail(given: Ask) -> Array:
        if given.u.shape[-1] == 12:
            raise EngineError("the device has lost its way")
        return denoise(given)

    with fake_server(tmp_path, fail) as server:
        wide, plain = server.submit(ask(width=96)), server.submit(ask())
        with pytest.raises(EngineError, match="lost its way"):
            wide.result(10)
        assert plain.result(10).pictures
        assert server.submit(ask(seed=5)).result(10).pictures


def test_a_listener_that_fails_hears_nothing_more_and_disturbs_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Event) -> None:
        if not isinstance(event, Queued):
            raise ValueError("I am deaf")

    with fake_server(tmp_path) as server, caplog.at_level(logging.CRITICAL, "lssgen"):
        assert server.submit(ask(), fail).result(10).pictures


def test_many_threads_get_an_end_each(tmp_path: Path) -> None:
    with fake_server(tmp_path, most_requests=8) as server:
        ends: list[str] = []

        def call(first: int) -> None:
            for seed in range(first, first + 10):
                try:
                    ticket = server.submit(ask(seed=seed, num_inference_steps=2))
                except RefusedError as error:
                    ends.append(error.code)
                    continue
                if seed % 4 == 0:
                    ticket.cancel()
                try:
                    ends.append("done" if ticket.result(20).pictures else "")
                except CancelledError:
                    ends.append("cancelled")

        threads = [threading.Thread(target=call, args=(first,)) for first in range(0, 120, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        stats = server.stats()
    assert len(ends) == 120
    assert set(ends) <= {"done", "cancelled", "queue_full"}
    assert stats.accepted == stats.done + stats.cancelled
    assert stats.refused.get("queue_full", 0) == ends.count("queue_full")


def test_the_engine_that_is_not_named_is_that_of_load(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_ENGINE", "steam")
    for open_it in (lssgen.load, lssgen.Server):
        with pytest.raises(BackendError, match="there is no engine called 'steam'"):
            open_it(toy)


def test_a_program_that_ends_in_the_middle_of_a_step_ends_as_it_should(toy: Path) -> None:
    code = f"""
import lssgen
from lssgen.serving import ImageRequest, ServerOptions
server = lssgen.Server({str(toy)!r}, threads=1, options=ServerOptions(sizes=((32, 32),)))
server.wait_ready()
words = {{"height": 1024, "width": 1024, "num_inference_steps": 200, "start_sigma": 1.0}}
ticket = server.submit(ImageRequest(prompt="a", options=words))
staged = {{"num_inference_steps": 4, "scaling_space": "latent"}}
more = [server.submit(ImageRequest(prompt="a", options=staged, n=4)) for _ in range(50)]
while ticket.progress is None:
    pass
raise SystemExit("oops")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "oops\n")


def test_bundles_that_are_not_there_are_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        Server(tmp_path / "nothing")
    with pytest.raises(BundleError, match="no bundle was given"):
        Server([])


@pytest.mark.parametrize("kind", [ValueError, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_whatever_a_listener_or_an_observer_raises_the_next_request_is_painted(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    def fails(event: Event) -> None:
        if isinstance(event, PictureDone):
            raise kind

    def observe(_: Any) -> None:
        raise kind

    with fake_server(tmp_path, observe=observe) as server:
        assert server.submit(ask(), fails).result(10).pictures
        assert server.submit(ask()).result(10).pictures


@pytest.mark.parametrize("wait", ["drain", "paint"])
def test_a_listener_that_would_wait_for_its_own_thread_is_told_so(tmp_path: Path, wait: str) -> None:
    refused: list[str] = []

    def waits(event: Event) -> None:
        if isinstance(event, PictureDone):
            try:
                server.drain() if wait == "drain" else server.paint("a fox")
            except EngineError as error:
                refused.append(str(error))

    with fake_server(tmp_path) as server:
        assert server.submit(ask(), waits).result(10).pictures
        assert server.submit(ask()).result(10).pictures
    assert "by a listener, whom it waits for" in refused[0]


FORKED = """
import os, sys
from pathlib import Path
from rooms import ask, fake_server
from lssgen.errors import RefusedError

with fake_server(Path(sys.argv[1])) as server:
    assert server.submit(ask()).result(10).pictures
    if not (child := os.fork()):
        try:
            server.submit(ask()).result(10)
        except RefusedError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert server.submit(ask()).result(10).pictures
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_of_the_process_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_ticket_does_not_hold_the_pictures_that_came(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        ticket = server.submit(ask(init_image=Image.new("RGB", (64, 64))))
        assert ticket.result(10).pictures
    assert ticket.asked.init_image is None
