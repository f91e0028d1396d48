"""Answers on the wire: JSON, errors, streams of events, and asking who went away."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lssgen.serving.http.refusals import HttpError, stopping

STREAM_HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))


def json_answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_answer(error: HttpError) -> Response:
    """A refusal, with the headers that tell a client whether to try again."""
    return json_answer(error.body(), error.kind.status, error.headers())


async def client_went(request: Request) -> None:
    """Until the client has gone. For after its body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def sse(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


class EventStream(Response):
    """Server-sent events, for as long as the client is there.

    Args:
        events: Whole events, or comments, as bytes.
        closed: Called when the stream has ended, however it did.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], closed: Callable[[], None]) -> None:
        super().__init__()
        self._events = events
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        writer = asyncio.ensure_future(self._write(send))
        watcher = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        except asyncio.CancelledError:  # the server stops, and the time that it gave to what was open is over
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            await send({"type": "http.response.body", "body": sse("error", stopping().body())})
        finally:
            for task in (writer, watcher):
                task.cancel()
            await asyncio.gather(writer, watcher, return_exceptions=True)
            self._closed()

    async def _write(self, send: Send) -> None:
        headers = [*STREAM_HEADERS, (b"x-accel-buffering", b"no")]  # nginx would hold the events back
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _until_disconnect(receive: Receive) -> None:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return


async def first_of(request: Request, ended: Any) -> bool:
    """Wait for something, or for the client to go; whether it was the former."""
    waiting = asyncio.ensure_future(ended)
    going = asyncio.ensure_future(client_went(request))
    try:
        await asyncio.wait({waiting, going}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.done()
    finally:
        for task in (waiting, going):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
