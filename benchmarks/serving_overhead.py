"""What the server costs beside the device: microseconds of the host a step of a full batch, on engines that do nothing.

    python -m benchmarks.serving_overhead --model sd3 --batch 8 --output benchmarks/results/serving_overhead.json

What is counted is the scheduler: its turn, the numbers of every row, the marks, and an event for every picture.
Requests of the model's default size come all at once, so that rows are full and pictures join and leave.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.idle_room import MACHINE, measured
from lssgen.runtime import Options
from lssgen.serving import ImageRequest, Server
from lssgen.serving.api import Event, Progress


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd3")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20, help="batches of requests")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    seen: dict[str, Any] = {"events_heard": 0}

    def hear(event: Event) -> None:
        seen["events_heard"] += isinstance(event, Progress)

    def ask(room: Server) -> None:
        began = perf_counter()
        tickets = [
            room.submit(ImageRequest(prompt="a", options=Options(num_inference_steps=args.steps, seed=seed)), hear)
            for seed in range(args.rounds * args.batch)
        ]
        seen["milliseconds_to_submit"] = round(1e3 * (perf_counter() - began) / len(tickets), 2)
        for ticket in tickets:
            ticket.result()

    said = {"model": args.model, "batch": args.batch, "steps": args.steps}
    report = {**MACHINE, **said, **measured(args.model, args.batch, ask), **seen}
    text = json.dumps(report, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
