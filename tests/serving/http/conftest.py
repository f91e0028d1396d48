"""An HTTP server on a socket of its own, around a room that a test controls."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fake_room import FakeRoom, as_server

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle
from lssgen.serving.http.host import app_of
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.running import Connections, HttpServer, address_of, open_socket, uvicorn_config
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.server import Server


@dataclass(frozen=True)
class Site:
    """A server that answers.

    Attributes:
        url: Its address.
        room: What paints.
        metrics: What it measures.
        http: A client.
    """

    url: str
    room: Any
    metrics: Metrics
    http: httpx2.Client


@contextmanager
def serving(
    room: Any,
    metrics: Metrics,
    *,
    settings: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    state: Path | None = None,
    tracer: Any = None,
) -> Generator[Site]:
    """Serve a room as the command does, but in a thread."""
    chosen = HttpSettings(**{"port": 0, "log": "off", "drain_seconds": 1.0, "ping_seconds": 0.2, **(settings or {})})
    connections = Connections()
    app = app_of(
        room,
        metrics,
        settings=chosen,
        limits=Limits(**(limits or {})),
        state=state,
        connections=connections,
        tracer=tracer,
    )
    with open_socket(chosen) as opened:
        server = HttpServer(uvicorn_config(app, connections, chosen))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server could not begin"
            time.sleep(0.005)
        url = address_of(opened)
        with httpx2.Client(base_url=url, timeout=30) as http:
            yield Site(url, room, metrics, http)
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle, whose own transition is the one that it has."""
    folder = tmp_path_factory.mktemp("served") / "toy"
    shutil.copytree(toy, folder)
    manifest = read_bundle(toy).manifest
    facts = replace(manifest.facts, defaults=replace(manifest.facts.defaults, scaling_space="latent"))
    (folder / MANIFEST).write_bytes(manifest_json(replace(manifest, facts=facts)))
    return read_bundle(folder)


@pytest.fixture
def room(small: Bundle) -> FakeRoom:
    """A room that paints at once."""
    return FakeRoom(small)


Host = Callable[..., Any]


@pytest.fixture
def host(room: FakeRoom) -> Host:
    """Serves the room: a context manager, which takes settings, limits and state."""

    def open_site(**choices: Any) -> Any:
        return serving(as_server(room), Metrics(), **choices)

    return open_site


@pytest.fixture
def site(host: Host) -> Generator[Site]:
    """That room, served with everything left to its defaults."""
    with host() as opened:
        yield opened


@pytest.fixture(scope="session")
def painted(small: Bundle) -> Generator[Site]:
    """A real engine room with the toy bundle, served."""
    metrics = Metrics()
    with Server(small.folder, observe=metrics.observe, threads=1) as room:
        assert room.wait_ready(60)
        with serving(room, metrics) as opened:
            yield opened
