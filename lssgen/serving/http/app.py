"""The application: endpoints at their places, and what is around them."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lssgen.serving.http.api import Api, Endpoint, not_found, told_in_form
from lssgen.serving.http.gate import Gate, doors_of

PAGE_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""Files of the web page, and their types, by path."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from anywhere else, and cannot be framed."""

TOLD_TO_PAGES = ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "location"]


def _never(client: Any) -> None:
    del client


def build_app(
    api: Api, *, abort: Callable[[Any], None] = _never, time_left: Callable[[], float] | None = None
) -> Starlette:
    """The application.

    Args:
        api: Its endpoints.
        abort: Ends the connection of a client, by its address as ASGI has it.
        time_left: Seconds that what was taken still has, once the server is told to stop; None: all that the settings
            give.
    """
    keyed: list[tuple[str, str, Endpoint]] = [
        ("POST", "/v1/images/generations", api.generations),
        ("POST", "/v1/images/edits", api.edits),
        ("POST", "/v1/images/variations", api.variations),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{id:path}", api.model),
        ("POST", "/v1/jobs", api.create_job),
        ("GET", "/v1/jobs", api.list_jobs),
        ("GET", "/v1/jobs/{id}", api.job),
        ("DELETE", "/v1/jobs/{id}", api.delete_job),
        ("POST", "/v1/jobs/{id}/cancel", api.cancel_job),
        ("GET", "/v1/jobs/{id}/events", api.job_events),
        ("GET", "/v1/jobs/{id}/result", api.job_result),
        ("POST", "/v1/jobs/{id}/refine", api.refine_job),
    ]
    free: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v1/images/files/{name}", api.file),
        ("GET", "/health/live", api.live),
        ("GET", "/health/ready", api.ready),
        ("GET", "/metrics", api.metrics_text),
        ("GET", "/openapi.json", api.openapi),
    ]
    if not api.keeps:
        keyed = [one for one in keyed if not one[1].startswith("/v1/jobs")]
        free = [one for one in free if not one[1].startswith("/v1/images/files")]
    if api.settings.page and api.keeps:
        free += [("GET", path, _page_file(*file)) for path, file in PAGE_FILES.items()]
    placed = [(method, path, api.keyed(endpoint)) for method, path, endpoint in keyed]
    placed += [(method, path, told_in_form(endpoint)) for method, path, endpoint in free]
    by_path: dict[str, dict[str, Endpoint]] = {}
    for method, path, endpoint in placed:
        by_path.setdefault(path, {})[method] = endpoint
    routes = [Route(path, _by_method(methods), methods=list(methods)) for path, methods in by_path.items()]
    names: dict[object, str] = {route.endpoint: route.path for route in routes}
    doors = doors_of(
        api.settings.host,
        keyed=api.keys is not None,
        public_url=api.settings.public_url,
        origins=api.settings.allow_origin,
    )
    gate = Middleware(Gate, doors=doors, limits=api.limits, metrics=api.metrics, routes=names, abort=abort)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(api.settings.allow_origin),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["authorization", "content-type", "idempotency-key", "prefer", "x-request-id"],
        expose_headers=TOLD_TO_PAGES,
    )
    return Starlette(
        routes=routes,
        middleware=[gate, *([cors] if api.settings.allow_origin else [])],
        exception_handlers={HTTPException: not_found},
        lifespan=lambda _: _life(api, time_left or (lambda: api.settings.drain_seconds)),
    )


@asynccontextmanager
async def _life(api: Api, time_left: Callable[[], float]) -> AsyncGenerator[None, None]:
    """Go on with what an earlier run left, and look after what is kept, while the application lives."""
    await api.reception.restore()
    sweeper = asyncio.create_task(api.reception.sweep())
    try:
        yield
    finally:
        sweeper.cancel()
        await asyncio.gather(sweeper, return_exceptions=True)
        await api.reception.drain(time_left())
        await api.reception.close()
        if api.tracer is not None:
            await asyncio.to_thread(api.tracer.close)


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    """One endpoint for a path: a route that does not know a method would answer before the next is asked."""
    if len(endpoints) == 1:
        return next(iter(endpoints.values()))

    async def answer(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await endpoints[method](request)

    return answer


def _page_file(name: str, kind: str) -> Endpoint:
    content = (files("lssgen.serving.http") / "page" / name).read_bytes()

    async def answer(request: Request) -> Response:
        del request
        return Response(
            content, media_type=kind, headers={"content-security-policy": PAGE_POLICY, "cache-control": "no-cache"}
        )

    return answer
