"""What it costs to compare a bundle's files with their hashes: bytes a second, from memory and from the disk.

    python benchmarks/verification.py [--megabytes 1024] [--repeats 5] [--folder DIR] [--output verification.json]

The file is random, and as large as asked. "from memory": the system has it in its file cache. "from the disk": it was
asked to forget it before every reading (posix_fadvise), which a virtual machine's host may have done or not. "of a
processor's time": from memory, by the time that the process had a processor, which other work on the machine hardly
changes.
"""

import argparse
import json
import os
import platform
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lssgen.bundle import sha256_of


def gigabytes_per_second(path: Path, *, forget: bool = False, clock: Callable[[], float] = time.perf_counter) -> float:
    """Speed of one reading."""
    if forget:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    began = clock()
    sha256_of(path)
    return path.stat().st_size / (clock() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; default: that of temporary files")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "weights"
        with path.open("wb") as file:
            for _ in range(args.megabytes):
                file.write(secrets.token_bytes(1 << 20))
        sha256_of(path)
        kinds: dict[str, Callable[[], float]] = {
            "from memory": lambda: gigabytes_per_second(path),
            "from the disk": lambda: gigabytes_per_second(path, forget=True),
            "of a processor's time": lambda: gigabytes_per_second(path, clock=time.process_time),
        }
        speeds = {kind: [measure() for _ in range(args.repeats)] for kind, measure in kinds.items()}
    report = {
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "python": platform.python_version(),
        "megabytes": args.megabytes,
        "gigabytes_per_second": speeds,
        "median": {kind: statistics.median(values) for kind, values in speeds.items()},
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    for kind, values in speeds.items():
        print(f"{kind}: median {statistics.median(values):.2f} GB/s, {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
