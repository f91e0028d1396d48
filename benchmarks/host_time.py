"""What a step costs on the host, apart from the network: the loop over engines that do nothing.

    python benchmarks/host_time.py [--repeats 20] [--output host_time.json]

Also counts the buffers that a second run of the same shape makes; it should make none.
"""

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lssgen.engines.base import Binding, Buffer
from lssgen.models.aliases import ALIASES
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.testing import (
    FakeBackend,
    FakeEngine,
    FakeModel,
    Network,
    decode_network,
    fake_bundle,
    step_network,
    text_network,
    transition_network,
)


class IdleEngine(FakeEngine):
    """Its bindings do nothing; buffers are filled with zeros once."""

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        for buffer in buffers.values():
            buffer.write(np.zeros(buffer.shape, buffer.dtype))
        return lambda: None


class IdleBackend(FakeBackend):
    """Engines that do nothing."""

    def engine(self, name: str, network: Network) -> FakeEngine:
        return IdleEngine(name, network, self.calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd3")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    facts = ALIASES[args.model].facts()
    channels = facts.channels
    networks = {
        "text": text_network(),
        "step": step_network(_nothing, channels=channels),
        "transition_latent": transition_network(channels=channels),
        "decode": decode_network(channels=channels),
    }
    with tempfile.TemporaryDirectory() as folder:
        backend = IdleBackend(networks)
        pipeline = Pipeline(fake_bundle(Path(folder), FakeModel(facts=facts, networks=networks)), backend)
        pipeline("a", scaling_space="latent")
        made = backend.buffers
        steps: list[float] = []
        runs: list[float] = []
        for _ in range(args.repeats):
            began = perf_counter()
            (times,) = pipeline("a", scaling_space="latent").times
            runs.append(perf_counter() - began)
            steps += [step for stage in times.stages for step in stage.steps]
    report = {
        "machine": platform.platform(),
        "model": args.model,
        "steps_per_run": len(steps) // args.repeats,
        "microseconds_per_step": {
            "median": 1e6 * statistics.median(steps),
            "p99": 1e6 * float(np.quantile(steps, 0.99)),
        },
        "milliseconds_per_run": 1e3 * statistics.median(runs),
        "buffers_made_by_later_runs": backend.buffers - made,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


def _nothing(ask: Any) -> Array:
    return ask.u


if __name__ == "__main__":
    main()
