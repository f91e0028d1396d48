"""An HTTP server on a socket of its own, around a room that a test controls."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from lssgen.serving.http.host import app_of
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.running import Connections, HttpServer, address_of, open_socket, uvicorn_config
from lssgen.serving.http.settings import HttpSettings

Host = Callable[..., Any]
"""Serves a room: gives a context manager, and takes settings, limits and state."""


@dataclass(frozen=True)
class Site:
    """A server that answers.

    Attributes:
        url: Its address.
        room: What paints.
        metrics: What it measures.
        http: A client.
        stop: Tells the server to stop, as a signal does.
    """

    url: str
    room: Any
    metrics: Metrics
    http: httpx2.Client
    stop: Callable[[], None]


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
    chosen = HttpSettings(**{"port": 0, "log": "off", "drain_seconds": 0.1, "ping_seconds": 0.2, **(settings or {})})
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
        server = HttpServer(uvicorn_config(app, connections, chosen), connections)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server could not begin"
            time.sleep(0.005)
        url = address_of(opened)
        with httpx2.Client(base_url=url, timeout=30) as http:
            yield Site(url, room, metrics, http, lambda: setattr(server, "should_exit", True))
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"
