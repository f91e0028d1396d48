"""What is measured, as Prometheus reads it, and as the board and OpenTelemetry show it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom
from prometheus_client.parser import text_string_to_metric_families
from sites import Host, Site, serving

from lssgen.errors import ServingError
from lssgen.serving.http.metrics import MOST_SIZES, Metrics
from lssgen.serving.http.tracing import open_tracer
from lssgen.serving.status import Observation

ROOT = Path(__file__).parents[3]
BOARD = ROOT / "deploy" / "grafana.json"
FOX = {"prompt": "a fox"}
BASE_UNITS = ("seconds", "bytes", "pixels", "pictures", "requests", "places")


def families(site: Site) -> dict[str, Any]:
    answer = site.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(site: Site, name: str, **labels: str) -> float:
    for family in families(site).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return 0.0


def test_metrics_count_what_was_painted(painted: Site) -> None:
    before = value(painted, "lssgen_pictures_total")
    assert painted.http.post("/v1/images/generations", json={**FOX, "n": 2}).status_code == 200
    assert value(painted, "lssgen_pictures_total") == before + 2
    assert value(painted, "lssgen_ready") == 1
    assert value(painted, "lssgen_step_seconds_count", width="32") >= 6
    assert value(painted, "lssgen_stage_seconds_count", width="64") >= 2
    assert value(painted, "lssgen_request_seconds_count", outcome="done") >= 1
    assert value(painted, "lssgen_batch_places_total") >= value(painted, "lssgen_batch_pictures_sum") > 0
    route = "/v1/images/generations"
    assert value(painted, "lssgen_http_request_seconds_count", route=route, status="200", method="POST") >= 1


def test_metrics_count_refusals_and_no_strange_paths(site: Site) -> None:
    before = value(site, "lssgen_http_refused_total", code="unknown_field")
    site.http.post("/v1/images/generations", json={**FOX, "sneed": 1})
    for number in range(20):
        site.http.get(f"/v1/strange/{number}")
        site.http.request(f"METHOD{number}", "/v1/models")
    assert value(site, "lssgen_http_refused_total", code="unknown_field") == before + 1
    assert value(site, "lssgen_refused_total", code="queue_full") == 2
    text = site.http.get("/metrics").text
    assert "strange" not in text
    assert "METHOD" not in text


def test_the_text_is_what_promtool_would_pass(painted: Site) -> None:
    """Its rules: https://prometheus.io/docs/practices/naming, as `promtool check metrics` applies them."""
    text = painted.http.get("/metrics").text
    for name, family in families(painted).items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), "no capitals, no colons, which recording rules have"
        assert family.documentation, f"{name} has no help"
        if name.startswith("process_"):
            continue
        assert name.startswith("lssgen_")
        assert not re.search(r"_(milliseconds|ms|mb|kb|minutes|percent|count|sum|bucket)$", name)
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        if family.type == "histogram":
            assert name.endswith(BASE_UNITS)
    blocks = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(blocks) == len(set(blocks)), "a family is told once"
    assert text.endswith("\n")


def test_labels_do_not_grow_with_requests(painted: Site) -> None:
    painted.http.post("/v1/images/generations", json=FOX)
    before = len(painted.http.get("/metrics").text.splitlines())
    for seed in range(5):
        painted.http.post("/v1/images/generations", json={"prompt": f"fox {seed}", "seed": seed})
    assert len(painted.http.get("/metrics").text.splitlines()) == before


def test_sizes_beyond_the_first_ones_share_their_labels() -> None:
    metrics = Metrics()
    for side in range(200):
        metrics.observe(Observation(kind="step", model="m", seconds=0.1, width_px=side, height_px=side))
    text = metrics.text().decode()
    assert text.count("lssgen_step_seconds_count{") == MOST_SIZES + 1
    assert f'lssgen_step_seconds_count{{height="other",model="m",width="other"}} {200 - MOST_SIZES}.0' in text


def test_every_kind_of_observation_has_its_histogram() -> None:
    metrics = Metrics()
    kinds = ("step", "stage", "preview", "decode", "text", "encode", "transition", "load", "queue", "request")
    for kind in kinds:
        metrics.observe(Observation(kind=kind, model="m", seconds=0.1))  # type: ignore[arg-type]
    text = metrics.text().decode()
    assert all(f"lssgen_{kind}_seconds_count" in text for kind in kinds)


def test_the_board_asks_for_metrics_that_there_are(painted: Site) -> None:
    painted.http.post("/v1/images/generations", json=FOX)
    there = {sample.name for family in families(painted).values() for sample in family.samples}
    metrics = Metrics()
    for kind in ("queue", "preview", "transition", "decode", "request"):
        metrics.observe(Observation(kind=kind, model="m", seconds=0.1))  # type: ignore[arg-type]
    there |= {sample.name for family in metrics.registry.collect() for sample in family.samples}
    board = json.loads(BOARD.read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"(?:lssgen|process)_[a-z_]+", target["expr"])
    }
    assert len(asked) > 10
    assert asked <= there | {"lssgen_http_refused_total", "lssgen_lane_pictures"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_health_is_live_and_ready(host: Host, room: FakeRoom) -> None:
    with host() as site:
        for phase, live, ready in (("starting", 200, 503), ("ready", 200, 200), ("stuck", 503, 503)):
            room.phase = phase  # type: ignore[assignment]
            answer = site.http.get("/health/live")
            assert (answer.status_code, answer.json()) == (live, {"status": phase})
            assert site.http.get("/health/ready").status_code == ready
        room.phase = "ready"


def test_spans_are_a_request_and_its_stages(room: FakeRoom) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with serving(room, Metrics(), tracer=open_tracer(provider)) as site:
        site.http.post("/v1/images/generations", json=FOX, headers={"traceparent": above})
        spans = {span.name: span for span in kept.get_finished_spans()}
    stage, whole = spans["stage"], spans["lssgen generations"]
    assert stage.parent is not None
    assert whole.parent is not None
    assert stage.parent.span_id == whole.get_span_context().span_id
    assert f"{whole.parent.span_id:016x}" == "b7ad6b7169203331"
    assert (stage.attributes or {})["lssgen.width"] == 32
    assert stage.end_time - stage.start_time == pytest.approx(0.1e9, rel=0.01)


def test_traces_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ServingError, match=r'pip install "lssgen\[otel\]"'):
        open_tracer()
