"""The endpoints."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lssgen.serving.http import logs
from lssgen.serving.http.answers import images_answer, job_status, told_event
from lssgen.serving.http.bodies import Bodies, form_of
from lssgen.serving.http.fields import (
    Common,
    Edit,
    EditForm,
    Generation,
    JobFields,
    Refinement,
    VariationForm,
    fields_from_form,
    fields_from_json,
)
from lssgen.serving.http.jobs import Job, Painted, failure
from lssgen.serving.http.keys import Client, Keys
from lssgen.serving.http.limits import Limits
from lssgen.serving.http.metrics import CONTENT_TYPE, Metrics
from lssgen.serving.http.orders import Asked, asked_edit, asked_generation
from lssgen.serving.http.reception import Reception
from lssgen.serving.http.refusals import HttpError
from lssgen.serving.http.responses import EventStream, error_answer, first_of, json_answer, sse
from lssgen.serving.http.settings import HttpSettings
from lssgen.serving.http.tracing import Tracer
from lssgen.serving.status import ModelInfo

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

LOOK_EVERY_S = 0.2
"""Seconds between two looks at how far a job is, for its stream."""

_IDEMPOTENCY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(slots=True, kw_only=True)
class Api:
    """What the endpoints share.

    Attributes:
        reception: Takes the orders.
        settings, limits: The owner's choices.
        keys: Who may ask; None: everybody.
        metrics: Counts.
        document: The OpenAPI document.
        tracer: Makes spans; None: there are none.
        keeps: True where jobs and pictures may be asked for later.
    """

    reception: Reception
    settings: HttpSettings
    limits: Limits
    keys: Keys | None
    metrics: Metrics
    document: dict[str, Any]
    tracer: Tracer | None = None
    keeps: bool = True
    _bodies: Bodies = field(init=False)

    def __post_init__(self) -> None:
        self._bodies = Bodies(self.limits, relayed=not self.keeps)

    # --- Pictures -----------------------------------------------------------------------------------------------------

    async def generations(self, request: Request) -> Response:
        body = await self._json(request)
        return await self._answer(request, asked_generation(fields_from_json(body, Generation)))

    async def edits(self, request: Request) -> Response:
        body = await self._bodies.read(request)
        if _kind(request) == "application/json":
            return await self._answer(request, asked_edit(fields_from_json(body, Edit)))
        form = await form_of(request, _multipart(request, body))
        fields = fields_from_form(form.values, EditForm)
        return await self._answer(request, Asked(route="edits", fields=fields, images=form.images, mask=form.mask))

    async def variations(self, request: Request) -> Response:
        form = await form_of(request, _multipart(request, await self._bodies.read(request)))
        fields = fields_from_form(form.values, VariationForm)
        if form.mask is not None:
            raise HttpError("unknown_field", "a variation has no mask; send it to /v1/images/edits", param="mask")
        return await self._answer(request, Asked(route="variations", fields=fields, images=form.images))

    async def file(self, request: Request) -> Response:
        store, name = self.reception.store, request.path_params["name"]
        data, kind = await asyncio.to_thread(store.get, name)
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=3600"})

    async def _answer(self, request: Request, asked: Asked) -> Response:
        client = _client(request)
        later = "respond-async" in request.headers.get("prefer", "").lower()
        _see_stream(asked.fields, later=later)
        self._see_kept(request, asked.fields, later=later)
        job = await self.reception.take(asked, client, kept=later, idempotency=_idempotency(request))
        self._note(request, job)
        if later:
            return self._accepted(request, job, {"preference-applied": "respond-async"})
        if asked.fields.stream:
            return self._stream(request, job)
        return await self._wait(request, job)

    def _see_kept(self, request: Request, fields: Common, *, later: bool) -> None:
        """Refuse what would have to be known when another process is asked."""
        if self.keeps:
            return
        asked = {"Prefer": later, "Idempotency-Key": bool(_idempotency(request))}
        asked["response_format"] = fields.response_format == "url"
        for name, wanted in asked.items():
            if wanted:
                message = f"{name}: this server keeps nothing, since another of its processes may be asked next time"
                raise HttpError("not_supported", message, param=name)

    async def _wait(self, request: Request, job: Job) -> Response:
        """One answer, when it has ended."""
        job.waiters += 1
        try:
            if not await first_of(request, job.wait()):
                return Response(status_code=499)  # nobody reads it
        finally:
            self.reception.left(job)
        return await self._result(request, job)

    async def _result(self, request: Request, job: Job) -> Response:
        if job.error is not None:
            raise job.error
        asked = request.query_params.get("response_format")
        if asked not in (None, "url", "b64_json"):
            message = f"response_format is {asked[:64]!r}; choose url or b64_json"
            raise HttpError("invalid_value", message, param="response_format")
        as_url = asked == "url" if asked else bool(job.order and job.order.respond == "url")
        return json_answer(await images_answer(self.reception, job, base=self._base(request), as_url=as_url))

    def _stream(self, request: Request, job: Job) -> Response:
        job.waiters += 1
        return EventStream(self._events(request, job), lambda: self.reception.left(job))

    async def _events(self, request: Request, job: Job) -> AsyncGenerator[bytes, None]:
        """OpenAI's events. The last picture's waits for the end, which knows what the request used."""
        del request
        last: Painted | None = None
        async for told in job.events(self.settings.ping_seconds):
            if told is None:
                yield b": ping\n\n"
                continue
            if last is not None:
                yield sse(*await told_event(self.reception, job, last))
            last = told if isinstance(told, Painted) else None
            if last is None:
                yield sse(*await told_event(self.reception, job, told))
        if last is not None and job.error is None:
            yield sse(*await told_event(self.reception, job, last))
        if job.error is not None:
            yield sse("error", job.error.body())

    # --- Jobs ---------------------------------------------------------------------------------------------------------

    async def create_job(self, request: Request) -> Response:
        fields = fields_from_json(await self._json(request), JobFields)
        if fields.stream:
            raise HttpError("invalid_value", "a job is followed at its events; leave stream out", param="stream")
        plain: dict[str, Any] = {name: getattr(fields, name) for name in Generation.__struct_fields__}
        if fields.partial_images is None:
            plain["partial_images"] = 1
        asked = asked_generation(Generation(**plain), draft=bool(fields.draft))
        job = await self.reception.take(asked, _client(request), kept=True, idempotency=_idempotency(request))
        self._note(request, job)
        return self._accepted(request, job)

    async def list_jobs(self, request: Request) -> Response:
        base = self._base(request)
        data = [job_status(job, base) for job in self.reception.jobs(_client(request))]
        return json_answer({"object": "list", "data": data})

    async def job(self, request: Request) -> Response:
        return json_answer(job_status(self._job(request), self._base(request)))

    async def cancel_job(self, request: Request) -> Response:
        job = self._job(request)
        job.cancel()
        await _ended_soon(job)
        return json_answer(job_status(job, self._base(request)))

    async def delete_job(self, request: Request) -> Response:
        job = self._job(request)
        await self.reception.forget(job)
        return json_answer({"id": job.id, "object": "image.job", "deleted": True})

    async def job_result(self, request: Request) -> Response:
        job = self._job(request)
        if job.open:
            raise HttpError("job_not_finished", f"job {job.id} has not ended; ask for its status", param="id")
        return await self._result(request, job)

    async def job_events(self, request: Request) -> Response:
        return EventStream(self._job_events(self._job(request), self._base(request)), _nothing)

    async def refine_job(self, request: Request) -> Response:
        fields = fields_from_json(await self._json(request), Refinement)
        draft = self._job(request)
        if draft.open:
            raise HttpError("job_not_finished", f"draft {draft.id} has not ended; ask for its status", param="id")
        job = await self.reception.refine(draft, fields.keep, _client(request), idempotency=_idempotency(request))
        return self._accepted(request, job)

    async def _job_events(self, job: Job, base: str) -> AsyncGenerator[bytes, None]:
        """States as they change, previews and pictures as they come, the last state at the end."""
        before: dict[str, Any] = {}
        silent = 0.0
        async for told in job.events(LOOK_EVERY_S):
            now = job_status(job, base)
            silent += LOOK_EVERY_S
            if now != before:
                yield sse("job.status", now)
                before, silent = now, 0.0
            if told is not None:
                yield sse(*await told_event(self.reception, job, told))
            elif silent >= self.settings.ping_seconds:
                yield b": ping\n\n"
                silent = 0.0
        if job.error is not None:
            yield sse("error", job.error.body())
        yield sse(f"job.{job.state}", job_status(job, base))

    def _accepted(self, request: Request, job: Job, headers: dict[str, str] | None = None) -> Response:
        status = job_status(job, self._base(request))
        return json_answer(status, 202, {"location": f"/v1/jobs/{job.id}", **(headers or {})})

    def _job(self, request: Request) -> Job:
        return self.reception.job(request.path_params["id"], _client(request))

    # --- What there is, and how it is ---------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        del request
        return json_answer({"object": "list", "data": [_model(one) for one in self.reception.room.models()]})

    async def model(self, request: Request) -> Response:
        return json_answer(_model(await self.reception.model(request.path_params["id"])))

    async def live(self, request: Request) -> Response:
        del request
        phase = self.reception.room.phase
        return json_answer({"status": phase}, 200 if self.reception.room.live else 503)

    async def ready(self, request: Request) -> Response:
        del request
        phase = "draining" if self.reception.closing else self.reception.room.phase
        return json_answer({"status": phase}, 200 if phase == "ready" else 503)

    async def metrics_text(self, request: Request) -> Response:
        del request
        return Response(await asyncio.to_thread(self.metrics.text), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        del request
        return json_answer(self.document)

    # --- Who asks -----------------------------------------------------------------------------------------------------

    def keyed(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint for those who have a key."""

        async def answer(request: Request) -> Response:
            await self._see_key(request)
            return await endpoint(request)

        return told_in_form(answer)

    async def _see_key(self, request: Request) -> None:
        client = (
            Client("", self.limits.of_key)
            if self.keys is None
            else self.keys.client(request.headers.get("authorization"))
        )
        request.state.client = client
        request.state.noted = {"client": client.name}

    async def _json(self, request: Request) -> bytes:
        """The body, which says that it is JSON: a form of another page could not send that."""
        if _kind(request) != "application/json":
            raise HttpError("unsupported_media_type", "send JSON, with Content-Type: application/json")
        return await self._bodies.read(request)

    def _base(self, request: Request) -> str:
        return self.settings.public_url.rstrip("/") or f"{request.url.scheme}://{request.url.netloc}"

    def _note(self, request: Request, job: Job) -> None:
        """What the log says of a request that paints."""
        assert job.order is not None or job.record is not None
        noted = {**request.state.noted, "job": job.id}
        if job.order is not None:
            fields = job.order.asked.fields
            noted |= {"model": job.order.room.model, "n": job.order.room.n, "user": logs.pseudonym(fields.user)}
            if job.order.size:
                noted["size"] = f"{job.order.size[0]}x{job.order.size[1]}"
            if self.settings.log_prompts:
                noted["prompt"] = fields.prompt
        request.state.noted = noted
        job.above = {name: value for name, value in request.headers.items() if name in ("traceparent", "tracestate")}


def told_in_form(endpoint: Callable[[Request], Awaitable[Response]]) -> Endpoint:
    """An endpoint whose failures are answers in OpenAI's form."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            refusal = failure(error)
            request.state.refused = refusal.code
            return error_answer(refusal)

    return answer


async def not_found(request: Request, error: Exception) -> Response:
    """What has no endpoint."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        said = HttpError("method_not_allowed", f"{request.method} cannot be done to {request.url.path[:128]}")
        return error_answer_with(said, dict(error.headers or {}))
    return error_answer(HttpError("not_found", f"there is nothing at {request.url.path[:128]!r}; see /openapi.json"))


def error_answer_with(error: HttpError, headers: dict[str, str]) -> Response:
    """A refusal with headers of its own."""
    answer = error_answer(error)
    answer.headers.update(headers)
    return answer


def _see_stream(fields: Common, *, later: bool) -> None:
    """Refuse what contradicts the way of the answer, instead of passing over it."""
    if fields.stream and later:
        raise HttpError("invalid_value", "a job is followed at its events; leave stream out", param="stream")
    if fields.partial_images and not (fields.stream or later):
        message = "partial_images are sent in a stream; set stream to true"
        raise HttpError("invalid_value", message, param="partial_images")
    if fields.stream and fields.response_format == "url":
        message = "a stream holds the pictures themselves; leave response_format out"
        raise HttpError("invalid_value", message, param="response_format")


def _client(request: Request) -> Client:
    return request.state.client


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _multipart(request: Request, body: bytes) -> bytes:
    if _kind(request) != "multipart/form-data":
        raise HttpError("unsupported_media_type", "send a form with files, as multipart/form-data, or JSON to edits")
    return body


def _idempotency(request: Request) -> str:
    given = request.headers.get("idempotency-key", "")
    if given and not _IDEMPOTENCY.fullmatch(given):
        message = "an idempotency key has 1 to 255 characters, of ASCII, without blanks"
        raise HttpError("invalid_value", message, param="Idempotency-Key")
    return given


def _model(model: ModelInfo) -> dict[str, Any]:
    told = {
        name: getattr(model, name)
        for name in ("aliases", "family", "loaded", "width", "height", "multiple", "starts", "stages")
    }
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "lssgen", **told}


async def _ended_soon(job: Job) -> None:
    """A step is short: the answer to a cancellation can say that it has happened."""
    try:
        await asyncio.wait_for(job.wait(), 2)
    except TimeoutError:
        return


def _nothing() -> None:
    return
