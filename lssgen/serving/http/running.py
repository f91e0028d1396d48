"""The process around the application: its socket, its signals, its end."""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from lssgen.errors import LssgenError, ServingError
from lssgen.serving.http.gate import is_loopback
from lssgen.serving.http.settings import HttpSettings

_LOG = logging.getLogger("lssgen.serve")

HEAD_SECONDS = 20.0
"""Time in which a new connection must have sent the head of a request."""

MOST_CONNECTIONS = 8192
"""Connections that the system holds for a server that is busy."""


def open_socket(settings: HttpSettings) -> socket.socket:
    """The socket to listen at, before anything is loaded.

    Raises:
        ServingError: The port is taken, or the address is not this machine's.
    """
    where = f"port {settings.port} of {settings.host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _listening(socket.socket(family, kind, protocol), address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ServingError(
                f"{where} is taken; stop what listens there, or choose another one with --port"
            ) from error
        raise ServingError(
            f"cannot listen at {where}: {error.strerror}; choose others with --host and --port"
        ) from error


def _listening(opened: socket.socket, address: Any) -> socket.socket:
    """A second server of the same port is refused now, not when it would answer."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(MOST_CONNECTIONS)
    except OSError:
        opened.close()
        raise
    return opened


def address_of(opened: socket.socket) -> str:
    """The address of a socket, for people."""
    host, port = cast(tuple[Any, ...], opened.getsockname())[:2]
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}"


def see_who_may_ask(settings: HttpSettings) -> None:
    """Say it where everybody may."""
    if settings.api_keys is not None:
        return
    if is_loopback(settings.host):
        _LOG.info("no API keys: every program of this machine may ask; --api-keys FILE changes that")
    else:
        _LOG.warning("no API keys: whoever reaches %s may ask; give --api-keys FILE", settings.host)


class Connections:
    """The connections that are open, by their clients' addresses.

    Attributes:
        told: Moment at which the server was told to stop, on the clock of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.told: float | None = None
        self._open: dict[Any, asyncio.Transport] = {}

    def time_left(self, seconds: float) -> float:
        """What is left of so many seconds since the server was told to stop."""
        return seconds if self.told is None else max(0.0, self.told + seconds - time.monotonic())

    def abort(self, client: Any) -> None:
        """End a connection at once, whatever was to be sent."""
        if (transport := self._open.get(client and tuple(client))) is not None:
            transport.abort()

    def protocol(self) -> type[H11Protocol]:
        """Uvicorn's protocol, with connections that are known here, and that end where no request comes.

        Uvicorn waits for ever for the first request of a connection.
        """
        known = self._open

        class Protocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                self._place = self.client and tuple(self.client)
                known[self._place] = transport
                self._late = asyncio.get_running_loop().call_later(HEAD_SECONDS, self._see_head)

            def connection_lost(self, exc: Exception | None) -> None:
                self._late.cancel()
                known.pop(self._place, None)
                super().connection_lost(exc)

            def _see_head(self) -> None:
                if cast(Any, self.scope) is None and not self.transport.is_closing():
                    self.transport.abort()

        return Protocol


class HttpServer(uvicorn.Server):
    """Uvicorn, which ends well when it is told to stop: its own way is to raise the signal again.

    Args:
        config: Uvicorn's.
        connections: Learn when it stops.

    Attributes:
        told: Signals that came.
    """

    told: list[int]

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._connections.told = time.monotonic()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        self.told = []
        before: dict[int, Any] = {}
        main = threading.current_thread() is threading.main_thread()  # only it may listen to signals
        for name in ("SIGINT", "SIGTERM", "SIGHUP") if main else ():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        del frame
        self.told.append(number)
        if len(self.told) > 1 and number == signal.SIGINT:
            os.write(2, b"lssgen serve: stopped at once\n")
            os._exit(128 + number)
        if not self.should_exit:
            os.write(2, b"lssgen serve: stopping; what is open may end, a second Ctrl-C does not wait for it\n")
        self.should_exit = True


def serve_app(
    app: ASGIApp,
    opened: socket.socket,
    connections: Connections,
    settings: HttpSettings,
    wait_ready: Callable[[], object],
) -> None:
    """Serve until told to stop, and until what is open then has ended, or its time has.

    Args:
        app, opened, connections, settings: What to serve, and how.
        wait_ready: Returns when the engine room is ready; raises where it will not be.

    Raises:
        ServingError: The application could not begin.
        LssgenError: The engine room cannot become ready.
    """
    server = HttpServer(uvicorn_config(app, connections, settings), connections)
    quiet = logging.getLogger("uvicorn.error")
    quiet.setLevel(logging.ERROR)
    quiet.propagate = False
    if not quiet.handlers:
        quiet.addHandler(logging.StreamHandler(sys.stderr))
    failed: list[LssgenError] = []

    def watch() -> None:
        began = time.monotonic()
        try:
            if wait_ready():
                _LOG.info("ready after %.1f s", time.monotonic() - began)
        except LssgenError as error:
            failed.append(error)
            server.should_exit = True

    threading.Thread(target=watch, name="ready", daemon=True).start()
    asyncio.run(server.serve(sockets=[opened]))
    if failed:
        raise failed[0]
    if not server.started:
        raise ServingError("the server could not begin; the lines above say why")


def uvicorn_config(app: ASGIApp, connections: Connections, settings: HttpSettings) -> uvicorn.Config:
    """Uvicorn's settings."""
    return uvicorn.Config(
        app,
        http=connections.protocol(),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )
