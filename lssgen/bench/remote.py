"""A server that speaks OpenAI's Images API, as something that paints: one request a picture, over HTTP."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec

from lssgen.bench.loadgen import Answered
from lssgen.errors import BenchError

PATH = "/v1/images/generations"
KEY = "OPENAI_API_KEY"
"""Variable of the environment that holds the key, as for OpenAI's own client."""

MOST_OPEN = 256
"""Requests that are open at a time. More wait here, and their wait counts, as it would in a client's own queue."""

TIMEOUT_S = 600.0
"""Seconds without a byte after which a request is given up, as OpenAI's own client does."""


class Site:
    """A server, and the threads that wait for its answers.

    Args:
        url: Its address: "http://127.0.0.1:8000".
        words: Fields of every request besides its prompt: model, n, size, seed, ...

    Raises:
        BenchError: It is not an address.
    """

    def __init__(self, url: str, words: Mapping[str, Any]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise BenchError(f"{url[:80]!r} is not an address; write one such as http://127.0.0.1:8000")
        self._url = url.rstrip("/") + ("" if parts.path.rstrip("/").endswith(PATH) else PATH)
        self._words = dict(words)
        self._threads = ThreadPoolExecutor(MOST_OPEN, thread_name_prefix="lssgen-request")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(cancel_futures=True)

    def send(self, prompt: str, answered: Answered) -> None:
        """Ask for a picture and return at once."""

        def ask() -> None:
            try:
                self.paint(prompt)
            except Exception as error:  # whatever it is, the one who waits shall hear of it
                answered(error)
            else:
                answered(None)

        self._threads.submit(ask)

    def paint(self, prompt: str) -> None:
        """Ask for a picture and wait for it.

        Raises:
            BenchError: The server is not there, refuses, or answers with something else.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        body = msgspec.json.encode({"prompt": prompt, "response_format": "b64_json", **self._words})
        try:
            with urlopen(Request(self._url, body, headers), timeout=TIMEOUT_S) as answer:
                found = msgspec.json.decode(answer.read())
        except HTTPError as error:
            raise BenchError(f"{self._url} answers {error.code}: {_message(error.read())}") from error
        except (URLError, OSError, HTTPException) as error:
            raise BenchError(f"{self._url} does not answer: {getattr(error, 'reason', error)}") from error
        except msgspec.DecodeError as error:
            raise BenchError(f"{self._url} answers with no JSON: is it a server of images?") from error
        if not (isinstance(found, dict) and found.get("data")):
            raise BenchError(f"{self._url} answers without a picture")


def fields_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a run as fields of a request: height and width become OpenAI's `size`.

    Raises:
        BenchError: One of the two without the other.
    """
    words = dict(options)
    height, width = words.pop("height", None), words.pop("width", None)
    if (height is None) != (width is None):
        raise BenchError("a server is told both sides of a picture or none; give height and width")
    return words if height is None else {**words, "size": f"{width}x{height}"}


def _message(body: bytes) -> str:
    """The words of an error as OpenAI writes it, or whatever came."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])[:300]
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace")[:300]
