"""Metrics in Prometheus' form. Base units everywhere: seconds, bytes, pixels."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from lssgen.serving.status import Observation, Stats

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for what happens within a request, in seconds."""

_LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Bounds for whole requests and their waits, in seconds."""

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64)

MOST_SIZES = 64
"""Picture sizes that have labels of their own; further ones are "other", since clients may ask for any number."""

PARTS = ("stage", "preview", "decode", "text", "encode", "transition", "load")
"""Kinds of observations that are parts of a picture's way."""


class Metrics:
    """What a server measures; `observe` may be called from any thread, and costs some microseconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        of_size = ["model", "width", "height"]
        self._steps = Histogram(
            "lssgen_step_seconds", "Engine call of a step.", of_size, buckets=_SHORT, registry=self.registry
        )
        self._rows = Histogram(
            "lssgen_batch_pictures", "Pictures in a step's call.", of_size, buckets=_ROWS, registry=self.registry
        )
        self._places = Counter(
            "lssgen_batch_places", "Places of the steps' buffers, filled or not.", of_size, registry=self.registry
        )
        self._parts = {
            part: Histogram(
                f"lssgen_{part}_seconds",
                f"{part.capitalize()} of pictures.",
                of_size,
                buckets=_LONG,
                registry=self.registry,
            )
            for part in PARTS
        }
        self._queue = Histogram(
            "lssgen_queue_seconds", "Wait of a request.", ["model"], buckets=_LONG, registry=self.registry
        )
        self._ends = Histogram(
            "lssgen_request_seconds",
            "Request, from its coming to its end.",
            ["model", "outcome"],
            buckets=_LONG,
            registry=self.registry,
        )
        self._http = Histogram(
            "lssgen_http_request_seconds",
            "HTTP request.",
            ["route", "method", "status"],
            buckets=_LONG,
            registry=self.registry,
        )
        self._refused = Counter(
            "lssgen_http_refused", "HTTP requests that were refused.", ["code"], registry=self.registry
        )
        self._sizes: set[tuple[str, int, int]] = set()
        self._known: dict[tuple[str, str, int, int], tuple[Histogram, Histogram, Counter] | tuple[Histogram]] = {}

    def observe(self, seen: Observation) -> None:
        """Count what the engine room has measured."""
        if seen.kind == "queue":
            self._queue.labels(seen.model).observe(seen.seconds)
        elif seen.kind == "request":
            self._ends.labels(seen.model, seen.outcome).observe(seen.seconds)
        else:
            self._observe_part(seen)

    def answered(self, route: str, method: str, status: int, seconds: float, code: str) -> None:
        """Count an HTTP request; `code` is that of its refusal."""
        self._http.labels(route, method, str(status)).observe(seconds)
        if code:
            self._refused.labels(code).inc()

    def watch(self, stats: Callable[[], Stats], store_bytes: Callable[[], int]) -> None:
        """Tell the state of the engine room, too, whenever somebody asks."""
        self.registry.register(_Room(stats, store_bytes))

    def text(self) -> bytes:
        """Everything, in Prometheus' text form."""
        return generate_latest(self.registry)

    def _observe_part(self, seen: Observation) -> None:
        key = (seen.kind, seen.model, seen.width_px, seen.height_px)
        found = self._known.get(key)
        if found is None:
            found = self._of(seen)
            if len(self._known) < MOST_SIZES * len(PARTS):
                self._known[key] = found
        found[0].observe(seen.seconds)
        if len(found) == 3:
            found[1].observe(seen.rows)
            found[2].inc(seen.batch)

    def _of(self, seen: Observation) -> tuple[Histogram, Histogram, Counter] | tuple[Histogram]:
        labels = self._labels(seen)
        if seen.kind == "step":
            return tuple(one.labels(*labels) for one in (self._steps, self._rows, self._places))  # pyright: ignore[reportReturnType]
        return (self._parts[seen.kind].labels(*labels),)

    def _labels(self, seen: Observation) -> tuple[str, str, str]:
        size = (seen.model, seen.width_px, seen.height_px)
        if size not in self._sizes and len(self._sizes) >= MOST_SIZES:
            return seen.model, "other", "other"
        self._sizes.add(size)
        return seen.model, str(seen.width_px), str(seen.height_px)


class _Room:
    """The engine room's own counts, read when they are asked for."""

    def __init__(self, stats: Callable[[], Stats], store_bytes: Callable[[], int]) -> None:
        self._stats = stats
        self._store_bytes = store_bytes

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: a server that still starts has no counts."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The counts of this moment."""
        now = self._stats()
        gauges = {
            "ready": ("Whether requests are painted: 1 or 0.", float(now.phase == "ready")),
            "queue_requests": ("Requests that wait.", now.waiting),
            "queue_pixels": ("Pixels of pictures that wait.", now.waiting_pixels),
            "running_requests": ("Requests that are painted.", now.running),
            "drafts": ("Drafts that are kept.", now.drafts),
            "draft_bytes": ("Memory of drafts.", now.draft_bytes),
            "buffer_bytes": ("Memory of buffers on the device.", now.buffer_bytes),
            "weights_bytes": ("Weights of the models that are loaded.", now.loaded_bytes),
            "memory_limit_bytes": ("Memory that weights and buffers may take.", now.memory_bytes),
            "store_bytes": ("Finished pictures that are kept.", self._store_bytes()),
        }
        for name, (said, value) in gauges.items():
            yield GaugeMetricFamily(f"lssgen_{name}", said, value=value)
        counters = {
            "accepted": ("Requests that were taken.", now.accepted),
            "done": ("Requests that ended well.", now.done),
            "cancelled": ("Requests that were cancelled.", now.cancelled),
            "failed": ("Requests that failed.", now.failed),
            "pictures": ("Pictures that were painted.", now.pictures),
            "pixels": ("Pixels that were painted.", now.pixels),
            "steps": ("Steps, counted by picture.", now.steps),
            "calls": ("Engine calls of steps.", now.calls),
            "previews": ("Previews that were decoded.", now.previews),
            "nonfinite": ("Pictures that held NaN or infinity.", now.nonfinite),
            "busy_seconds": ("Time in engine calls.", now.busy_seconds),
        }
        for name, (said, value) in counters.items():
            yield CounterMetricFamily(f"lssgen_{name}", said, value=value)
        refused = CounterMetricFamily("lssgen_refused", "Requests that the engine room refused.", labels=["code"])
        for code, count in now.refused.items():
            refused.add_metric([code], count)
        yield refused
        rows = GaugeMetricFamily(
            "lssgen_lane_pictures", "Pictures on the device.", labels=["model", "width", "height", "branches"]
        )
        lanes: dict[tuple[str, ...], int] = {}
        for lane in now.lanes:
            labels = (lane.model, str(lane.width_px), str(lane.height_px), str(lane.branches))
            lanes[labels] = lanes.get(labels, 0) + lane.rows
        for labels, count in lanes.items():
            rows.add_metric(labels, count)
        yield rows
