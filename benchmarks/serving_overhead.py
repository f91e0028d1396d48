"""What the server costs beside the device: microseconds of the host a step of a full batch, on engines that do nothing.

    python benchmarks/serving_overhead.py --model sd3 --batch 8 --output results.json

Buffers do not copy and networks do not run, so what is left is the scheduler: its turn, the numbers of every row, the
marks, and an event for every picture. Requests of the model's default size come in pairs of batches, so that rows are
full all the time and pictures join and leave.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import lssgen
from lssgen.models.aliases import ALIASES
from lssgen.ports import Array
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, ServerOptions
from lssgen.serving.api import Event, Progress
from lssgen.serving.status import Observation
from lssgen.testing import (
    FakeBackend,
    FakeBuffer,
    FakeEngine,
    FakeModel,
    Network,
    decode_network,
    fake_bundle,
    step_network,
    text_network,
    transition_network,
)


class IdleBuffer(FakeBuffer):
    """A buffer that keeps its shape and nothing else."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        super().__init__((1,), dtype)
        self._shape = tuple(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def write(self, value: Array) -> None:
        pass

    def read(self) -> Array:
        return np.broadcast_to(np.zeros(1, self.dtype), self._shape)

    def write_part(self, first: int, values: Array) -> None:
        pass

    def read_part(self, first: int, count: int) -> Array:
        del first
        return np.zeros(count, self.dtype)


class IdleEngine(FakeEngine):
    def bind(self, buffers: Mapping[str, Any]) -> Any:
        del buffers
        return lambda: None


class IdleBackend(FakeBackend):
    """Does nothing, at once."""

    def empty(self, shape: Sequence[int], dtype: Any) -> IdleBuffer:
        return IdleBuffer(shape, dtype)

    def engine(self, name: str, network: Network) -> FakeEngine:
        return IdleEngine(name, network, self.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd3")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="batches of requests")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    facts = ALIASES[args.model].facts()
    channels = facts.channels
    networks = {
        "text": text_network(),
        "step": step_network(lambda ask: ask.u, channels=channels),
        "transition_resnet": transition_network(channels=channels),
        "decode": decode_network(channels=channels),
    }
    calls: list[tuple[float, int]] = []

    def observe(seen: Observation) -> None:
        if seen.kind == "step":
            calls.append((perf_counter(), seen.rows))

    told = 0

    def hear(event: Event) -> None:
        nonlocal told
        told += isinstance(event, Progress)

    with tempfile.TemporaryDirectory() as folder:
        bundle = fake_bundle(Path(folder) / args.model, FakeModel(facts=facts, networks=networks))
        options = ServerOptions(
            batches=(args.batch,), most_requests=10_000, most_queued_pixels=10**15, most_pictures=100
        )
        with lssgen.Server(
            bundle.folder, engine=IdleBackend(networks), verify="never", options=options, observe=observe
        ) as server:
            server.wait_ready()
            words = Options(num_inference_steps=args.steps)
            began = perf_counter()
            asked = [
                ImageRequest(prompt="a", options={**words, "seed": seed}) for seed in range(args.rounds * args.batch)
            ]
            tickets = [server.submit(request, hear) for request in asked]
            submitted = perf_counter() - began
            for ticket in tickets:
                ticket.result()
    gaps = [
        1e6 * (later - earlier) for (earlier, rows), (later, after) in pairwise(calls) if rows == after == args.batch
    ]
    report = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "model": args.model,
        "batch": args.batch,
        "steps_of_a_full_batch": len(gaps),
        "events_heard": told,
        "microseconds_per_step": {
            "median": statistics.median(gaps),
            "p90": float(np.quantile(gaps, 0.9)),
            "p99": float(np.quantile(gaps, 0.99)),
        },
        "milliseconds_to_submit": 1e3 * submitted / len(tickets),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
