"""Write the baselines of the exact gate: on purpose, after a change that is meant.

python -m benchmarks.baselines.make
"""

import tempfile
from pathlib import Path
from typing import Any

from lssgen.bench.exact import baseline_of_bundle, baseline_of_plan, write_baseline
from lssgen.bundle import read_bundle
from lssgen.demo import write_demo_bundle
from lssgen.models.aliases import ALIASES
from lssgen.plan import PlanOptions, make_plan

HERE = Path(__file__).parent

DEMO: dict[str, dict[str, Any]] = {
    "staged": {},
    "one-stage": {"start_sigma": 1.0},
    "batch-8": {"batch": 8, "num_images": 8},
}
"""Options of the demo model's runs, by name of the baseline."""


def main() -> None:
    for alias, entry in ALIASES.items():
        facts = entry.facts()
        plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults))
        write_baseline(baseline_of_plan(plan, facts), HERE / "plans" / f"{alias}.json")
    with tempfile.TemporaryDirectory() as folder:
        write_demo_bundle(Path(folder) / "demo")
        bundle = read_bundle(Path(folder) / "demo")
        for name, options in DEMO.items():
            write_baseline(baseline_of_bundle(bundle, options), HERE / "demo" / f"{name}.json")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
