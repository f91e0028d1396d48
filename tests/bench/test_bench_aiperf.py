"""Exports of AIPerf, real ones of this package's server, beside the bench's own results."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lssgen.bench.aiperf import ServedResult, read_aiperf
from lssgen.bench.history import read_history
from lssgen.bench.results import CaseResult
from lssgen.bench.summary import Summary
from lssgen.commands.bench import main
from lssgen.errors import BenchError

HERE = Path(__file__).parent / "aiperf"
"""Exports of aiperf 0.13.0, shortened: the demo model behind `lssgen serve`, 128 px, and a stream at 256 px."""


def changed(tmp_path: Path, place: str, value: Any) -> Path:
    """An export with one value at "a.b" that is another, or is left out."""
    whole: Any = json.loads((HERE / "generation.json").read_text())
    part, *names = whole, *place.split(".")
    for name in names[:-1]:
        part = part[name]
    if value is None:
        del part[names[-1]]
    else:
        part[names[-1]] = value
    (tmp_path / "export.json").write_text(json.dumps(whole))
    return tmp_path / "export.json"


@pytest.mark.parametrize(
    "word", ["request_latency_ms", "image_latency_ms", "image_throughput", "time_to_first_preview_ms"]
)
def test_a_server_and_a_bundle_are_measured_in_the_same_words(word: str) -> None:
    assert word in ServedResult.__struct_fields__
    assert word in CaseResult.__struct_fields__


def test_latencies_of_an_export_are_summaries_as_they_stand() -> None:
    """AIPerf's names of statistics are the bench's: its JSON is read by the bench's own class."""
    whole = json.loads((HERE / "generation.json").read_text())["request_latency"]
    assert set(Summary.__struct_fields__) <= set(whole)
    assert msgspec.convert(whole, Summary).p50 == whole["p50"]


def test_an_export_is_told_in_the_benchs_words() -> None:
    found = read_aiperf(HERE / "generation.json")
    assert (found.model, found.version, found.pictures) == ("demo", "0.13.0", 1)
    assert found.name == "image_generation, 128x128, batch 1, 2 at a time"
    assert found.request_latency_ms.count == 12
    assert found.request_latency_ms.p50 == pytest.approx(537.69, abs=0.01)
    assert found.request_latency_ms.p90 is not None
    assert found.request_latency_ms.p99 is None  # of twelve requests
    assert found.image_latency_ms == found.request_latency_ms
    assert found.image_throughput == pytest.approx(3.571, abs=1e-3)
    assert found.time_to_first_preview_ms is None


def test_the_first_byte_of_a_stream_is_its_first_preview() -> None:
    found = read_aiperf(HERE / "stream.json")
    assert found.time_to_first_preview_ms is not None
    assert found.time_to_first_preview_ms.p50 < found.request_latency_ms.p50 / 4
    assert found.name.endswith("stream")


def test_several_pictures_of_a_request_share_its_latency(tmp_path: Path) -> None:
    found = read_aiperf(changed(tmp_path, "input_config.endpoint.extra", {"n": 4}))
    assert found.pictures == 4
    assert 4 * found.image_latency_ms.p50 == pytest.approx(found.request_latency_ms.p50)
    assert found.image_latency_ms.count == found.request_latency_ms.count
    assert found.image_throughput == pytest.approx(4 * 3.571, abs=1e-2)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("input_config.endpoint.type", "chat", "which paints nothing; measure image_generation or image_edit"),
        ("was_cancelled", True, "of a run that was stopped half-way"),
        ("is_complete", False, "of a run that was stopped half-way"),
        ("request_latency.unit", "sec", "has latencies in 'sec'"),
        ("request_latency.p50", None, "cannot be read as an export of AIPerf"),
        ("request_latency.p50", 0.0, "has a latency of 0 ms, which no picture takes"),
        ("request_latency.p50", -4.0, "cannot be read as an export of AIPerf"),
        ("request_latency.count", 0, "cannot be read as an export of AIPerf"),
        ("request_latency", None, "cannot be read as an export of AIPerf"),
        ("input_config.endpoint.extra", {"n": "many"}, "asked for 'many' pictures a request"),
    ],
)  # fmt: skip
def test_an_export_that_says_nothing_about_pictures_is_refused(
    tmp_path: Path, place: str, value: Any, said: str
) -> None:
    with pytest.raises(BenchError, match=said):
        read_aiperf(changed(tmp_path, place, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_export_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(BenchError, match="cannot be read as an export of AIPerf: it "):
        read_aiperf(path)


def test_requests_that_went_wrong_are_told(tmp_path: Path) -> None:
    (said,) = read_aiperf(changed(tmp_path, "request_error_rate", {"unit": "%", "avg": 8.333})).complaints
    assert said == "8.33 % of the requests went wrong: the times are those of the others"


def test_the_command_tells_and_adds_to_a_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = tmp_path / "h.jsonl"
    assert main(["aiperf", str(HERE / "generation.json"), "--history", str(history), "--label", "c1"]) == 0
    assert "request_latency_ms  538  683    -" in capsys.readouterr().out
    (point,) = read_history(history)
    assert (point.bundle, point.engine, point.label) == ("demo", "served", "c1")
    assert point.image_latency_ms == pytest.approx(537.69, abs=0.01)
    assert main(["aiperf", str(tmp_path / "none.json")]) == 1
