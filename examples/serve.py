"""A small service that paints: one bundle, one pipeline, requests that take turns.

    python examples/serve.py bundles/sd3 --engine tensorrt --size 1024

    curl -X POST localhost:8000/paint -d '{"prompt": "a lighthouse at dusk", "seed": 7}' -o lighthouse.png

POST /paint takes a JSON object with `prompt` and the words of WORDS, and answers with a PNG that carries its
parameters; a request that cannot be met gets status 400 and one line that says why. GET /health answers as soon as the
engines are loaded. A client that leaves stops its run within a step. Put a server with TLS and authentication in front.
"""

import argparse
import json
import select
import signal
import socket
import sys
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import BoundedSemaphore
from typing import cast

import lssgen
from lssgen.engines.registry import ENGINES
from lssgen.errors import EngineError, LssgenError
from lssgen.runtime import Options, Pipeline, Progress, Result
from lssgen.runtime.pictures import write_picture
from lssgen.runtime.record import parameters_of

WORDS = {
    "negative_prompt": str,
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": (int, float),
    "start_sigma": float,
}
"""What a request may choose besides its prompt, and of which type; the size is the one that was prepared for."""

LONGEST_REQUEST, LONGEST_WAIT_S = 64 * 1024, 30.0
MOST_STEPS = 100
MOST_WAITING = 8
"""Requests that may be painted or wait for it; more are turned away at once."""


class RefusedError(Exception):
    """A request that cannot be met; says why."""


class GoneError(Exception):
    """The client has left."""


class Service(ThreadingHTTPServer):
    """A server with a pipeline, which its threads share.

    Args:
        address: Host and port; port 0 takes a free one.
        pipeline: The pipeline; it is not closed with the server.
        size: (width, height) in pixels of every picture; None: the bundle's own.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], pipeline: Pipeline, size: tuple[int, int] | None = None) -> None:
        super().__init__(address, Handler)
        self.pipeline = pipeline
        self.fixed = Options() if size is None else Options(width=size[0], height=size[1])
        self.places = BoundedSemaphore(MOST_WAITING)

    def options(self, body: bytes) -> tuple[str, Options]:
        """Prompt and options of a request.

        Raises:
            RefusedError: It is not one.
        """
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedError(f"the request is not JSON: {error}") from error
        prompt = asked.pop("prompt", None) if isinstance(asked, dict) else None
        if not isinstance(prompt, str):
            raise RefusedError('send an object with a prompt: {"prompt": "a lighthouse at dusk"}')
        for word, value in asked.items():
            if word not in WORDS:
                raise RefusedError(f"{word!r} cannot be chosen here; there are {', '.join(WORDS)}")
            if not isinstance(value, WORDS[word]) or isinstance(value, bool):
                raise RefusedError(f"{word} is {value!r}, which is of the wrong type")
        if asked.get("num_inference_steps", 1) > MOST_STEPS:
            raise RefusedError(f"num_inference_steps is more than {MOST_STEPS}")
        return prompt, cast(Options, {**asked, **self.fixed})


class Handler(BaseHTTPRequestHandler):
    server: Service  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = LONGEST_WAIT_S

    def do_GET(self) -> None:
        found = self.path == "/health"
        self._answer(200 if found else 404, "text/plain", b"ready\n" if found else b"POST /paint or GET /health\n")

    def do_POST(self) -> None:
        if self.path != "/paint":
            self._answer(404, "text/plain", b"POST /paint or GET /health\n")
        elif not self.server.places.acquire(blocking=False):
            self._answer(503, "text/plain", b"too many requests wait; try again later\n")
        else:
            try:
                self._paint()
            finally:
                self.server.places.release()

    def _paint(self) -> None:
        try:
            prompt, options = self.server.options(self._body())
            result = self.server.pipeline(prompt, on_step=self._see_client, **options)
        except GoneError:
            self.close_connection = True
        except EngineError as error:
            self._answer(500, "text/plain", f"{error}\n".encode())
        except (RefusedError, LssgenError) as error:
            self._answer(400, "text/plain", f"{error}\n".encode())
        else:
            self._answer(200, "image/png", png(result))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST_REQUEST:
            raise RefusedError(f"send Content-Length, of at most {LONGEST_REQUEST} bytes")
        return self.rfile.read(int(length))

    def _see_client(self, progress: Progress) -> None:
        del progress
        readable, _, _ = select.select([self.connection], [], [], 0)
        if readable and not self.connection.recv(1, socket.MSG_PEEK):
            raise GoneError

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def png(result: Result) -> bytes:
    """The first picture as a file, marked as AI-generated, with its parameters."""
    picture = result.pictures[0]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        write_picture(picture.image, path, parameters_of(picture, result.request))
        return path.read_bytes()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--engine", choices=list(ENGINES), default="onnxruntime")
    parser.add_argument("--engines", type=Path, help="folder of compiled engines; default: LSSGEN_HOME/engines")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels; default: the bundle's own")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    words = {} if args.engines is None else {"engines": args.engines}
    size = (args.size, args.size) if args.size else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the first process of a container hears it only so
    try:
        with (
            lssgen.load(args.bundle, engine=args.engine, **words) as pipeline,
            Service((args.host, args.port), pipeline, size) as service,
        ):
            pipeline.prepare(**service.fixed)
            print(f"serving {args.bundle} on {args.host}:{service.server_address[1]}", file=sys.stderr, flush=True)
            service.serve_forever()
    except LssgenError as error:
        print(f"serve: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("serve: stopped", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
