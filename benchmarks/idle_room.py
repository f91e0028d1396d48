"""A server whose engines do nothing: what is left between two of its engine calls is what the host does."""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import lssgen
from lssgen.bench.idle import IdleBackend
from lssgen.models.aliases import ALIASES
from lssgen.serving import Server, ServerOptions
from lssgen.serving.status import Observation, Observe
from lssgen.testing import FakeModel, decode_network, fake_bundle, step_network, text_network, transition_network

MACHINE = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}


def measured(
    model: str, batch: int, ask: Callable[[Server], None], observe: Observe = lambda _: None
) -> dict[str, Any]:
    """Microseconds from one engine call to the next where both have full batches, while somebody asks.

    Args:
        model: Alias of a published model, whose plans are carried out.
        batch: Pictures of a full batch.
        ask: Sends requests, and waits for them.
        observe: Hears what the server measures, as the owner of one would.
    """
    facts = ALIASES[model].facts()
    networks = {
        "text": text_network(),
        "step": step_network(lambda ask: ask.u, channels=facts.channels),
        "transition_resnet": transition_network(channels=facts.channels),
        "decode": decode_network(channels=facts.channels),
    }
    calls: list[tuple[float, int]] = []

    def hear(seen: Observation) -> None:
        observe(seen)
        if seen.kind == "step":
            calls.append((time.perf_counter(), seen.rows))

    options = ServerOptions(batches=(batch,), most_requests=10_000, most_queued_pixels=10**15)
    with tempfile.TemporaryDirectory() as folder:
        bundle = fake_bundle(Path(folder) / model, FakeModel(facts=facts, networks=networks)).folder
        with lssgen.Server(bundle, engine=IdleBackend(), verify="never", options=options, observe=hear) as room:
            room.wait_ready()
            calls.clear()
            began = time.perf_counter()
            ask(room)
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
