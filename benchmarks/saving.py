"""Results in a file of several parts, which are measured one by one."""

import json
from pathlib import Path


def save(path: Path, key: str, value: object) -> None:
    """Put a part of the results into a file, and leave the others."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    whole[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=2) + "\n")
