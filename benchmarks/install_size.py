"""How much pip downloads and installs for an extra, with the versions of constraints.txt.

    python benchmarks/install_size.py onnxruntime export [--first torch==2.13.0 --torch CPU]

Every extra gets an environment of its own in a temporary folder, where pip downloads everything and then installs
what it downloaded. `--first` names what to choose before pip chooses itself: torch for the CPU, say.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]


def sizes(extra: str, first: Sequence[str]) -> dict[str, object]:
    """Bytes that pip downloads and installs for an extra of this project."""
    with TemporaryDirectory(prefix="lssgen-install-") as place:
        environment, wheels = Path(place) / "venv", Path(place) / "wheels"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "--quiet"]
        before = _bytes_below(environment)
        wanted = [*first, f"{ROOT}[{extra}]"]
        bounds = ["-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, "download", "--no-cache-dir", *bounds, "-d", wheels, *wanted], check=True)
        ready = sorted(str(path) for path in wheels.iterdir())
        subprocess.run([*pip, "install", "--no-cache-dir", "--no-deps", *ready], check=True)
        return {
            "packages": len(ready),
            "download_bytes": _bytes_below(wheels),
            "installed_bytes": _bytes_below(environment) - before,
        }


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() or path.is_symlink())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="+")
    parser.add_argument("--first", action="append", default=[])
    parser.add_argument("--torch", default="", help="which torch that is, for the report")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "install_size.json")
    args = parser.parse_args()
    known = json.loads(args.output.read_text(encoding="utf-8"))["sizes"] if args.output.exists() else []
    for extra in args.extras:
        found = {"extra": extra, "torch": args.torch, **sizes(extra, args.first)}
        known = [one for one in known if (one["extra"], one["torch"]) != (extra, args.torch)] + [found]
    conditions = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    report = {"date": f"{date.today()}", "conditions": conditions, "sizes": known}
    args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
