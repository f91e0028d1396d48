"""MLPerf's LoadGen in front of whatever paints: a function, a server in this process, a server that answers HTTP."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from signal import SIGTERM
from threading import Thread, Timer
from time import sleep
from typing import Any

import pytest
from toy_bundle import toy_in_stages

from lssgen.bench.loadgen import LEAST_QUERIES, Answered, Load, Scenario, at_once, run_loadgen, summary_of
from lssgen.bench.remote import Site, fields_of
from lssgen.commands.bench import main
from lssgen.errors import BenchError, PlanError


@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_loadgen_asks_for_every_sample_and_finds_the_run_valid(scenario: Scenario, tmp_path: Path) -> None:
    asked: list[int] = []
    load = Load(scenario=scenario)
    said = run_loadgen(at_once(asked.append), load, tmp_path / "logs")
    assert sorted(asked) == list(range(load.count)) or len(asked) >= load.count
    assert said["Scenario"] == scenario
    assert said["Result is"] == "VALID"
    assert (tmp_path / "logs" / "mlperf_log_detail.txt").exists()


def later(seconds: float) -> Any:
    def send(index: int, answered: Answered) -> None:
        del index
        Timer(seconds, answered, [None]).start()

    return send


@pytest.mark.parametrize(("latency_ms", "verdict"), [(10_000.0, "VALID"), (0.1, "INVALID")])
def test_a_server_is_valid_where_99_percent_are_answered_in_time(
    latency_ms: float, verdict: str, tmp_path: Path
) -> None:
    """Answers come a millisecond after the question, from threads of their own, while the next ones are asked."""
    said = run_loadgen(later(0.001), Load(scenario="Server", qps=500.0, latency_ms=latency_ms), tmp_path)
    assert said["Scenario"] == "Server"
    assert said["Result is"] == verdict
    assert float(said["Completed samples per second"]) > 0


@pytest.mark.parametrize(("scenario", "least"), LEAST_QUERIES.items())
def test_too_few_queries_are_refused(scenario: Scenario, least: int) -> None:
    with pytest.raises(BenchError, match=f"{least - 1} queries are too few for {scenario}; LoadGen needs {least}"):
        Load(scenario=scenario, queries=least - 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"qps": 0.0}, "qps is 0"),
        ({"latency_ms": float("nan")}, "latency_ms is nan"),
        ({"scenario": "Multi"}, "must be one of"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        Load(**words)


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    def fail(index: int) -> None:
        raise PlanError(f"no picture {index >= 0}")

    with pytest.raises(PlanError, match="no picture True"):
        run_loadgen(at_once(fail), Load(), tmp_path)


def test_a_run_in_which_some_queries_fail_is_no_result(tmp_path: Path) -> None:
    """A refusal is quick: LoadGen would take it for a fast picture."""
    turns = iter(range(10**6))

    def fail_sometimes(index: int) -> None:
        del index
        if next(turns) in (3, 5):
            raise PlanError("the queue is full")

    with pytest.raises(BenchError, match=r"2 of 64 queries went wrong, so the times say nothing; .* queue is full"):
        run_loadgen(at_once(fail_sometimes), Load(), tmp_path)


INTERRUPTED = """
import sys
from pathlib import Path
from signal import SIGINT, default_int_handler, pthread_kill, signal
from threading import main_thread
from time import sleep
from lssgen.bench.loadgen import Load, at_once, run_loadgen

signal(SIGINT, default_int_handler)
painted = []

def paint(index):
    painted.append(index)
    if len(painted) == 3:
        pthread_kill(main_thread().ident, SIGINT)
        sleep(0.5)  # until the main thread has heard it

try:
    run_loadgen(at_once(paint), Load(), Path(sys.argv[1]))
except KeyboardInterrupt:
    print(len(painted), "painted")
"""


def test_ctrl_c_stops_a_test_without_ending_the_process(tmp_path: Path) -> None:
    """LoadGen cannot be told to stop; what it still asks is answered at once and painted by nobody."""
    # In a process of its own: the signal is meant for that process's main thread and for nobody else's.
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, tmp_path], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("3 painted\n", 0), done.stderr
    assert summary_of(tmp_path / "mlperf_log_summary.txt")  # LoadGen has come to its end


STOPPED = """
import sys
import lssgen.bench.loadgen
from lssgen.cli import main
lssgen.bench.loadgen.ENDS_S = 0.2
sys.exit(main())
"""


def test_a_slow_servers_test_that_goes_on_when_it_is_stopped_does_not_abort_the_process(
    toy: Path, tmp_path: Path
) -> None:
    """A query a second, 459 of them: LoadGen would take eight minutes to its end."""
    bundle, logs = toy_in_stages(toy, tmp_path / "staged").folder, tmp_path / "logs"
    words = [sys.executable, "-c", STOPPED, "bench", "loadgen", str(bundle), "--scenario", "Server", "--threads", "1"]
    words += ["--engine", "onnxruntime", "--prompt", "a red circle", "--outdir", str(logs)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not (logs / "mlperf_log_detail.txt").exists() and process.poll() is None:
            sleep(0.05)
        sleep(0.3)
        process.send_signal(SIGTERM)
        assert process.communicate()[1] == "lssgen bench loadgen: stopped\n"
    assert process.returncode == 128 + SIGTERM


def test_every_answer_is_told_of(tmp_path: Path) -> None:
    heard: list[int] = []
    run_loadgen(at_once(lambda _: None), Load(), tmp_path, heard.append)
    assert heard == list(range(1, len(heard) + 1))
    assert len(heard) >= 64


def test_the_command_refuses_what_it_cannot_do_before_it_opens_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadgen", "none", "--set", "num_images=2", "--outdir", str(tmp_path)]) == 1
    assert "a query of LoadGen is one picture; leave out --set num_images" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["loadgen", "none", "--outdir", str(tmp_path / "file")]) == 1
    assert "file cannot be written: File exists; choose another place" in capsys.readouterr().err


def test_a_summary_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="LoadGen has left no"):
        summary_of(tmp_path / "none.txt")


# --- over HTTP --------------------------------------------------------------------------------------------------------


class Painter(BaseHTTPRequestHandler):
    """Answers as a server of images does, or as `how` says."""

    how: tuple[int, str] = (200, '{"data": [{"b64_json": "AAAA"}]}')
    heard: list[tuple[dict[str, Any], str]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.heard.append(({"path": self.path, **body}, self.headers.get("Authorization", "")))
        status, text = self.how
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words: Any) -> None:
        del words


class Server(ThreadingHTTPServer):
    """Takes a burst of connections, as real servers do; by itself it lets five wait, and resets the others."""

    request_queue_size = 1024
    daemon_threads = True


@contextmanager
def painting(how: tuple[int, str] = Painter.how) -> Generator[tuple[str, list[tuple[dict[str, Any], str]]]]:
    heard: list[tuple[dict[str, Any], str]] = []
    kind = type("Kind", (Painter,), {"how": how, "heard": heard})
    with Server(("127.0.0.1", 0), kind) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
        server.shutdown()
        thread.join()


def test_a_server_is_asked_in_openais_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with painting() as (url, heard), Site(url, fields_of({"height": 64, "width": 32, "seed": 3})) as site:
        site.paint("a red circle")
    asked = {"prompt": "a red circle", "response_format": "b64_json", "size": "32x64", "seed": 3}
    assert heard == [({"path": "/v1/images/generations", **asked}, "Bearer secret")]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((429, '{"error": {"message": "the queue is full", "code": "queue_full"}}'), "answers 429: the queue is full"),
        ((502, "bad gateway"), "answers 502: bad gateway"),
        ((200, "<html>"), "no JSON: is it a server of images"),
        ((200, '{"data": []}'), "answers without a picture"),
    ],
)
def test_a_server_that_gives_no_picture_is_told_with_its_words(how: tuple[int, str], said: str) -> None:
    with painting(how) as (url, _), Site(url, {}) as site, pytest.raises(BenchError, match=said):
        site.paint("a red circle")


def test_addresses_and_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(BenchError, match=r"'localhost:8000' is not an address; write one such as http"):
        Site("localhost:8000", {})
    with pytest.raises(BenchError, match="both sides of a picture or none"):
        fields_of({"height": 64})
    with Site("http://127.0.0.1:9", {}) as site, pytest.raises(BenchError, match="does not answer"):
        site.paint("a red circle")


def test_the_command_asks_a_server_by_its_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with painting() as (url, heard):
        words = ["loadgen", "--url", url, "--model", "sd3", "--scenario", "Server", "--qps", "400"]
        assert main([*words, "--outdir", str(tmp_path)]) == 0
    assert "Result is: VALID" in capsys.readouterr().out
    assert len(heard) == 1 + LEAST_QUERIES["Server"]  # one to warm it up
    assert {asked["model"] for asked, _ in heard} == {"sd3"}


def test_the_command_starts_a_server_in_its_own_process(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["loadgen", str(toy), "--engine", "onnxruntime", "--threads", "1", "--set", "height=32"]
    load = ["--scenario", "Server", "--qps", "150", "--set", "width=32", "--prompt", "a red circle"]
    assert main([*words, *load, "--outdir", str(tmp_path)]) == 0
    assert "99.00 percentile latency" in capsys.readouterr().out


def test_a_model_belongs_to_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadgen", "demo", "--model", "sd3"]) == 1
    assert "--model is a model of the server that --url names" in capsys.readouterr().err
    assert main(["loadgen", "sd3", "--url", "http://127.0.0.1:9"]) == 1
    assert "give a bundle or --url, not both; sd3 as a model of the server is --model" in capsys.readouterr().err
