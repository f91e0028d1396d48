"""The OpenAPI document, made from the same records that read the requests."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import msgspec

from lssgen.serving.http.fields import Edit, EditForm, Generation, JobFields, Refinement, VariationForm
from lssgen.serving.http.refusals import KINDS

_REF = "#/components/schemas/{name}"
_BODIES = (Generation, Edit, EditForm, VariationForm, JobFields, Refinement)

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_SECONDS: dict[str, Any] = {"type": "number", "minimum": 0}
_ANY: dict[str, Any] = {"type": "object"}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REF.format(name=name)}


ANSWERS: Mapping[str, dict[str, Any]] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": {"enum": sorted({kind.type for kind in KINDS.values()})},
                    "param": _nullable(_TEXT),
                    "code": {"enum": sorted(KINDS)},
                }
            )
        }
    ),
    "Usage": _object(
        {
            "total_tokens": _COUNT,
            "input_tokens": _COUNT,
            "output_tokens": _COUNT,
            "input_tokens_details": _object({"text_tokens": _COUNT, "image_tokens": _COUNT}),
        },
        pixels=_COUNT,
        steps=_COUNT,
        passes=_COUNT,
        device_seconds=_SECONDS,
    ),
    "Timings": _object(
        {
            "queue_seconds": _SECONDS,
            "total_seconds": _SECONDS,
            "spans": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "index": {"type": "integer", "minimum": -1},
                        "began_seconds": {"type": "number"},
                        "seconds": {"type": "number"},
                        "width": _COUNT,
                        "height": _COUNT,
                        "steps": _COUNT,
                    }
                ),
            },
        }
    ),
    "Images": _object(
        {
            "created": _COUNT,
            "id": _TEXT,
            "data": {
                "type": "array",
                "items": {
                    "anyOf": [
                        _object({"b64_json": _TEXT, "seed": _COUNT}),
                        _object({"url": _TEXT, "seed": _COUNT}),
                    ]
                },
            },
            "background": {"enum": ["opaque"]},
            "output_format": {"enum": ["png", "jpeg", "webp"]},
            "quality": {"enum": ["low", "medium", "high"]},
            "size": _TEXT,
            "usage": _ref("Usage"),
        },
        model=_TEXT,
        timings=_ref("Timings"),
        notes={"type": "array", "items": _TEXT},
    ),
    "Job": _object(
        {
            "id": _TEXT,
            "object": {"enum": ["image.job"]},
            "status": {"enum": ["queued", "running", "done", "failed", "cancelled", "lost"]},
            "created_at": _COUNT,
            "ended_at": _nullable(_COUNT),
            "queue_position": _nullable(_COUNT),
            "estimated_seconds": _nullable(_SECONDS),
            "progress": _nullable(
                _object(dict.fromkeys(("done", "total", "stage", "stages", "width", "height"), _COUNT))
            ),
            "pictures": _COUNT,
            "previews": _COUNT,
            "draft": {"type": "boolean"},
            "seed": _nullable(_COUNT),
            "model": _nullable(_TEXT),
            "notes": {"type": "array", "items": _TEXT},
            "error": _nullable(_ANY),
            "urls": _ANY,
        }
    ),
    "Jobs": _object({"object": {"enum": ["list"]}, "data": {"type": "array", "items": _ref("Job")}}),
    "Deleted": _object({"id": _TEXT, "object": {"enum": ["image.job"]}, "deleted": {"enum": [True]}}),
    "Model": _object(
        {"id": _TEXT, "object": {"enum": ["model"]}, "created": {"type": "integer"}, "owned_by": _TEXT},
        aliases={"type": "array", "items": _TEXT},
        family=_TEXT,
        loaded={"type": "boolean"},
        width=_COUNT,
        height=_COUNT,
        multiple=_COUNT,
        starts={"type": "boolean"},
        stages={"type": "boolean"},
    ),
    "Models": _object({"object": {"enum": ["list"]}, "data": {"type": "array", "items": _ref("Model")}}),
    "Health": _object({"status": {"enum": ["starting", "ready", "draining", "closed", "stuck", "broken"]}}),
}

_JSON, _FORM, _EVENTS = "application/json", "multipart/form-data", "text/event-stream"
_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
_FILE = {
    "name": "name",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}[.](png|jpeg|webp)$"},
}
_MODEL = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Tells a repetition of a request from another request.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "respond-async makes a job of the request.",
    "schema": {"enum": ["respond-async"]},
}
_AS = {"name": "response_format", "in": "query", "required": False, "schema": {"enum": ["url", "b64_json"]}}


def openapi_document(*, keyed: bool) -> dict[str, Any]:
    """The document.

    Args:
        keyed: Whether requests need a key.
    """
    _, bodies = msgspec.json.schema_components(_BODIES, ref_template=_REF)
    for form, images in (("EditForm", True), ("VariationForm", False)):
        bodies[form] = _with_files(bodies[form], mask=images)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lssgen",
            "version": version("lssgen"),
            "description": "OpenAI's Images API, jobs, and what a run of lssgen may be asked besides.",
        },
        "paths": _paths(),
        "components": {
            "schemas": {**bodies, **ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if keyed else [],
    }


def _with_files(schema: dict[str, Any], *, mask: bool) -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    files = {"image": file, **({"mask": file} if mask else {})}
    return {
        **schema,
        "properties": {**schema["properties"], **files},
        "required": [*schema.get("required", []), "image"],
    }


def _paths() -> dict[str, Any]:
    images = {200: (_ref("Images"), _JSON, _EVENTS), 202: (_ref("Job"), _JSON)}
    job = {200: (_ref("Job"), _JSON)}
    paint = [_KEY_HEADER, _PREFER]
    return {
        "/v1/images/generations": {
            "post": _operation("Paint pictures of a prompt.", images, paint, {_JSON: "Generation"}),
        },
        "/v1/images/edits": {
            "post": _operation("Paint over a picture.", images, paint, {_JSON: "Edit", _FORM: "EditForm"}),
        },
        "/v1/images/variations": {
            "post": _operation("Paint pictures like a picture.", images, paint, {_FORM: "VariationForm"}),
        },
        "/v1/images/files/{name}": {
            "get": _operation(
                "A finished picture.", {200: ({}, "image/png", "image/jpeg", "image/webp")}, [_FILE], open=True
            ),
        },
        "/v1/models": {"get": _operation("The models.", {200: (_ref("Models"), _JSON)})},
        "/v1/models/{id}": {"get": _operation("A model.", {200: (_ref("Model"), _JSON)}, [_MODEL])},
        "/v1/jobs": {
            "post": _operation("Make a job.", {202: (_ref("Job"), _JSON)}, [_KEY_HEADER], {_JSON: "JobFields"}),
            "get": _operation("Your jobs, newest first.", {200: (_ref("Jobs"), _JSON)}),
        },
        "/v1/jobs/{id}": {
            "get": _operation("Where a job is.", job, [_ID]),
            "delete": _operation("Cancel a job, and let go of it.", {200: (_ref("Deleted"), _JSON)}, [_ID]),
        },
        "/v1/jobs/{id}/cancel": {"post": _operation("Cancel a job.", job, [_ID])},
        "/v1/jobs/{id}/events": {"get": _operation("A job as it goes on.", {200: ({}, _EVENTS)}, [_ID])},
        "/v1/jobs/{id}/result": {
            "get": _operation("What a job gave.", {200: (_ref("Images"), _JSON)}, [_ID, _AS]),
        },
        "/v1/jobs/{id}/refine": {
            "post": _operation(
                "Finish some pictures of a draft.", {202: (_ref("Job"), _JSON)}, [_ID], {_JSON: "Refinement"}
            ),
        },
        "/health/live": {"get": _operation("Whether it works.", _health(), open=True)},
        "/health/ready": {"get": _operation("Whether it paints.", _health(), open=True)},
        "/metrics": {"get": _operation("Metrics for Prometheus.", {200: ({}, "text/plain")}, open=True)},
        "/openapi.json": {"get": _operation("This document.", {200: (_ANY, _JSON)}, open=True)},
    }


def _health() -> dict[int, Any]:
    return {status: (_ref("Health"), _JSON) for status in (200, 503)}


def _operation(
    summary: str,
    answers: Mapping[int, tuple[Any, ...]],
    parameters: list[dict[str, Any]] | None = None,
    bodies: Mapping[str, str] | None = None,
    *,
    open: bool = False,  # noqa: A002
) -> dict[str, Any]:
    told: dict[str, Any] = {
        str(status): {
            "description": "It went well." if status < 300 else "It does not.",
            "content": {kind: {"schema": schema} for kind in kinds},
        }
        for status, (schema, *kinds) in answers.items()
    }
    refusals = {str(kind.status) for kind in KINDS.values()} - set(told)
    error = {"description": "Refused; `code` says why.", "content": {_JSON: {"schema": _ref("Error")}}}
    operation: dict[str, Any] = {"summary": summary, "responses": {**told, **dict.fromkeys(sorted(refusals), error)}}
    if parameters:
        operation["parameters"] = parameters
    if bodies:
        content = {kind: {"schema": _ref(name)} for kind, name in bodies.items()}
        operation["requestBody"] = {"required": True, "content": content}
    if open:
        operation["security"] = []
    return operation
