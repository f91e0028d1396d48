"""Where the time of a step goes on OpenVINO, by kind of operation, and how much arithmetic a second it does.

    python -m benchmarks.cpu.profile --work DIR [--models demo sd3-123m] [--size 256] [--threads 1]

OpenVINO's own clock for every operation gives the shares; the arithmetic a second is that of a call without it. Shares
hardly depend on what else the machine does. Results go to benchmarks/results/cpu_profile.json.
"""

import argparse
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import openvino as ov

from benchmarks.cpu.models import SIZES, bundle_of
from benchmarks.cpu.trials import inputs_of
from benchmarks.cpu.turns import clock_of, conditions
from benchmarks.saving import save
from lssgen.bundle import Bundle
from lssgen.engines.demand import branch_counts
from lssgen.plan.timing import step_work

RESULTS = Path(__file__).parents[1] / "results" / "cpu_profile.json"

KINDS = {
    "FullyConnected": "products", "MatMul": "products", "Convolution": "products",
    "Transpose": "moves", "Reorder": "moves", "Concat": "moves", "Split": "moves", "VariadicSplit": "moves",
}  # fmt: skip
"""Kind of an operation, by OpenVINO's name of its type; every other is "rest", fused attention among them."""


def compiled(bundle: Bundle, inputs: dict[str, Any], form: str, threads: int, *, counted: bool) -> Any:
    """A request for the step in a number format."""
    core = ov.Core()
    model = core.read_model(str(bundle.path(bundle.manifest.graphs["step"].file)))
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": form, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    settings |= {"PERF_COUNT": True} if counted else {}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    return core.compile_model(model, "CPU", settings).create_infer_request()


def shares_of(request: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Share of each kind in the last of three calls."""
    for _ in range(3):
        request.infer(inputs)
    spent: Counter[str] = Counter()
    for one in request.profiling_info:
        spent[KINDS.get(one.node_type, "rest")] += one.cpu_time.total_seconds()
    return {kind: spent[kind] / spent.total() for kind in ("products", "rest", "moves")}


def seconds_of(request: Any, inputs: dict[str, Any], clock: str) -> float:
    """Median of a call's time."""
    read = process_time if clock == "cpu" else perf_counter
    times: list[float] = []
    for _ in range(8):
        began = read()
        request.infer(inputs)
        times.append(read() - began)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(SIZES))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    args = parser.parse_args()
    for model, form in product(args.models, ("f32", "bf16")):
        bundle = bundle_of(model, args.work)
        inputs, facts = inputs_of(bundle, "step", args.size), bundle.manifest.facts
        shares = shares_of(compiled(bundle, inputs, form, args.threads, counted=True), inputs)
        request = compiled(bundle, inputs, form, args.threads, counted=False)
        seconds = seconds_of(request, inputs, clock_of(args.threads))
        work = sum(step_work(facts, (args.size // facts.cell_px) ** 2, max(branch_counts(bundle.manifest))))
        found = {"shares": shares, "ms": 1e3 * seconds, "gflops": work / seconds}
        print(model, args.size, form, found, flush=True)
        save(RESULTS, f"{model} {args.size} {form}", {**found, "conditions": conditions(args.threads)})


if __name__ == "__main__":
    main()
