"""Bundles behind HTTP, in one call: the engine room, the application around it, and the folder of jobs."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Unpack

import filelock
from starlette.applications import Starlette

from lssgen import paths
from lssgen.durable import locked
from lssgen.engines.options import EngineOptions
from lssgen.errors import ServingError
from lssgen.lora.asked import Lora
from lssgen.runtime.checking import Checker, Watermark
from lssgen.serving.http.api import Api
from lssgen.serving.http.app import build_app
from lssgen.serving.http.jobs import Job
from lssgen.serving.http.keys import Keys
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.logs import open_access_log
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.http.openapi import openapi_document
from lssgen.serving.http.reception import Reception
from lssgen.serving.http.running import Connections, address_of, open_socket, see_who_may_ask, serve_app
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.http.tracing import Tracer, open_tracer
from lssgen.serving.options import ServerOptions
from lssgen.serving.server import Server
from lssgen.verification import Verify

_LOG = logging.getLogger("lssgen.serve")


def app_of(
    room: Server,
    metrics: Metrics,
    *,
    settings: HttpSettings | None = None,
    limits: Limits | None = None,
    keys: Keys | None = None,
    state: Path | None = None,
    keeps: bool = True,
    connections: Connections | None = None,
    tracer: Tracer | None = None,
) -> Starlette:
    """The application around a server of the engine room, for any ASGI server.

    Args:
        room: The server; it is not closed with the application.
        metrics: Those that the server observes with.
        settings, limits: The owner's choices.
        keys: Who may ask; None: those of the file that the settings name.
        state: Folder of jobs; None: in memory. Its lock is the caller's.
        keeps: Whether jobs and pictures may be asked for later; not where another process may be asked then.
        connections: Those of `lssgen.serving.http.running`, so that clients that do not read can be let go.
        tracer: Makes spans.

    Raises:
        ServingError: The keys cannot be read.
        OSError: The folder cannot be used.
    """
    settings, limits = settings or HttpSettings(), limits or Limits()
    keys = keys or _keys(settings, limits)

    def ended(job: Job) -> None:
        if tracer is not None:
            tracer(job)

    reception = Reception(
        room,
        limits,
        state=state,
        keep_seconds=settings.keep_seconds,
        keep_bytes=settings.keep_mb * 2**20,
        ended=ended,
    )
    metrics.watch(room.stats, lambda: reception.store.size)
    api = Api(
        reception=reception,
        settings=settings,
        limits=limits,
        keys=keys,
        metrics=metrics,
        document=openapi_document(keyed=keys is not None),
        tracer=tracer,
        keeps=keeps,
    )
    if connections is None:
        return build_app(api)
    time_left = partial(connections.time_left, settings.drain_seconds)
    return build_app(api, abort=connections.abort, time_left=time_left)


def serve(
    bundles: Sequence[str | Path] | Mapping[str, str | Path],
    *,
    engine: str = "",
    aliases: Mapping[str, str] = MappingProxyType({}),
    loras: Mapping[str, str | Path | Lora] = MappingProxyType({}),
    settings: HttpSettings | None = None,
    limits: Limits | None = None,
    options: ServerOptions | None = None,
    verify: Verify = "once",
    checker: Checker | str | Sequence[Checker | str] | None = None,
    watermark: Watermark | str | None = None,
    **engine_options: Unpack[EngineOptions],
) -> None:
    """Serve bundles by HTTP until told to stop.

    Args:
        bundles, engine, aliases, loras, options, verify, checker, watermark, engine_options: As for `lssgen.Server`.
        settings, limits: How it faces the net.

    Raises:
        ServingError: The port is taken, the keys cannot be read, or another server has the folder of jobs.
        BundleError, BackendError, PlanError, CheckError: As for `lssgen.Server`.
    """
    settings, limits = settings or HttpSettings(), limits or Limits()
    connections, metrics = Connections(), Metrics()
    with open_socket(settings) as opened:
        keys = _keys(settings, limits)
        see_who_may_ask(settings)
        open_access_log(settings.log)
        tracer = open_tracer() if settings.traces == "otlp" else None
        with _state(settings, opened.getsockname()[1]) as state:
            room = Server(
                bundles,
                engine=engine,
                aliases=aliases,
                loras=loras,
                options=options,
                verify=verify,
                observe=metrics.observe,
                checker=checker,
                watermark=watermark,
                **engine_options,
            )
            with room:
                app = app_of(
                    room,
                    metrics,
                    settings=settings,
                    limits=limits,
                    keys=keys,
                    state=state,
                    connections=connections,
                    tracer=tracer,
                )
                _LOG.info("listening at %s, jobs in %s", address_of(opened), state)
                serve_app(app, opened, connections, settings, room.wait_ready)


def _keys(settings: HttpSettings, limits: Limits) -> Keys | None:
    return Keys(settings.api_keys, limits.of_key) if settings.api_keys else None


@contextmanager
def _state(settings: HttpSettings, port: int) -> Generator[Path]:
    """The folder of jobs, for this server alone.

    Raises:
        ServingError: Another server has it, or it cannot be written.
    """
    folder = settings.state or paths.home() / "serving" / str(port)
    try:
        with locked(folder / ".lock", wait=False):
            yield folder
    except filelock.Timeout as error:
        raise ServingError(f"another server has its jobs in {folder}; choose another folder with --state") from error
    except OSError as error:
        raise ServingError(
            f"jobs cannot be written to {folder}: {error.strerror}; choose another with --state"
        ) from error
