"""examples/serve.py answers requests with pictures, refuses what makes no sense, and stops for a client that left."""

import json
import socket
import sys
from collections.abc import Generator
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from PIL import Image

import lssgen
from lssgen.bundle import Bundle

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import serve

FEW = {"num_inference_steps": 2}


@pytest.fixture
def service(demo: Bundle) -> Generator[serve.Service]:
    with lssgen.load(demo.folder, threads=1) as pipeline, serve.Service(("127.0.0.1", 0), pipeline) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _ask(server: serve.Service, method: str, path: str, body: bytes = b"") -> tuple[HTTPResponse, bytes]:
    host, port = server.server_address[:2]
    connection = HTTPConnection(str(host), port, timeout=60)
    connection.request(method, path, body)
    response = connection.getresponse()
    return response, response.read()


def test_a_prompt_becomes_a_picture_that_says_how_it_was_made(service: serve.Service) -> None:
    response, body = _ask(service, "POST", "/paint", json.dumps({"prompt": "a fox", "seed": 7, **FEW}).encode())
    assert response.status == 200, body
    picture = Image.open(BytesIO(body))
    assert picture.text["parameters"]  # pyright: ignore[reportAttributeAccessIssue]
    assert json.loads(picture.text["parameters"])["seed"] == 7  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 20_000, "not JSON"),
        (b'["a fox"]', "send an object with a prompt"),
        (b'{"prompt": 7}', "send an object with a prompt"),
        (b'{"prompt": "a fox", "sneed": 7}', "'sneed' cannot be chosen here"),
        (b'{"prompt": "a fox", "width": 4096}', "'width' cannot be chosen here"),
        (b'{"prompt": "a fox", "seed": "7"}', "wrong type"),
        (b'{"prompt": "a fox", "num_inference_steps": 1000}', "more than 100"),
        (b'{"prompt": "a fox", "start_sigma": 7.0}', "start_sigma"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(service: serve.Service, body: bytes, words: str) -> None:
    response, said = _ask(service, "POST", "/paint", body)
    assert response.status == 400
    assert words in said.decode()


def test_a_body_that_is_too_long_is_not_read(service: serve.Service) -> None:
    host, port = service.server_address[:2]
    connection = HTTPConnection(str(host), port, timeout=60)
    connection.request("POST", "/paint", headers={"Content-Length": str(2**40)})
    response = connection.getresponse()
    assert response.status == 400
    assert b"at most 65536 bytes" in response.read()


def test_it_says_when_it_is_ready_and_what_else_there_is(service: serve.Service) -> None:
    assert _ask(service, "GET", "/health")[0].status == 200
    assert _ask(service, "GET", "/")[0].status == 404
    assert _ask(service, "POST", "/health")[0].status == 404


def test_too_many_requests_are_turned_away(service: serve.Service) -> None:
    while service.places.acquire(blocking=False):
        pass
    assert _ask(service, "POST", "/paint", b'{"prompt": "a fox"}')[0].status == 503


def test_a_run_whose_client_has_left_is_stopped(service: serve.Service, monkeypatch: pytest.MonkeyPatch) -> None:
    painted, left, stopped = Event(), Event(), Event()
    see = serve.Handler._see_client

    def seen(handler: serve.Handler, progress: Any) -> None:
        painted.set()
        left.wait(60)
        try:
            see(handler, progress)
        except serve.GoneError:
            stopped.set()
            raise

    monkeypatch.setattr(serve.Handler, "_see_client", seen)
    body = b'{"prompt": "a fox", "num_inference_steps": 20}'
    with socket.create_connection(service.server_address[:2]) as client:
        client.sendall(b"POST /paint HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert painted.wait(60)
    left.set()
    assert stopped.wait(60)
    assert _ask(service, "POST", "/paint", json.dumps({"prompt": "a fox", **FEW}).encode())[0].status == 200
