"""Continuous batching against other ways to serve the same requests, and how small pictures fare beside large ones.

    python benchmarks/serving_throughput.py --requests 48 --rounds 3 --output results.json

The demo model, on the CPU unless `--engine` names another place. Every round serves the same requests, of two sizes
and three numbers of steps, in turn by

    one       one request after another, by a pipeline
    static    batches of requests that want the same, formed in the order of arrival, by a pipeline
    server    the server: all that are of one size, whatever their steps
    whole     the server, every picture in one stage at its full size

and results are ratios within the round. On a CPU with few cores a batch computes hardly faster than its pictures one
by one; so what a device with room gains is told by the engine calls of steps, too. Fairness: large pictures are painted
when small ones come; how long each class takes, by the policy "share" and by plain "age".
"""

import argparse
import json
import platform
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

import lssgen
from lssgen.demo import write_demo_bundle
from lssgen.machine import cpus
from lssgen.runtime import Options, Pipeline
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.serving.options import Rank

PROMPTS = ("a red star above a blue circle on a white background", "a green square", "a yellow ring left of a star")
SIZES, STEPS = (128, 256), (6, 8, 10)
BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Served:
    """What serving some requests took."""

    seconds: float
    calls: int
    steps: int


def requests(count: int, seed: int) -> list[Options]:
    rng = random.Random(seed)
    return [
        Options(
            height=(side := rng.choice(SIZES)),
            width=side,
            num_inference_steps=rng.choice(STEPS),
            min_resolution=128,
            seed=number,
        )
        for number in range(count)
    ]


def one_after_another(pipeline: Pipeline, asked: Sequence[Options]) -> Served:
    began, steps = monotonic(), 0
    for options in asked:
        steps += pipeline(prompt_of(options), **options).plan.evaluations
    return Served(monotonic() - began, steps, steps)


def in_static_batches(pipeline: Pipeline, asked: Sequence[Options], most: int) -> Served:
    """Requests wait for others that want the same, up to a full batch; the rest goes at the end."""
    began, calls, steps = monotonic(), 0, 0
    open_batches: dict[Any, list[Options]] = defaultdict(list)
    for number, options in enumerate(asked):
        key = (options.get("height"), options.get("num_inference_steps"))
        open_batches[key].append(options)
        last = number == len(asked) - 1
        for batch in list(open_batches.values()) if last else [open_batches[key]]:
            if len(batch) == most or (last and batch):
                words: Any = {**batch[0], "seed": 0}
                result = pipeline([prompt_of(one) for one in batch], batch=len(batch), **words)
                calls += result.plan.evaluations
                steps += result.plan.evaluations * len(batch)
                batch.clear()
    return Served(monotonic() - began, calls, steps)


def by_server(server: Server, asked: Sequence[Options], **also: Any) -> Served:
    before, began = server.stats(), monotonic()
    tickets = [
        server.submit(ImageRequest(prompt=prompt_of(options), options=Options(**{**options, **also})))
        for options in asked
    ]
    for ticket in tickets:
        ticket.result()
    after = server.stats()
    return Served(monotonic() - began, after.calls - before.calls, after.steps - before.steps)


def prompt_of(options: Options) -> str:
    return PROMPTS[options.get("seed", 0) % len(PROMPTS)]


def fairness(folder: Path, order: tuple[Rank, ...], args: argparse.Namespace) -> dict[str, Any]:
    """Latencies of small pictures that come while large ones are painted, and of these."""
    options = ServerOptions(batches=tuple(args.batches), sizes=((128, 128), (256, 256)), order=order)
    with lssgen.Server(folder, options=options, engine=args.engine, threads=args.threads) as server:
        server.wait_ready()
        large = [submitted(server, 256, 12, seed) for seed in range(4)]
        small: list[Any] = []
        for seed in range(8):
            sleep(0.1)
            small.append(submitted(server, 128, 6, seed))
        took = {name: [ticket.result().timings.total for ticket in each] for name, each in
                (("large", large), ("small", small))}  # fmt: skip
    return {name: {"median_s": statistics.median(seconds), "largest_s": max(seconds)} for name, seconds in took.items()}


def submitted(server: Server, side: int, steps: int, seed: int) -> Any:
    options = Options(height=side, width=side, num_inference_steps=steps, min_resolution=128, seed=seed)
    return server.submit(ImageRequest(prompt=PROMPTS[0], options=options))


def measured(folder: Path, args: argparse.Namespace) -> dict[str, list[Served]]:
    found: dict[str, list[Served]] = defaultdict(list)
    options = ServerOptions(batches=tuple(args.batches), sizes=tuple((side, side) for side in SIZES))
    with (
        lssgen.load(folder, engine=args.engine, threads=args.threads) as pipeline,
        lssgen.Server(folder, options=options, engine=args.engine, threads=args.threads) as server,
    ):
        server.wait_ready()
        ways: dict[str, Callable[[Sequence[Options]], Served]] = {
            "one": lambda asked: one_after_another(pipeline, asked),
            "static": lambda asked: in_static_batches(pipeline, asked, max(args.batches)),
            "server": lambda asked: by_server(server, asked),
            "whole": lambda asked: by_server(server, asked, start_sigma=1.0),
        }
        for serve in ways.values():  # everything is set up once before it counts
            serve(requests(12, 0))
        for number in range(args.rounds):
            asked = requests(args.requests, number + 1)
            for way, serve in ways.items():
                found[way].append(serve(asked))
                print(f"round {number + 1}: {way} {found[way][-1]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime")
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batches that the server forms")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "demo"
        write_demo_bundle(folder)
        found = measured(folder, args)
        classes = {
            " ".join(order): fairness(folder, order, args)
            for order in (("deadline", "share", "age"), ("deadline", "age"))
        }
    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {cpus()} CPUs",
        "engine": args.engine,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "lssgen": lssgen.__version__,
        "precision": "fp32",
        "threads": args.threads,
        "requests_a_round": args.requests,
        "rounds": args.rounds,
        "sizes_px": SIZES,
        "steps": STEPS,
        "batches": args.batches,
        "time_of_one_over_this": {
            way: statistics.median(one.seconds / this.seconds for one, this in zip(found["one"], each, strict=True))
            for way, each in found.items()
        },
        "pictures_a_second": {
            way: statistics.median(args.requests / this.seconds for this in each) for way, each in found.items()
        },
        "pictures_a_call": {
            way: sum(one.steps for one in each) / sum(one.calls for one in each) for way, each in found.items()
        },
        "latency_by_class": classes,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
