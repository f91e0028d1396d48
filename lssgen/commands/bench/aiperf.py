"""lssgen bench aiperf: what AIPerf has measured of a server, in the bench's words."""

import argparse
from pathlib import Path

from lssgen.bench.aiperf import point_of, read_aiperf
from lssgen.bench.history import append
from lssgen.bench.tables import aligned, number
from lssgen.commands.parser import Parser

EXAMPLES = (
    "artifacts/profile_export_aiperf.json",
    "artifacts/profile_export_aiperf.json --history latency.jsonl --label abc123",
)


def build_parser(prog: str) -> Parser:
    parser = Parser("bench", prog, "FILE [OPTION ...]", EXAMPLES)
    parser.add_argument("file", type=Path, metavar="FILE", help="profile_export_aiperf.json of a run; required")
    parser.add_argument("--history", type=Path, metavar="FILE", help="add the median to this JSONL; default: none")
    parser.add_argument(
        "--label", default="", metavar="TEXT", help="name of that line, such as a commit; default: none"
    )
    return parser


def work(args: argparse.Namespace) -> int:
    """Read, tell and keep.

    Raises:
        BenchError: It cannot be read, or is of something else.
    """
    found = read_aiperf(args.file)
    rows: list[tuple[str, ...]] = [("", "p50", "p90", "p99")]
    for name in ("request_latency_ms", "image_latency_ms", "time_to_first_preview_ms"):
        if (summary := getattr(found, name)) is not None:
            values = (summary.p50, summary.p90, summary.p99)
            rows.append((name, *("-" if value is None else number(value) for value in values)))
    print(f"{found.model}, {found.name}: {found.request_latency_ms.count} requests, AIPerf {found.version}")
    print(
        "\n".join((*aligned(rows), f"image_throughput  {number(found.image_throughput)} a second", *found.complaints))
    )
    if args.history:
        append([point_of(found, args.label)], args.history)
    return 0
