"""How often the gate of `lssgen bench compare` is wrong: one side against itself, again and again.

    python -m benchmarks.false_alarms --bundle DIR [--times 50] [--rounds 18] [--margin 0.03]

Every FAIL is a false alarm. UNDECIDED is none: it says that the machine was too noisy for the budget. Results are added
to benchmarks/results/false_alarms.jsonl, a line a comparison, so that a run that was stopped goes on.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

from lssgen.bench.duel import Terms, compare
from lssgen.bench.environment import environment
from lssgen.bench.sides import side_from_text

RESULTS = Path(__file__).parent / "results" / "false_alarms.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="as in lssgen bench compare: BUNDLE,NAME=VALUE,...")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=18)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--margin", type=float, default=0.03)
    args = parser.parse_args()
    side = side_from_text(args.bundle)
    terms = Terms(rounds=args.rounds, blocks=args.blocks, margin=args.margin)
    done = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    for number in range(len(done), args.times):
        duel = compare(side, side, terms)
        assert duel.estimate is not None
        line = {
            "number": number, "verdict": duel.verdict, "rounds": len(duel.rounds), "ratio": duel.estimate.ratio,
            "lower": duel.estimate.lower, "upper": duel.estimate.upper, "margin": args.margin,
            "load": environment({}).state.get("load"), "complaints": len(duel.complaints),
            "written": duel.environment.written,
        }  # fmt: skip
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)
    verdicts = Counter(json.loads(line)["verdict"] for line in RESULTS.read_text().splitlines())
    print(dict(verdicts))


if __name__ == "__main__":
    main()
