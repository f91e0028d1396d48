"""The load test in small: every request is answered once, too much is refused, a kill loses no job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def test_every_request_is_answered_once_with_its_own_picture_or_a_refusal(tmp_path: Path) -> None:
    words = ["--requests", "400", "--clients", "50", "--burst", "400", "--waiting", "60", "--jobs", "10"]
    command = [sys.executable, ROOT / "benchmarks" / "serving_load.py", *words, "--output", tmp_path / "load.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "load.json").read_text())
    assert report["wrong"] == []
    assert report["kill"] == {"jobs": 10, "done": 10}
    assert report["burst"]["queue_full"] > 0
    assert report["compared"] > 0
