"""A pytest plugin: a test holds a bundle to a budget in milliseconds, or to its own past.

    def test_latency(lssgen_latency):
        lssgen_latency("bundles/sd3", p50_ms=900, num_inference_steps=20)

It is on wherever lssgen is installed; `-p no:lssgen` turns it off.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lssgen.bench.results import CaseResult

Latency = Callable[..., "CaseResult"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line."""
    group = parser.getgroup("lssgen")
    group.addoption("--lssgen-runs", type=int, default=12, help="timed runs of every latency test; default: 12")
    group.addoption("--lssgen-engine", default="", help="engine of tests that name none; default: that of lssgen.load")
    group.addoption("--lssgen-history", default="", help="add every result to this JSONL file; default: none")


@pytest.fixture
def lssgen_latency(request: pytest.FixtureRequest) -> Latency:
    """A function that measures a bundle and fails the test where it is slower than its budget."""

    def measure(
        bundle: str | Path, *, p50_ms: float | None = None, p90_ms: float | None = None, engine: str = "",
        engine_options: dict[str, Any] | None = None, **options: Any,
    ) -> "CaseResult":  # fmt: skip
        """Measure, and hold to the budget.

        Args:
            bundle: Folder, or name of a bundle.
            p50_ms, p90_ms: Most milliseconds of a batch that a percentile may take; p90 needs 10 runs.
            engine: Name of the engine.
            engine_options: Its options, such as {"threads": 1}.
            options: Options of the run.

        Raises:
            BenchError: There is no budget, or too few runs for it.
        """
        from lssgen.bench.budget import held
        from lssgen.engines.registry import default_engine

        config = request.config
        result, complaint = held(
            Path(bundle),
            name=request.node.name,
            budget={"p50": p50_ms, "p90": p90_ms},
            engine=engine or config.getoption("--lssgen-engine") or default_engine(),
            words=engine_options or {},
            runs=int(config.getoption("--lssgen-runs") or 0),
            history=str(config.getoption("--lssgen-history") or ""),
            options=options,
        )
        if complaint:
            pytest.fail(complaint, pytrace=False)
        return result

    return measure
