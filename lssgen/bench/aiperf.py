"""What AIPerf has measured of a server, in the bench's words, so that both stand in one history.

AIPerf's `image_latency` and `image_throughput` count the pictures that a request sends, not those that it gets; those
of the bench are worked out from `request_latency` and the number of pictures that were asked for.

Source: aiperf 0.13.0, aiperf/common/models/export_models.py and aiperf/metrics/types; schema 1.4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from lssgen.bench.environment import environment
from lssgen.bench.history import Point, machine_of
from lssgen.bench.summary import LEAST_FOR, Summary
from lssgen.errors import BenchError
from lssgen.jsons import JsonError, read_json

ENDPOINTS = ("image_generation", "image_edit")
"""AIPerf's names of the endpoints that paint."""


class _Metric(msgspec.Struct):
    unit: str
    avg: float


class _Latency(Summary, frozen=True, kw_only=True):
    unit: str


class _Named(msgspec.Struct):
    name: str


class _Models(msgspec.Struct):
    items: Sequence[_Named]


class _Endpoint(msgspec.Struct):
    type: str
    streaming: bool = False
    extra: Mapping[str, object] = {}


class _Phase(msgspec.Struct):
    kind: str = ""
    concurrency: int | None = None
    rate: float | None = None


class _Config(msgspec.Struct):
    models: _Models
    endpoint: _Endpoint
    phases: Sequence[_Phase] = ()


class _Export(msgspec.Struct):
    """The part of an export that is read; names are AIPerf's."""

    aiperf_version: str
    input_config: _Config
    end_time: str
    request_throughput: _Metric
    request_latency: _Latency
    request_error_rate: _Metric | None = None
    http_req_waiting: _Latency | None = None
    was_cancelled: bool = False
    is_complete: bool = True


class ServedResult(msgspec.Struct, frozen=True, kw_only=True):
    """A server as its clients saw it. The words are those of `lssgen.bench.results.CaseResult`.

    Attributes:
        model: Name that was asked for.
        name: Words that tell the load from others: endpoint, size, pictures, concurrency.
        pictures: Pictures of a request.
        request_latency_ms: Time from the request to its last byte.
        image_latency_ms: The same for one picture of the request.
        image_throughput: Pictures a second, of all clients together.
        time_to_first_preview_ms: Time to the first byte of a stream; None where it was no stream.
        written: Time at which it ended.
        version: Version of AIPerf.
        complaints: Sentences about requests that went wrong.
    """

    model: str
    name: str
    pictures: int
    request_latency_ms: Summary
    image_latency_ms: Summary
    image_throughput: float
    time_to_first_preview_ms: Summary | None
    written: str
    version: str
    complaints: tuple[str, ...] = ()


def read_aiperf(path: Path) -> ServedResult:
    """Read `profile_export_aiperf.json`.

    Raises:
        BenchError: It is missing, damaged, of another endpoint, or of a run that was not finished.
    """
    try:
        found = read_json(path, _Export)
    except JsonError as error:
        raise BenchError(f"{path} cannot be read as an export of AIPerf: it {error}") from error
    endpoint = found.input_config.endpoint
    if endpoint.type not in ENDPOINTS:
        raise BenchError(f"{path} is of {endpoint.type!r}, which paints nothing; measure {' or '.join(ENDPOINTS)}")
    if found.was_cancelled or not found.is_complete:
        raise BenchError(f"{path} is of a run that was stopped half-way; measure again")
    pictures = _pictures(endpoint, path)
    latency = _summary(found.request_latency, path)
    first = found.http_req_waiting if endpoint.streaming else None
    return ServedResult(
        model=found.input_config.models.items[0].name if found.input_config.models.items else "",
        name=_words(found.input_config, pictures),
        pictures=pictures,
        request_latency_ms=latency,
        image_latency_ms=_divided(latency, pictures),
        image_throughput=pictures * found.request_throughput.avg,
        time_to_first_preview_ms=None if first is None else _summary(first, path),
        written=found.end_time,
        version=found.aiperf_version,
        complaints=_complaints(found.request_error_rate),
    )


def point_of(result: ServedResult, label: str = "") -> Point:
    """What it adds to a history. The machine is this one: AIPerf does not say where the server was."""
    facts = environment({})
    return Point(
        written=result.written,
        version=facts.software.get("lssgen", "unknown"),
        label=label,
        bundle=result.model,
        engine="served",
        case=result.name,
        machine=machine_of(facts),
        image_latency_ms=result.image_latency_ms.p50,
        image_throughput=result.image_throughput,
    )


def _pictures(endpoint: _Endpoint, path: Path) -> int:
    asked = endpoint.extra.get("n", 1)
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise BenchError(f"{path} asked for {str(asked)[:20]!r} pictures a request; measure with --extra-inputs n:1")
    return asked


def _summary(found: _Latency, path: Path) -> Summary:
    """The same without percentiles that so few measurements cannot tell."""
    if found.unit != "ms":
        raise BenchError(f"{path} has latencies in {found.unit!r}, and this lssgen reads milliseconds; upgrade lssgen")
    if found.p50 <= 0:
        raise BenchError(f"{path} has a latency of {found.p50:g} ms, which no picture takes; measure again")
    few = {name: None for name, least in LEAST_FOR.items() if found.count < least}
    return msgspec.convert({**msgspec.to_builtins(found), **few}, Summary)


def _divided(summary: Summary, by: int) -> Summary:
    values: dict[str, float | None] = msgspec.to_builtins(summary)
    shares = {name: value and value / by for name, value in values.items()}
    return msgspec.convert({**shares, "count": summary.count}, Summary)


def _words(config: _Config, pictures: int) -> str:
    phase = next((phase for phase in config.phases if phase.kind == "profiling"), _Phase())
    words = [
        config.endpoint.type,
        str(config.endpoint.extra.get("size", "")),
        f"batch {pictures}",
        f"{phase.concurrency} at a time" if phase.concurrency else "",
        f"{phase.rate:g} a second" if phase.rate else "",
        "stream" if config.endpoint.streaming else "",
    ]
    return ", ".join(filter(None, words))


def _complaints(rate: _Metric | None) -> tuple[str, ...]:
    if rate is None or rate.avg == 0:
        return ()
    return (f"{rate.avg:.3g} % of the requests went wrong: the times are those of the others",)
