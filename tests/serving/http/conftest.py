"""Rooms, served."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom, as_server
from sites import Host, Site, serving
from toy_bundle import toy_in_stages

from lssgen.bundle import Bundle
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.server import Server


@pytest.fixture(scope="session")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, whose own transition is the one that it has."""
    return toy_in_stages(toy, tmp_path_factory.mktemp("served") / "toy")


@pytest.fixture(scope="session")
def _site(small: Bundle) -> Generator[Site]:
    metrics, room = Metrics(), FakeRoom(small)
    with serving(as_server(room), metrics) as opened:
        yield opened


@pytest.fixture
def site(_site: Site, room: FakeRoom) -> Site:
    """The room, served with everything left to its defaults."""
    del room
    return _site


@pytest.fixture
def room(_site: Site) -> Generator[FakeRoom]:
    """A room that paints at once, as new."""
    _site.room.reset()
    yield _site.room
    _site.room.hold.set()


@pytest.fixture
def host(room: FakeRoom) -> Host:
    """Serves the room: a context manager, which takes settings, limits and state."""

    def open_site(**choices: Any) -> Any:
        return serving(as_server(room), Metrics(), **choices)

    return open_site


@pytest.fixture(scope="session")
def painted(small: Bundle) -> Generator[Site]:
    """A real engine room with the toy bundle, served."""
    metrics = Metrics()
    with Server(small.folder, observe=metrics.observe, threads=1) as room:
        assert room.wait_ready(60)
        with serving(room, metrics) as opened:
            yield opened
