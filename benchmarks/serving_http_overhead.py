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
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

import lssgen
from benchmarks.serving_overhead import IdleBackend
from lssgen.models.aliases import ALIASES
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.serving.http.host import app_of
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.running import Connections, HttpServer, address_of, open_socket, uvicorn_config
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.status import Observation
from lssgen.testing import FakeModel, decode_network, fake_bundle, step_network, text_network, transition_network


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
        server = HttpServer(uvicorn_config(app, connections, settings))
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


def measured(batch: int, ask: Callable[[Server, Metrics], None]) -> dict[str, Any]:
    """Times between engine calls of full batches, while somebody asks."""
    facts = ALIASES["sd3"].facts()
    channels = facts.channels
    networks = {
        "text": text_network(),
        "step": step_network(lambda ask: ask.u, channels=channels),
        "transition_resnet": transition_network(channels=channels),
        "decode": decode_network(channels=channels),
    }
    metrics = Metrics()
    calls: list[tuple[float, int]] = []

    def observe(seen: Observation) -> None:
        metrics.observe(seen)
        if seen.kind == "step":
            calls.append((time.perf_counter(), seen.rows))

    with tempfile.TemporaryDirectory() as folder:
        bundle = fake_bundle(Path(folder) / "sd3", FakeModel(facts=facts, networks=networks))
        options = ServerOptions(batches=(batch,), most_requests=10_000, most_queued_pixels=10**15)
        backend: Any = IdleBackend(networks)
        with lssgen.Server(bundle.folder, engine=backend, verify="never", options=options, observe=observe) as room:
            room.wait_ready()
            calls.clear()
            began = time.perf_counter()
            ask(room, metrics)
            seconds = time.perf_counter() - began
    gaps = [1e6 * (later - at) for (at, rows), (later, after) in pairwise(calls) if rows == after == batch]
    return {
        "full_batches": len(gaps),
        "calls": len(calls),
        "seconds": round(seconds, 2),
        "microseconds_per_step": {
            "median": round(statistics.median(gaps), 1),
            "p90": round(float(np.quantile(gaps, 0.9)), 1),
            "p99": round(float(np.quantile(gaps, 0.99)), 1),
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    body = {"prompt": "a lighthouse at dusk", "size": args.size, "num_inference_steps": args.steps}
    at_once = 2 * args.batch
    report: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "batch": args.batch,
        "requests": args.requests,
        "steps": args.steps,
        "size": args.size,
        "python_only": measured(args.batch, lambda room, _: by_python(room, args.requests, at_once, body)),
        "http": measured(args.batch, lambda room, metrics: by_http(room, metrics, args.requests, at_once, body)),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
