"""Spans of OpenTelemetry, made when a request has ended from what the engine room measured. The extra `otel`."""

from importlib import import_module
from typing import Any, Protocol

from lssgen.errors import ServingError
from lssgen.serving.http.jobs import Job


class Tracer(Protocol):
    """Takes jobs that have ended."""

    def __call__(self, job: Job) -> None:
        """Send the spans of a job, below the span that its client's headers name."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def open_tracer(provider: Any = None) -> "Spans":
    """A tracer.

    Args:
        provider: OpenTelemetry's; None: one that sends to what OTEL_EXPORTER_OTLP_ENDPOINT names.

    Raises:
        ServingError: OpenTelemetry is not installed.
    """
    try:
        if provider is None:
            sdk, export = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.trace.export")
            otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
            resource = import_module("opentelemetry.sdk.resources").Resource.create({"service.name": "lssgen"})
            provider = sdk.TracerProvider(resource=resource)
            provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        return Spans(provider)
    except ImportError as error:
        raise ServingError('traces need OpenTelemetry; pip install "lssgen[otel]"') from error


class Spans:
    """Sends a span for every job, and one for every part of it below.

    Args:
        provider: OpenTelemetry's.
    """

    def __init__(self, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lssgen")
        self._trace = import_module("opentelemetry.trace")
        propagation = import_module("opentelemetry.trace.propagation.tracecontext")
        self._above = propagation.TraceContextTextMapPropagator()

    def __call__(self, job: Job) -> None:
        if job.order is None:
            return
        whole = self._tracer.start_span(
            f"lssgen {job.order.asked.route}",
            context=self._above.extract(job.above),
            start_time=_nanoseconds(job.created),
            attributes={
                "lssgen.job": job.id,
                "lssgen.client": job.client.name,
                "lssgen.pictures": job.order.room.n,
                "lssgen.outcome": job.state,
                "lssgen.model": str(job.answer.get("model", job.order.room.model)),
            },
        )
        context = self._trace.set_span_in_context(whole)
        for part in job.answer.get("timings", {}).get("spans", ()):
            began = job.created + part["began_seconds"]
            kept = {f"lssgen.{name}": part[name] for name in ("index", "width", "height", "steps")}
            span = self._tracer.start_span(
                part["name"], context=context, start_time=_nanoseconds(began), attributes=kept
            )
            span.end(_nanoseconds(began + part["seconds"]))
        if job.error is not None:
            whole.set_status(self._trace.StatusCode.ERROR, job.error.code)
        whole.end(_nanoseconds(job.ended))

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
