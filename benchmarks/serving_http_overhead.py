"""What HTTP and the scheduler cost together: microseconds of the host a step of a full batch, on idle engines.

    python -m benchmarks.serving_http_overhead --batch 8 --output benchmarks/results/serving_http_overhead.json

The server of `benchmarks/serving_overhead.py` with the whole HTTP application in its process, as `lssgen serve` runs
it; clients in a process of their own keep two batches of requests open. What is counted is the time from one engine
call to the next where both have full batches, and, for the share of HTTP, the same with requests from Python instead.
"""

import argparse
import asyncio
import json
import multiprocessing
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.idle_room import MACHINE, measured
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, Server
from lssgen.serving.http.host import app_of
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.running import Connections, HttpServer, address_of, open_socket, uvicorn_config
from lssgen.serving.http.settings import HttpSettings


def clients(url: str, count: int, open_at_once: int, body: dict[str, Any]) -> None:
    """Post so many requests, so many at a time."""

    async def work(numbers: list[int], client: httpx2.AsyncClient) -> None:
        while numbers:
            answer = await client.post("/v1/images/generations", json={**body, "seed": numbers.pop()})
            answer.raise_for_status()

    async def all_of_them() -> None:
        limits = httpx2.Limits(max_connections=open_at_once)
        async with httpx2.AsyncClient(base_url=url, limits=limits, timeout=300) as client:
            numbers = list(range(count))
            await asyncio.gather(*(work(numbers, client) for _ in range(open_at_once)))

    asyncio.run(all_of_them())


def by_http(room: Server, metrics: Metrics, count: int, open_at_once: int, body: dict[str, Any]) -> None:
    """The requests, by HTTP, from a process of their own."""
    settings, connections = HttpSettings(port=0, log="off", drain_seconds=5), Connections()
    app = app_of(room, metrics, settings=settings, connections=connections)
    with open_socket(settings) as opened:
        server = HttpServer(uvicorn_config(app, connections, settings), connections)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[opened])))
        thread.start()
        process = multiprocessing.get_context("spawn").Process(
            target=clients, args=(address_of(opened), count, open_at_once, body)
        )
        process.start()
        process.join()
        server.should_exit = True
        thread.join()
        assert process.exitcode == 0, "the clients failed"


def by_python(room: Server, count: int, open_at_once: int, body: dict[str, Any]) -> None:
    """The same requests from threads of this process."""
    width, height = (int(side) for side in body["size"].split("x"))
    numbers = list(range(count))

    def work() -> None:
        while numbers:
            options = Options(width=width, height=height, num_inference_steps=body["num_inference_steps"])
            room.submit(ImageRequest(prompt=body["prompt"], options={**options, "seed": numbers.pop()})).result()

    threads = [threading.Thread(target=work) for _ in range(open_at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    body = {"prompt": "a lighthouse at dusk", "size": args.size, "num_inference_steps": args.steps}
    at_once, metrics = 2 * args.batch, Metrics()
    report: dict[str, Any] = {
        **MACHINE,
        "batch": args.batch,
        "requests": args.requests,
        "steps": args.steps,
        "size": args.size,
        "python_only": measured(
            "sd3", args.batch, lambda room: by_python(room, args.requests, at_once, body), metrics.observe
        ),
        "http": measured(
            "sd3", args.batch, lambda room: by_http(room, metrics, args.requests, at_once, body), metrics.observe
        ),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
