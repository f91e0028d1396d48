"""How long it takes until lssgen is imported, and until it has made its first step, beside `import torch`.

    python benchmarks/startup.py --bundle DIR [--repeats 5] [--output startup.json]

Every measurement is a process of its own; the kinds take turns, so that a busy machine is busy for all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

TIMED = "import time; began = time.perf_counter()\n{work}\nprint(time.perf_counter() - began)"
FIRST_STEP = """
import lssgen
class Done(Exception): pass
def stop(progress): raise Done
try: lssgen.load({bundle!r})("a red circle", on_step=stop, **{options!r})
except Done: pass
"""


def seconds(work: str) -> float:
    """Wall time of some Python in a fresh interpreter, without the interpreter's own start."""
    command = [sys.executable, "-c", TIMED.format(work=work)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--scaling-space", default="latent")
    parser.add_argument("--min-resolution", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    kinds = {
        "import lssgen": "import lssgen",
        "import lssgen.runtime": "from lssgen.runtime import Pipeline",  # the module alone imports nothing
        "first step": FIRST_STEP.format(
            bundle=args.bundle, options={"scaling_space": args.scaling_space, "min_resolution": args.min_resolution}
        ),
        "import torch": "import torch",
    }
    if find_spec("torch") is None:
        del kinds["import torch"]
    for work in kinds.values():
        seconds(work)  # the first run of each reads files from disk
    times = {kind: [0.0] * args.repeats for kind in kinds}
    for turn in range(args.repeats):
        for kind, work in kinds.items():
            times[kind][turn] = seconds(work)
    report = {
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "python": platform.python_version(),
        "bundle": Path(args.bundle).name,
        "seconds": {kind: {"median": statistics.median(each), "all": each} for kind, each in times.items()},
    }
    if "import torch" in times:
        torch = statistics.median(times["import torch"])
        report["share_of_import_torch"] = {kind: statistics.median(each) / torch for kind, each in times.items()}
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
