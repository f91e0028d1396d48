"""Bodies of requests: no larger, no slower and no stranger than allowed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lssgen.serving.http.inputs import Upload
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.refusals import HttpError

MOST_FIELDS, MOST_FILES = 64, 17
"""Fields and files of a form: sixteen pictures and a mask."""

MOST_TEXT = 2**17
"""Bytes of a field of a form that is text."""

DISCARDED_MB = 64
"""Part of a body that is too large which is read all the same, in 2^20 bytes, so that its sender reads the answer."""


@dataclass(slots=True)
class Bodies:
    """Reads bodies, so many bytes at a time at most.

    Attributes:
        limits: Limits of the server.
        relayed: True behind a proxy that sends a request to another process when the first one dies, without its body.
        held: Bytes of bodies that are being read.
    """

    limits: Limits
    relayed: bool = False
    held: int = 0

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises:
            HttpError: It is too large, or does not come.
            ClientDisconnect: The client went.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.max_body:
            await _discard(request)
            raise self._too_large(f"{int(length):,}")
        parts: list[bytes] = []
        taken = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    taken += len(part)
                    self._hold(len(part))
                    if taken > self.limits.max_body:
                        await _discard(request)
                        raise self._too_large(f"more than {self.limits.max_body:,}")
                    parts.append(part)
        except TimeoutError as error:
            if self.relayed and not taken:
                message = "the process that had the request has died; send it again"
                raise HttpError("body_lost", message, retry_after_ms=100) from error
            seconds = self.limits.body_seconds
            raise HttpError("body_too_slow", f"the body has not come within {seconds:g} s ({taken:,} bytes)") from error
        finally:
            self.held -= taken
        return b"".join(parts)

    def _hold(self, size: int) -> None:
        self.held += size
        if self.held > 16 * self.limits.max_body:
            raise HttpError("too_many_requests", "too many large bodies are being sent", retry_after_ms=2000)

    def _too_large(self, size: str) -> HttpError:
        return HttpError(
            "body_too_large",
            f"the body has {size} bytes; up to {self.limits.max_body:,} are taken ({self.limits.max_body_mb} MiB)",
        )


async def _discard(request: Request) -> None:
    """Read on for a while, and keep nothing: who is cut off while sending does not see the answer."""
    left = DISCARDED_MB * 2**20
    with suppress(TimeoutError, ClientDisconnect, RuntimeError):  # the last: its stream was begun, and goes on
        async with asyncio.timeout(5):
            while left > 0:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                left -= len(message.get("body", b""))


@dataclass(frozen=True, slots=True)
class Form:
    """A form with files.

    Attributes:
        values: Its text, by field.
        images: Files of the fields "image" and "image[]", in their order.
        mask: File of the field "mask".
    """

    values: dict[str, str]
    images: tuple[Upload, ...]
    mask: Upload | None


async def form_of(request: Request, body: bytes) -> Form:
    """Take a form apart.

    Raises:
        HttpError: It is not one, or has a field twice, or files in fields that do not hold pictures.
    """

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    try:
        parser = MultiPartParser(
            request.headers, stream(), max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=MOST_TEXT
        )
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, UnicodeError) as error:  # no boundary is a KeyError
        said = getattr(error, "message", "") or "it has no boundary, or names that are not text"
        raise HttpError("invalid_form", f"the body is not a form: {said}") from error
    values: dict[str, str] = {}
    images: list[Upload] = []
    mask: Upload | None = None
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                upload = Upload(name, await value.read())
                if name in ("image", "image[]"):
                    images.append(upload)
                elif name == "mask" and mask is None:
                    mask = upload
                else:
                    raise HttpError(
                        "unknown_field", f"a file in {name[:64]!r}; there are image and mask", param=name[:64]
                    )
            elif name in values:
                raise HttpError("invalid_form", f"{name[:64]} was given twice", param=name[:64])
            else:
                values[name] = value
    finally:
        await form.close()
    return Form(values, tuple(images), mask)
