"""MLPerf's LoadGen in front of a function that paints."""

from pathlib import Path

import pytest

from lssgen.bench.loadgen import LEAST_QUERIES, Scenario, run_loadgen, summary_of
from lssgen.errors import BenchError, PlanError


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_loadgen_asks_for_every_sample_and_finds_the_run_valid(scenario: Scenario, tmp_path: Path) -> None:
    asked: list[int] = []
    said = run_loadgen(asked.append, scenario, LEAST_QUERIES, tmp_path / "logs")
    assert sorted(asked) == list(range(LEAST_QUERIES)) or len(asked) >= LEAST_QUERIES
    assert said["Scenario"] == scenario
    assert said["Result is"] == "VALID"
    assert (tmp_path / "logs" / "mlperf_log_detail.txt").exists()


def test_too_few_queries_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"63 queries are too few .* needs {LEAST_QUERIES}"):
        run_loadgen(print, "SingleStream", 63, tmp_path)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        raise PlanError(f"no picture {index >= 0}")

    with pytest.raises(PlanError, match="no picture True"):
        run_loadgen(fail, "SingleStream", LEAST_QUERIES, tmp_path)


def test_a_summary_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="LoadGen has left no"):
        summary_of(tmp_path / "none.txt")
