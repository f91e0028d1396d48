"""Killed at any moment and run again, everything comes out as if nobody had."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

KILLS = 20
UNDONE = r"\..*\.partial|\.export|draft-"
"""Names of what is not finished."""

LONGEST_S = 900.0
"""Seconds after which no further kills are tried, so that a slow machine ends too."""


@dataclass(frozen=True)
class Work:
    """A command, and what it leaves.

    Attributes:
        words: The command's, after `lssgen`.
        left: What counts of what it leaves in its folder, by name.
        in_turn: Kills in one folder before the run that may end; more for what takes long, and goes on where it was.
    """

    words: Callable[[Path], Sequence[str]]
    left: Callable[[Path], dict[str, Any]]
    in_turn: int = 1


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("result.json", "run.json") and path.suffix != ".lock"
    }


def painted(folder: Path) -> dict[str, Any]:
    """Pictures and metadata, and what of the records has no time in it."""
    found: dict[str, Any] = contents(folder)
    found["run.json"] = {**json.loads((folder / "run.json").read_text()), "written": ""}
    for result in folder.rglob("result.json"):
        found[str(result.relative_to(folder))] = json.loads(result.read_text())["samples"]
    return {name: value for name, value in found.items() if name != ".lock"}


def built(folder: Path) -> dict[str, Any]:
    """Reports without their times, and engines."""
    found: dict[str, Any] = contents(folder)
    for report in folder.rglob("report.json"):
        found[str(report.relative_to(folder))] = {**json.loads(report.read_text()), "seconds": 0.0}
    return found


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Work:
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "a red circle {index}"}}\n' for index in range(60)))
    common = ["--bundle", str(toy), "--threads", "1", "--scaling-space", "latent", "--num-images", "3"]
    return Work(
        lambda folder: ["run", "--prompts", str(tmp_path / "p.jsonl"), "--outdir", str(folder), *common], painted
    )


@pytest.fixture
def export(sd3: Path) -> Work:
    flags = ["--model", str(sd3), "--resolutions", "64,128", "--max-sequence-length", "24", "--threads", "1"]
    return Work(lambda folder: ["export", *flags, "--output", str(folder)], contents, in_turn=4)


@pytest.fixture
def build(toy: Path) -> Work:
    pytest.importorskip("tensorrt_rtx")
    flags = ["--engine", "tensorrt-rtx", "--target", "sm89"]
    return Work(lambda folder: ["build", str(toy), *flags, "--engines", str(folder)], built)


def started(words: Sequence[str], home: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LSSGEN_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "lssgen", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )


@pytest.mark.parametrize("name", ["run", "export", "build"])
def test_killed_at_random_and_run_again_it_comes_out_bit_by_bit(
    name: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    work: Work = request.getfixturevalue(name)
    began = time.monotonic()
    with started(work.words(tmp_path / "whole"), tmp_path / "home") as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    takes = time.monotonic() - began
    wanted = work.left(tmp_path / "whole")
    moments = random.Random(name)
    killed = late = unfinished = 0
    for number in range(KILLS // work.in_turn):
        if time.monotonic() - began > LONGEST_S:
            break
        folder = tmp_path / f"killed{number}"
        for _ in range(work.in_turn):
            with started(work.words(folder), tmp_path / "home") as process:
                time.sleep(moments.uniform(0.3, 1) * takes * 2 / (1 + work.in_turn))
                process.send_signal(signal.SIGKILL)
                process.communicate()
            killed, late = killed + (process.returncode == -9), late + (process.returncode == 0)
            unfinished += any(re.match(UNDONE, path.name) for path in folder.rglob("*"))
        with started(work.words(folder), tmp_path / "home") as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
        assert work.left(folder) == wanted
        assert not [path for path in folder.rglob("*") if re.match(UNDONE, path.name)]
    print(f"{name}: killed {killed} times at random within {takes:.1f} s, {late} times too late; ", end="")
    print(f"{unfinished} times something unfinished was left, and removed by the next run")
    record_property("killed", killed)
    assert killed
