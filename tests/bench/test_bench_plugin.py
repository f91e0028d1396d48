"""The pytest plugin, in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
def test_latency(lssgen_latency):
    result = lssgen_latency({bundle!r}, {budget} scaling_space="latent", engine_options={{"threads": 1}})
    assert result.image_latency_ms.count == {runs}
"""


def ran(folder: Path, bundle: Path, budget: str, *flags: str, runs: int = 12) -> tuple[int, str]:
    (folder / "test_it.py").write_text(TEST.format(bundle=str(bundle), budget=budget, runs=runs))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "lssgen.bench.pytest_plugin", *flags, str(folder)],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("budget", "flags", "status", "said"),
    [
        ("p50_ms=60_000,", (), 0, "1 passed"),
        ("p50_ms=0.001,", (), 1, "over its budget of 0.001 ms; where it goes: text"),
        ("p90_ms=60_000,", ("--lssgen-runs", "9"), 1, "9 runs are too few for p90; it needs 10"),
        ("", (), 1, "no budget was given"),
        ("p50_ms=float('nan'),", (), 1, "p50_ms is nan; it must be a number of milliseconds above 0"),
        ("p50_ms='900',", (), 1, "p50_ms is '900'; it must be a number of milliseconds above 0"),
    ],
)
def test_a_bundle_is_held_to_its_budget(
    toy: Path, tmp_path: Path, budget: str, flags: tuple[str, ...], status: int, said: str
) -> None:
    code, out = ran(tmp_path, toy, budget, *flags)
    assert (code, said in out) == (status, True), out


def test_results_become_a_history(toy: Path, tmp_path: Path) -> None:
    code, out = ran(tmp_path, toy, "p50_ms=60_000,", "--lssgen-history", "h.jsonl", "--lssgen-runs", "3", runs=3)
    assert code == 0, out
    assert '"case":"test_latency"' in (tmp_path / "h.jsonl").read_text()
