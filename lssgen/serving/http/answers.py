"""What clients are told of a job: OpenAI's answers and events, and the states of jobs."""

import base64
from typing import Any

from lssgen.serving.http.jobs import Job, Painted, Partial, Told
from lssgen.serving.http.reception import Reception

ROUTES = {"generations": "image_generation", "edits": "image_edit", "variations": "image_edit"}
"""First words of the events, by route."""


async def images_answer(reception: Reception, job: Job, *, base: str, as_url: bool) -> dict[str, Any]:
    """The answer to a request that went well.

    Args:
        reception: Has the pictures.
        job: It.
        base: Beginning of the addresses.
        as_url: Whether the pictures are told by their addresses.

    Raises:
        HttpError: A picture is gone.
    """
    data: list[dict[str, Any]] = []
    for index in sorted(job.pictures):
        picture = job.pictures[index]
        if as_url and picture.name:
            own: dict[str, Any] = {"url": f"{base}/v1/images/files/{picture.name}"}
        else:
            own = {"b64_json": base64.b64encode(await reception.contents(picture)).decode()}
        data.append({**own, "seed": picture.seed})
    return {"created": int(job.ended), "id": job.id, "data": data, "size": _size(job), **job.answer}


def job_status(job: Job, base: str) -> dict[str, Any]:
    """Where a job is."""
    address = f"{base}/v1/jobs/{job.id}"
    status: dict[str, Any] = {
        "id": job.id,
        "object": "image.job",
        "status": _state(job),
        "created_at": int(job.created),
        "ended_at": int(job.ended) if job.ended else None,
        "queue_position": None,
        "estimated_seconds": None,
        "progress": None,
        "pictures": len(job.pictures),
        "previews": sum(isinstance(one, Partial) for one in job.told),
        "draft": job.drafted,
        "seed": job.order.asked.fields.seed if job.order else job.record and job.record.fields.get("seed"),
        "model": job.ticket.model if job.ticket else job.answer.get("model"),
        "notes": list(job.ticket.notes) if job.ticket else job.answer.get("notes", []),
        "error": job.error.body()["error"] if job.error else None,
        "urls": {name: f"{address}/{name}" for name in ("events", "result", "cancel")} | {"self": address},
    }
    if waits := job.queued():
        status.update(queue_position=waits.position, estimated_seconds=waits.seconds)
    if at := job.progress:
        status["progress"] = {
            "done": at.done,
            "total": at.total,
            "stage": at.stage + 1,
            "stages": at.stages,
            "width": at.width_px,
            "height": at.height_px,
        }
    return status


async def told_event(reception: Reception, job: Job, told: Told) -> tuple[str, dict[str, Any]]:
    """OpenAI's event for a preview or a picture: its name, and its data.

    Raises:
        HttpError: The picture is gone.
    """
    first = ROUTES[job.route]
    common: dict[str, Any] = {
        "created_at": int(job.created),
        "size": f"{told.width}x{told.height}",
        "quality": job.answer.get("quality"),
        "background": "opaque",
        "output_format": job.answer.get("output_format"),
        "index": told.index,
    }
    if isinstance(told, Partial):
        name = f"{first}.partial_image"
        own = {"partial_image_index": told.number, "b64_json": _text(told.data), "kind": told.kind}
    else:
        name = f"{first}.completed"
        own = {"b64_json": _text(await reception.contents(told)), "seed": told.seed, "usage": _usage(job)}
    return name, {"type": name, **own, **common}


def _usage(job: Job) -> dict[str, Any]:
    """What the request used; of pictures that are finished before it, what is known then."""
    nothing = {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0}
    return job.answer.get("usage") or {**nothing, "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}


def _size(job: Job) -> str:
    first: Painted = job.pictures[min(job.pictures)]
    return f"{first.width}x{first.height}"


def _state(job: Job) -> str:
    """ "queued" and "running" of one that has not ended."""
    if not job.open:
        return job.state
    return "queued" if job.ticket is None or job.ticket.state == "queued" else "running"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
