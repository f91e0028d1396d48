"""What every request passes: its id, its origin, a limit on how many there are, the time to send, and its line."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lssgen.serving.http import logs
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.refusals import HttpError, stopping
from lssgen.serving.http.responses import error_answer

PIECE = 2**16
"""Bytes of a body that are sent at a time."""

_NO_ANSWER = 499

_REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_PAINTS = re.compile(r"/v1/(images|jobs)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """Who may come in by the browser of somebody else.

    Attributes:
        hosts: Names that a request may call the server by; empty: any. Where nobody needs a key, a web page could
            otherwise reach the server of whoever reads it, by a name of its own (DNS rebinding).
        origins: Origins of web pages that may ask, besides the server's own.
    """

    hosts: frozenset[str]
    origins: frozenset[str]

    def see(self, method: str, headers: Headers) -> None:
        """Raise HttpError where a request comes from somewhere else."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and _name(host) not in self.hosts:
            raise HttpError("forbidden_origin", f"this server is not called {host[:64]!r}; it is for its own machine")
        asks = method not in ("GET", "HEAD", "OPTIONS")
        if asks and origin and origin not in self.origins and urlsplit(origin).netloc != host:
            raise HttpError("forbidden_origin", f"web pages of {origin[:128]!r} may not ask this server")


def doors_of(host: str, *, keyed: bool, public_url: str, origins: tuple[str, ...]) -> Doors:
    """The doors of a server that listens at `host`."""
    named = {"localhost", "127.0.0.1", "::1", "testserver", host, urlsplit(public_url).hostname or host}
    return Doors(hosts=frozenset() if keyed or not is_loopback(host) else frozenset(named), origins=frozenset(origins))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """ "localhost" of "localhost:8000", "::1" of "[::1]:8000"."""
    return urlsplit(f"//{host}").hostname or ""


class Gate:
    """Middleware around the whole application.

    Args:
        app: What it is around.
        doors: Who may come in.
        limits: How many requests, and how slow their clients.
        metrics: Counts them.
        routes: Path of an endpoint as it is told in metrics and logs.
        abort: Ends the connection of a client, by its address.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        doors: Doors,
        limits: Limits,
        metrics: Metrics,
        routes: Mapping[object, str],
        abort: Callable[[Any], None],
    ) -> None:
        self._app = app
        self._doors = doors
        self._limits = limits
        self._metrics = metrics
        self._routes = routes
        self._abort = abort
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = name
        answer = _Answer(send, name, self._limits.send_seconds)
        began = time.perf_counter()
        counted = bool(_PAINTS.match(scope["path"])) and scope["method"] == "POST"
        self._open += counted
        try:
            self._see(scope, headers, counted)
            await self._app(scope, receive, answer.send)
        except HttpError as error:
            scope["state"]["refused"] = error.code
            await error_answer(error)(scope, receive, answer.send)
        except asyncio.CancelledError:  # the server stops, and the time that it gave to what was open is over
            if answer.status != _NO_ANSWER:
                raise
            error = stopping()
            scope["state"]["refused"] = error.code
            await error_answer(error)(scope, receive, answer.send)
        except SlowClientError:
            scope["state"]["refused"] = "client_too_slow"
            self._abort(scope.get("client"))
        finally:
            self._open -= counted
            self._note(scope, answer.status, time.perf_counter() - began)

    def _see(self, scope: Scope, headers: Headers, counted: bool) -> None:
        self._doors.see(scope["method"], headers)
        if counted and self._open > self._limits.max_requests:
            raise HttpError(
                "too_many_requests", f"{self._limits.max_requests} requests are open already", retry_after_ms=1000
            )

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = self._routes.get(scope.get("endpoint"), "other")
        state = scope["state"]
        self._metrics.answered(route, _method(scope), status, seconds, state.get("refused", ""))
        if route.startswith(("/health", "/metrics")):
            return
        logs.note(
            request=state["request_id"],
            method=scope["method"],
            route=route,
            status=status,
            milliseconds=round(1000 * seconds, 1),
            code=state.get("refused"),
            **state.get("noted", {}),
        )


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


class SlowClientError(Exception):
    """A client that does not take what it asked for."""


class _Answer:
    """Sends an answer, piece by piece, for no longer than a client may take.

    Attributes:
        status: HTTP status; 499 where the client went before there was one, as nginx logs it.
    """

    def __init__(self, send: Send, request_id: str, seconds: float) -> None:
        self._send = send
        self._request_id = request_id
        self._seconds = seconds
        self.status = _NO_ANSWER

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            headers.setdefault("x-content-type-options", "nosniff")
            await self._send(message)
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        for at in range(0, max(len(body), 1), PIECE):
            last = at + PIECE >= len(body)
            piece: Message = {**message, "body": body[at : at + PIECE], "more_body": more or not last}
            try:
                async with asyncio.timeout(self._seconds):
                    await self._send(piece)
            except TimeoutError as error:
                raise SlowClientError(f"the client took less than {PIECE} bytes in {self._seconds:g} s") from error
