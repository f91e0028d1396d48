"""Compile full-size step graphs ahead of time with TensorRT-RTX, on a machine without a GPU.

    python -m benchmarks.full_size_build --work /big/disk sd15 sd3-medium

For each model a checkpoint with random weights is written (fp16, the size of the published one), its step graph is
exported, and an engine is built with one profile for each of two stage sizes, in a process of its own whose peak memory
is taken. Results go to benchmarks/results/full_size_build.json: time, memory, size, scratch of each profile, attentions
and those that were not fused.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import full_size_export as full_size
from benchmarks.saving import save

RESULTS = Path(__file__).parent / "results" / "full_size_build.json"
SIDES = {"sd15": (512, 1024), "sd3-medium": (512, 1024), "sdxl": (512, 1024)}
"""Stage sizes in pixels; square."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["sd15", "sd3-medium"], help=", ".join(SIDES))
    parser.add_argument("--work", type=Path, default=Path("full-size"), help="folder for the checkpoints; emptied")
    parser.add_argument("--target", default="sm89", help="default: %(default)s")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for model in args.models:
        if args.child:
            print(json.dumps(build(args.work, model, args.target)))
        else:
            record(model, measured(args.work / model, model, args.target))
            shutil.rmtree(args.work / model, ignore_errors=True)
    return 0


def measured(folder: Path, model: str, target: str) -> dict[str, Any]:
    """Write, export and build one model."""
    shutil.rmtree(folder, ignore_errors=True)
    size = full_size.write(folder, model, [full_size.NETWORKS[model]])
    full_size.child(folder, model, "step", "fp16", "export")
    before = {**full_size.conditions(), "tensorrt-rtx": metadata.version("tensorrt-rtx-cu13")}
    command = [sys.executable, "-m", "benchmarks.full_size_build", "--child", model]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--work", str(folder), "--target", target], stdout=subprocess.PIPE, text=True, check=False
    )
    found: dict[str, Any] = {"conditions": before, "checkpoint_gb": round(size / 1e9, 2)}
    if done.returncode:
        # A builder that runs out of memory is killed; what it had reached is the result.
        return {**found, "failed": f"exit {done.returncode}", "seconds": round(time.perf_counter() - start, 1)}
    return {**found, **json.loads(done.stdout.splitlines()[-1])}


def build(folder: Path, model: str, target: str) -> dict[str, Any]:
    """Compile the exported step graph."""
    from lssgen.engines.demand import Profile, fixed
    from lssgen.engines.trt.compiler import compile_graph
    from lssgen.engines.trt.job import Job

    recipe, _ = full_size.recipe_of(folder, "step", "fp16")
    sizes = {"batch": 1, "branches": 2, **full_size.TOKENS}
    places = [{"height": side // 8, "width": side // 8} for side in SIDES[model]]
    used = {axis for port in recipe.inputs for axis in port.shape if isinstance(axis, str)}
    job = Job(
        flavour="tensorrt-rtx",
        name="step",
        onnx=folder / "step.onnx",
        inputs=recipe.inputs,
        profiles=tuple(
            Profile({axis: fixed(size) for axis, size in {**sizes, **place}.items() if axis in used})
            for place in places
        ),
        targets=(target,),
    )
    start = time.perf_counter()
    facts = compile_graph(job, folder / "engine.plan", lambda _phase, _share: None)
    seconds = time.perf_counter() - start
    return {
        "target": target,
        "sides_px": list(SIDES[model]),
        "seconds": round(seconds, 1),
        "cpu_seconds": full_size.cpu_seconds(),
        "peak_gb": full_size.peak_gb(),
        "engine_gb": round(facts.plan_bytes / 1e9, 3),
        "weights_gb": round(facts.weight_bytes / 1e9, 3),
        "scratch_mb": [round(size / 1e6) for size in facts.activation_bytes],
        "attentions": facts.attentions,
        "unfused": [one.node for one in facts.unfused],
        "layers": facts.layers,
    }


def record(model: str, found: Mapping[str, Any]) -> None:
    print(model, json.dumps(found, indent=2), flush=True)
    save(RESULTS, model, found)


if __name__ == "__main__":
    sys.exit(main())
