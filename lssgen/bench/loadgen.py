"""MLPerf's LoadGen in front of a bundle: it asks for samples, and its own log says how long they took.

SingleStream sends a query when the last one is answered, and reports the 90th percentile; Offline sends all at once,
and reports samples a second. Runs of several stages are outside of MLPerf's closed division, which fixes the model's
computation; see docs/performance.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from lssgen.errors import BenchError

Scenario = Literal["SingleStream", "Offline"]

LEAST_QUERIES = 64
"""Queries from which LoadGen's early stopping can give a 90th percentile."""


def run_loadgen(paint: Callable[[int], object], scenario: Scenario, queries: int, folder: Path) -> dict[str, str]:
    """Let LoadGen measure.

    Args:
        paint: Paints sample number i and returns when it is done.
        scenario: How queries come.
        queries: How many, at least `LEAST_QUERIES`.
        folder: LoadGen's logs go here.

    Returns:
        LoadGen's summary: what each line says, by what it says it of.

    Raises:
        BenchError: LoadGen is not installed, there are too few queries, or the folder cannot be written.
    """
    if queries < LEAST_QUERIES:
        raise BenchError(
            f"{queries} queries are too few for a 90th percentile; LoadGen's early stopping needs {LEAST_QUERIES}"
        )
    library = _library()
    settings = library.TestSettings()
    settings.scenario = getattr(library.TestScenario, scenario)
    settings.mode = library.TestMode.PerformanceOnly
    settings.min_duration_ms = 0  # MLPerf asks for 600 s; here the count decides
    settings.min_query_count = settings.max_query_count = queries  # in Offline, samples of the one query
    settings.offline_expected_qps = queries
    settings.performance_sample_count_override = queries
    failures: list[BaseException] = []

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            try:
                paint(int(sample.index))
            except Exception as error:  # LoadGen's own thread: an exception there would end the process
                failures.append(error)
            library.QuerySamplesComplete([library.QuerySampleResponse(sample.id, 0, 0)])

    sut = library.ConstructSUT(issue, _nothing)
    library_of_samples = library.ConstructQSL(queries, queries, _ignore, _ignore)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        output = library.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = str(folder), False
        logs = library.LogSettings()
        logs.log_output = output
        logs.enable_trace = False
        library.StartTestWithLogSettings(sut, library_of_samples, settings, logs, "")
    except OSError as error:
        raise BenchError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error
    finally:
        library.DestroyQSL(library_of_samples)
        library.DestroySUT(sut)
    if failures:
        raise failures[0]
    return summary_of(folder / "mlperf_log_summary.txt")


def summary_of(path: Path) -> dict[str, str]:
    """LoadGen's summary as a table.

    Raises:
        BenchError: It is not there.
    """
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise BenchError(f"LoadGen has left no {path}: {error.strerror}") from error
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _library() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise BenchError('LoadGen is needed: pip install "lssgen[bench]"') from error
    return mlperf_loadgen


def _nothing() -> None:
    pass


def _ignore(samples: Sequence[int]) -> None:
    del samples
