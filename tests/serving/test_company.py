"""A picture does not depend on its company: whatever arrives, leaves or is taken back beside it, it is to the bit the
picture of the same request alone."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rooms import Follower, LateDevice, alone, fake_server, networks

import lssgen
from lssgen.bundle import Bundle
from lssgen.errors import CancelledError
from lssgen.runtime import Pipeline
from lssgen.serving import ImageRequest, Server, ServerOptions, Ticket

SIZES = ((32, 32), (64, 64), (64, 96), (128, 64))
"""(height, width); the small stages of the others are sizes of their own or those of the first."""


@dataclass(frozen=True)
class Arrival:
    """A request that comes after so many engine calls, and may be taken back after some more."""

    after: int
    words: tuple[tuple[str, Any], ...]
    n: int
    leaves: int | None
    hurry: bool


def arrivals() -> st.SearchStrategy[list[Arrival]]:
    words = st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["a red circle", "a", "blue square"]),
            "size": st.sampled_from(SIZES),
            "num_inference_steps": st.integers(2, 7),
            "guidance_scale": st.sampled_from([1.0, 2.5, 7.0]),
            "start_sigma": st.sampled_from([0.5, 0.75, 1.0]),
            "seed": st.integers(0, 3),
            "solver": st.sampled_from(["own", "dpm++2m", "dpm++2m-sde"]),
            "cached_steps": st.sampled_from(["off", "medium", "ultra"]),
        }
    )
    return st.lists(
        st.builds(
            Arrival,
            after=st.integers(0, 12),
            words=words.map(lambda chosen: tuple(sorted(chosen.items()))),
            n=st.integers(1, 3),
            leaves=st.none() | st.integers(1, 9),
            hurry=st.booleans(),
        ),
        min_size=2,
        max_size=9,
    )


def options_of(arrival: Arrival) -> dict[str, Any]:
    words = dict(arrival.words)
    height, width = words.pop("size")
    return {**words, "height": height, "width": width, "scaling_space": "latent"}


def expected(pipeline: Pipeline, arrival: Arrival) -> list[tuple[bytes, bytes]]:
    """Latents and pictures of a request alone."""
    result = pipeline(num_images=arrival.n, **options_of(arrival))
    return [(picture.latent.tobytes(), picture.image.tobytes()) for picture in result.pictures]


class Traffic:
    """Requests that come and go after known calls, in the scheduler's own thread."""

    def __init__(self, server: Server, follower: Follower, coming: list[Arrival]) -> None:
        self._server, self._follower, self._coming = server, follower, coming
        self._tickets: dict[int, Ticket] = {}

    def tickets(self) -> list[Ticket]:
        """Those of all requests, in their order, once all have ended."""
        self._in_scheduler(self._follower.then.clear)
        self._in_scheduler(lambda: self._plan(0))
        while len(self._tickets) < len(self._coming):
            assert self._server._desk.wait_empty(30)
            self._in_scheduler(lambda: self._plan(12))  # nothing is painted any more: who has not come comes now
        assert self._server._desk.wait_empty(30)
        return [self._tickets[number] for number in range(len(self._coming))]

    def _in_scheduler(self, work: Callable[[], object]) -> None:
        done = Event()

        def both() -> None:
            work()
            done.set()

        self._server._scheduler.call(both)
        assert done.wait(30), self._server._life._fault

    def _plan(self, earlier: int) -> None:
        for number, arrival in enumerate(self._coming):
            if number not in self._tickets:
                if arrival.after <= earlier:
                    self._come(number)
                else:
                    self._follower.after(arrival.after, lambda number=number: self._come(number))

    def _come(self, number: int) -> None:
        if number in self._tickets:
            return
        arrival = self._coming[number]
        words = options_of(arrival)
        prompt, hurry = words.pop("prompt"), 6e5 if arrival.hurry else None
        asked = ImageRequest(prompt=prompt, options=words, n=arrival.n, deadline_ms=hurry)  # type: ignore[arg-type]
        self._tickets[number] = self._server.submit(asked)
        if arrival.leaves is not None:
            self._follower.after(arrival.leaves, self._tickets[number].cancel)


def see(server: Server, follower: Follower, pipeline: Pipeline, coming: list[Arrival]) -> None:
    """Everybody who stayed has the picture that the same request has alone, and whoever left has none."""
    for arrival, ticket in zip(coming, Traffic(server, follower, coming).tickets(), strict=True):
        if ticket.state == "cancelled":
            assert arrival.leaves is not None
            with pytest.raises(CancelledError):
                ticket.result(0)
        else:
            pictures = ticket.result(0).pictures
            came = [(picture.latent.tobytes(), picture.image.tobytes()) for picture in pictures]
            assert came == expected(pipeline, arrival), f"{arrival} is another picture in the company of {coming}"
    stats = server.stats()
    assert (stats.waiting, stats.running, stats.waiting_pixels, stats.lanes) == (0, 0, 0, ())


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Follower, Pipeline]]:
    follower = Follower()
    with fake_server(tmp_path_factory.mktemp("bundles"), observe=follower, patience=3) as server:
        yield server, follower, alone(server)


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Follower, Pipeline]]:
    """A device that lags behind."""
    graphs, follower = networks(), Follower()
    folder = tmp_path_factory.mktemp("bundles")
    with fake_server(folder, graphs=graphs, engine=LateDevice(graphs), observe=follower, patience=3) as server:
        yield server, follower, alone(server)


@pytest.fixture(scope="module")
def real(toy: Path) -> Iterator[tuple[Server, Follower, Pipeline]]:
    """Small graphs in ONNX Runtime."""
    follower = Follower()
    options = ServerOptions(batches=(1, 2, 4), patience=3, sizes=((32, 32),))
    with Server(toy, observe=follower, options=options, threads=1) as server:
        assert server.wait_ready(30)
        yield server, follower, lssgen.load(toy, threads=1)


LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@LAW
@given(coming=arrivals())
def test_a_picture_is_the_same_to_the_bit_whoever_comes_and_goes_beside_it(
    fakes: tuple[Server, Follower, Pipeline], coming: list[Arrival]
) -> None:
    see(*fakes, coming)


@LAW
@given(coming=arrivals())
def test_so_it_is_on_a_device_that_lags_behind_and_is_asked_for_one_step_ahead_at_most(
    late: tuple[Server, Follower, Pipeline], coming: list[Arrival]
) -> None:
    see(*late, coming)
    device = late[0]._backend
    assert isinstance(device, LateDevice)
    assert device.most_ahead == 2  # one on the device, one on its way


@settings(LAW, max_examples=15)
@given(coming=arrivals())
def test_so_it_is_in_onnx_runtime(real: tuple[Server, Follower, Pipeline], coming: list[Arrival]) -> None:
    plain = [replace(one, words=tuple(w for w in one.words if w[0] != "solver")) for one in coming]  # history of one
    see(*real, plain)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_so_it_is_with_a_model_that_paints(demo: Bundle, engine: str) -> None:
    follower = Follower()
    options = ServerOptions(batches=(1, 2, 4, 8), sizes=((128, 128),))
    rng = random.Random(13)
    with (
        Server(demo.folder, engine=engine, observe=follower, options=options, threads=1) as server,
        lssgen.load(demo.folder, engine=engine, threads=1) as pipeline,
    ):
        assert server.wait_ready(60)
        coming = [
            Arrival(
                after=rng.randrange(30),
                words=tuple(
                    {
                        "prompt": rng.choice(["a red star above a blue circle", "a green square"]),
                        "size": rng.choice([(128, 128), (128, 256), (256, 256)]),
                        "num_inference_steps": rng.randrange(5, 9),
                        "min_resolution": 64,
                        "guidance_scale": rng.choice([1.0, 3.0, 5.0]),
                        "seed": number,
                    }.items()
                ),
                n=rng.randrange(1, 3),
                leaves=rng.choice([None, None, 5]),
                hurry=rng.random() < 0.3,
            )
            for number in range(30)
        ]
        see(server, follower, pipeline, coming)
    assert max(follower.calls) == 8  # otherwise nothing was tried
