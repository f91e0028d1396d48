"""What a step costs on the host with engines that do nothing, at batches 1 to 8.

    python -m benchmarks.cpu.host --work DIR [--repeats 50]

Least of the runs' medians: other work on the machine only ever adds. Results go to benchmarks/results/cpu_host.json.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from benchmarks.cpu.models import bundle_of
from benchmarks.cpu.turns import conditions
from lssgen.bench.idle import IdleBackend
from lssgen.runtime import Pipeline

RESULTS = Path(__file__).parents[1] / "results" / "cpu_host.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    bundle = bundle_of("demo", args.work)
    found: dict[str, float] = {}
    for batch in (1, 2, 4, 8):
        with Pipeline(bundle, IdleBackend()) as pipeline:
            medians = []
            for _ in range(args.repeats):
                (times,) = pipeline("a red circle", batch=batch, num_images=batch).times
                medians.append(median(step for stage in times.stages for step in stage.steps))
        found[str(batch)] = 1e6 * min(medians)
    RESULTS.write_text(json.dumps({"conditions": conditions(1), "microseconds_a_step": found}, indent=2) + "\n")
    print(found)


if __name__ == "__main__":
    main()
