"""Cold starts: imports beside `import numpy`, and the first picture of the demo model from a fresh process.

    python -m benchmarks.cpu.cold --bundle DIR [--repeats 7] [--threads 0]

Every measurement is a process of its own, and the kinds take turns. The bundle is verified, and the engines have chosen
and compiled, before: that is what a cached bundle is. Seconds count from the start of the interpreter, whose own start
is told apart. Results go to benchmarks/results/cpu_cold.json.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.cpu.turns import conditions

RESULTS = Path(__file__).parents[1] / "results" / "cpu_cold.json"

PICTURE = """
from time import perf_counter, process_time
began = perf_counter()
import lssgen
from lssgen.runtime.pipeline import load
imported = perf_counter()
pipeline = load({bundle!r}, engine={engine!r}, threads={threads})
loaded = perf_counter()
(times,) = pipeline("a red star above a blue circle on a white background").times
ended = perf_counter()
stages = sum(stage.total for stage in times.stages)
import json
print(json.dumps({{"import": imported - began, "open": loaded - imported + times.load, "text": times.text,
    "stages": stages, "decode": times.decode, "whole": ended - began, "processor": process_time()}}))
"""
IMPORT = "from time import perf_counter\nbegan = perf_counter()\nimport {name}\nprint(perf_counter() - began)"
IMPORTS = ("numpy", "lssgen", "lssgen.runtime", "onnxruntime", "openvino", "torch")


def in_process(code: str) -> tuple[str, float]:
    """What some Python prints, and the wall time of its process."""
    began = perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1], perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    engines = ("onnxruntime", "openvino", "auto")
    codes = {f"import {name}": IMPORT.format(name=name) for name in IMPORTS}
    words = {"bundle": str(Path(args.bundle).resolve()), "threads": args.threads}
    codes |= {f"picture, {engine}": PICTURE.format(engine=engine, **words) for engine in engines}
    for code in codes.values():
        in_process(code)  # reads files from disk, chooses and compiles
    found: dict[str, list[Mapping[str, float]]] = {kind: [] for kind in codes}
    for _ in range(args.repeats):
        for kind, code in codes.items():
            said, wall = in_process(code)
            value = json.loads(said)
            found[kind].append({**(value if isinstance(value, dict) else {"whole": value}), "process": wall})
    medians = {kind: {part: median(one[part] for one in every) for part in every[0]} for kind, every in found.items()}
    least = {kind: min(one["whole"] for one in every) for kind, every in found.items()}
    ratios = [
        one["whole"] / other["whole"]
        for one, other in zip(found["import lssgen.runtime"], found["import numpy"], strict=True)
    ]
    report: dict[str, Any] = {
        "conditions": conditions(args.threads), "repeats": args.repeats, "median_s": medians, "least_s": least,
        "import_over_numpy": median(ratios),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({"median_s": medians, "least_s": least, "import_over_numpy": median(ratios)}, indent=2))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
