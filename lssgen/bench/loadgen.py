"""MLPerf's LoadGen in front of whatever paints: it asks for samples, and its own log says how long they took.

SingleStream sends a query when the last one is answered, and reports the 90th percentile; Offline sends all at once,
and reports samples a second; Server sends them at random moments, as many a second as it was told, and asks whether
99 % are answered in time. Runs of several stages are outside of MLPerf's closed division, which fixes the model's
computation; see docs/performance.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Literal

from lssgen.choices import choice, refuse_outside
from lssgen.errors import BenchError

Scenario = Literal["SingleStream", "Offline", "Server"]

LEAST_QUERIES: Mapping[Scenario, int] = {"SingleStream": 64, "Offline": 64, "Server": 459}
"""Queries from which LoadGen's early stopping can say something of the scenario's percentile with 99 % confidence: the
90th, or in Server the 99th."""

ENDS_S = 5.0
"""Seconds that a test is given to end when it is stopped. A slow Server's takes longer: its queries come when they
come."""

Answered = Callable[[BaseException | None], None]
"""Told once that a sample is done, from any thread: None, or what went wrong."""

Send = Callable[[int, Answered], None]
"""Takes sample number i. It may answer before it returns, or return at once and answer later."""

_LOAD = "load"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How queries come.

    Attributes:
        scenario: LoadGen's name of it.
        queries: Number of queries; 0 for the least that the scenario needs.
        qps: Queries a second, on average, in Server.
        latency_ms: Milliseconds within which 99 % of them are to be answered, in Server.

    Raises:
        BenchError: Too few queries to say anything, or numbers that make no sense.
    """

    scenario: Scenario = choice("SingleStream", help="how queries come", group=_LOAD)
    queries: int = choice(
        0, help="how many", metavar="N", least=0, most=1_000_000, group=_LOAD, unset="the least that the scenario needs"
    )
    qps: float = choice(1.0, help="queries a second in Server", metavar="X", least=1e-3, most=1e6, group=_LOAD)
    latency_ms: float = choice(
        20_000.0, help="time in which 99 % of Server's queries are to be answered", metavar="MS", least=1e-3, most=1e9,
        group=_LOAD,
    )  # fmt: skip

    def __post_init__(self) -> None:
        refuse_outside(self, BenchError)
        if self.scenario not in LEAST_QUERIES:
            raise BenchError(f"scenario is {self.scenario!r}; it must be one of {', '.join(LEAST_QUERIES)}")
        least = LEAST_QUERIES[self.scenario]
        if 0 < self.queries < least:
            raise BenchError(f"{self.queries} queries are too few for {self.scenario}; LoadGen needs {least}")

    @property
    def count(self) -> int:
        """Queries that are asked; in Offline, samples of the one query."""
        return self.queries or LEAST_QUERIES[self.scenario]


def at_once(paint: Callable[[int], object]) -> Send:
    """A `Send` that paints before it returns."""

    def send(index: int, answered: Answered) -> None:
        try:
            paint(index)
        except Exception as error:  # LoadGen's own thread: an exception there would end the process
            answered(error)
        else:
            answered(None)

    return send


def _nothing() -> None:
    pass


def _ignore(samples: object) -> None:
    del samples


def run_loadgen(send: Send, load: Load, folder: Path, on_answer: Callable[[int], object] = _ignore) -> dict[str, str]:
    """Let LoadGen measure.

    Args:
        send: Takes samples; their numbers are below `load.count`.
        load: How queries come.
        folder: LoadGen's logs go here.
        on_answer: Told after every answer how many there were; from any thread, one at a time.

    Returns:
        LoadGen's summary: what each line says, by what it says it of.

    Raises:
        BenchError: LoadGen is not installed, the folder cannot be written, or some samples of several went wrong.
        StillRunningError: It was interrupted, and LoadGen does not come to its end.
        Exception: What went wrong with the first of all samples, where all went wrong.
    """
    library, answers = _library(), _Answers(on_answer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error

    def complete(sample: int, fault: BaseException | None) -> None:
        library.QuerySamplesComplete([library.QuerySampleResponse(sample, 0, 0)])
        answers.hear(fault)  # after it, since telling takes time

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            if answers.unwanted:
                complete(sample.id, None)
            else:
                send(int(sample.index), partial(complete, sample.id))

    sut, qsl = library.ConstructSUT(issue, _nothing), library.ConstructQSL(load.count, load.count, _ignore, _ignore)
    logs = _log_settings(library, folder)
    over, test = Event(), partial(library.StartTestWithLogSettings, sut, qsl, _settings(library, load), logs, "")
    try:
        _start(test, over)
        over.wait()
    except KeyboardInterrupt as stop:
        answers.unwanted = True
        if not over.wait(ENDS_S):
            raise StillRunningError from stop
        raise
    finally:
        if over.is_set():  # else LoadGen's threads still have them
            library.DestroyQSL(qsl)
            library.DestroySUT(sut)
    answers.tell(load.count)
    return summary_of(folder / "mlperf_log_summary.txt")


def _start(test: Callable[[], object], over: Event) -> None:
    """Begin a test in a thread of its own, and set `over` when it has ended. LoadGen has no way to stop one, and in the
    main thread the exception of a signal would go through its C++, which ends the process."""

    def work() -> None:
        try:
            test()
        finally:
            over.set()

    Thread(target=work, name="loadgen", daemon=True).start()


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


class StillRunningError(KeyboardInterrupt):
    """A test was to be stopped and LoadGen goes on with it: its threads abort a process that ends in an orderly way."""


class _Answers:
    """How many there were and what went wrong, from any thread."""

    def __init__(self, on_answer: Callable[[int], object]) -> None:
        self._lock = Lock()
        self._on_answer = on_answer
        self._first: BaseException | None = None
        self.unwanted = False  # since somebody has asked to stop: what LoadGen still asks is answered at once
        self._done = 0
        self._count = 0

    def hear(self, fault: BaseException | None) -> None:
        with self._lock:
            self._done += 1
            self._on_answer(self._done)
            if fault is not None:
                self._first = self._first or fault
                self._count += 1

    def tell(self, asked: int) -> None:
        """Raise what is to be said; LoadGen itself takes a sample that went wrong for a quick one."""
        if self._first is None:
            return
        if self._count >= asked:
            raise self._first
        raise BenchError(
            f"{self._count} of {asked} queries went wrong, so the times say nothing; the first: {self._first}"
        ) from self._first


def _settings(library: Any, load: Load) -> Any:
    settings = library.TestSettings()
    settings.scenario = getattr(library.TestScenario, load.scenario)
    settings.mode = library.TestMode.PerformanceOnly
    settings.min_duration_ms = 0  # MLPerf asks for 600 s; here the count decides
    settings.min_query_count = settings.max_query_count = load.count
    settings.performance_sample_count_override = load.count
    settings.offline_expected_qps = load.count
    settings.server_target_qps = load.qps
    settings.server_target_latency_ns = int(1e6 * load.latency_ms)
    settings.server_target_latency_percentile = 0.99
    return settings


def _log_settings(library: Any, folder: Path) -> Any:
    output = library.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    logs = library.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


def _library() -> Any:
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise BenchError('LoadGen is needed: pip install "lssgen[bench]"') from error
    return mlperf_loadgen
