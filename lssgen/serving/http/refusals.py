"""What goes wrong on the way in or out, as OpenAI's clients read it: one table of kinds, one form of answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from lssgen.errors import (
    CancelledError,
    CheckError,
    LssgenError,
    NonFiniteError,
    PlanError,
    PromptError,
    RefusedError,
    RefusedPictureError,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A way in which a request fails.

    Attributes:
        status: HTTP status.
        type: OpenAI's word for the family of the error.
        retry: Advice to the client: True sends it again later, False tells it not to, which OpenAI's clients need where
            the status alone (408, 409, 429, 5xx) makes them post again; None says nothing.
    """

    status: int
    type: str
    retry: bool | None = None


_REQUEST, _SERVER = "invalid_request_error", "server_error"

KINDS: Mapping[str, Kind] = {
    # The request makes no sense.
    "invalid_json": Kind(400, _REQUEST),
    "invalid_form": Kind(400, _REQUEST),
    "missing_field": Kind(400, _REQUEST),
    "unknown_field": Kind(400, _REQUEST),
    "wrong_type": Kind(400, _REQUEST),
    "invalid_value": Kind(400, _REQUEST),
    "invalid_size": Kind(400, _REQUEST),
    "invalid_picture": Kind(400, _REQUEST),
    "not_supported": Kind(400, _REQUEST),
    "deadline_impossible": Kind(400, _REQUEST),
    "too_large": Kind(400, _REQUEST),
    # A checker of the owner's refuses a picture; the words are OpenAI's.
    "moderation_blocked": Kind(400, "image_generation_user_error"),
    "invalid_api_key": Kind(401, "authentication_error"),
    "forbidden_origin": Kind(403, "permission_error"),
    "model_not_found": Kind(404, _REQUEST),
    "not_found": Kind(404, _REQUEST),
    "method_not_allowed": Kind(405, _REQUEST),
    "job_not_finished": Kind(409, _REQUEST, retry=False),
    "idempotency_conflict": Kind(409, _REQUEST, retry=False),
    "gone": Kind(410, _REQUEST),
    "body_too_large": Kind(413, _REQUEST),
    "unsupported_media_type": Kind(415, _REQUEST),
    # The client took too long.
    "body_too_slow": Kind(408, _REQUEST, retry=False),
    "cancelled": Kind(409, "cancelled", retry=False),
    # There is too much to do.
    "rate_limit_exceeded": Kind(429, "rate_limit_error", retry=True),
    "too_many_requests": Kind(429, "rate_limit_error", retry=True),
    "queue_full": Kind(429, "rate_limit_error", retry=True),
    # The server is at fault, or not there yet.
    "will_not_fit": Kind(503, _SERVER, retry=False),
    "stopping": Kind(503, _SERVER, retry=True),
    "not_ready": Kind(503, _SERVER, retry=True),
    "body_lost": Kind(503, _SERVER, retry=True),
    "device_stuck": Kind(503, _SERVER, retry=False),
    "deadline_passed": Kind(504, _SERVER, retry=False),
    "lost": Kind(500, _SERVER, retry=False),
    "not_finite": Kind(500, _SERVER, retry=False),
    "checker_failed": Kind(500, _SERVER, retry=False),
    "engine_error": Kind(500, _SERVER, retry=False),
    "internal_error": Kind(500, _SERVER, retry=False),
}
"""Every `code` that an answer can have."""


class HttpError(Exception):
    """A request that ends without its pictures.

    Attributes:
        code: Key of `KINDS`.
        message: Text for people.
        param: Name of the field that is at fault, where one is.
        retry_after_ms: Time after which the same request may succeed, in milliseconds, where that is known.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, retry_after_ms: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's form; the four keys are always there."""
        told = {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.code}
        return {"error": told}

    def json(self) -> bytes:
        return msgspec.json.encode(self.body())

    def headers(self) -> dict[str, str]:
        """What tells a client whether and when to come again. Clients of OpenAI's wait for up to 120 seconds."""
        said: dict[str, str] = {}
        if self.kind.retry is not None:
            said["x-should-retry"] = "true" if self.kind.retry else "false"
        if self.kind.retry and self.retry_after_ms is not None:
            wait = min(max(self.retry_after_ms, 1.0), 120_000.0)
            said["retry-after-ms"] = f"{wait:.0f}"
            said["retry-after"] = f"{-(-wait // 1000):.0f}"
        if self.kind.status == 401:
            said["www-authenticate"] = "Bearer"
        if self.kind.status in (408, 413):  # what is left of the body is nobody's request
            said["connection"] = "close"
        return said


def stopping() -> HttpError:
    """What is told where the server takes nothing more, or does not end what it took."""
    return HttpError("stopping", "the server is stopping; ask again in a moment", retry_after_ms=2000)


FROM_THE_ROOM: Mapping[str, str] = {
    "invalid_value": "invalid_value",
    "unknown_model": "model_not_found",
    "unknown_draft": "not_found",
    "too_large": "too_large",
    "no_memory": "will_not_fit",
    "deadline_impossible": "deadline_impossible",
    "deadline_passed": "deadline_passed",
    "queue_full": "queue_full",
    "draining": "stopping",
    "device_stuck": "device_stuck",
    "broken_model": "engine_error",
}
"""Our codes, by those of `lssgen.serving.api.RefusalCode`."""


FIELDS: Mapping[str, str] = {
    "height": "size",
    "width": "size",
    "init_image": "image",
    "mask_image": "mask",
    "conditions": "control_image",
}
"""Fields of a request, by the words of a run that they become."""


def refusal_of(error: BaseException) -> HttpError:
    """What a client is told of an error of ours. Of one that nobody foresaw, that it is our mistake, and no more."""
    match error:
        case HttpError():
            return error
        case RefusedError():
            after = None if error.retry_after_s is None else 1000 * error.retry_after_s
            param = FIELDS.get(error.param or "", error.param)
            return HttpError(FROM_THE_ROOM[error.code], str(error), param=param, retry_after_ms=after)
        case CancelledError():
            return HttpError("cancelled", str(error) or "the request was cancelled")
        case NonFiniteError():
            return HttpError("not_finite", str(error))
        case RefusedPictureError():
            return HttpError("moderation_blocked", str(error))
        case CheckError():
            return HttpError("checker_failed", "a picture could not be checked; the server's log tells more")
        case PlanError() | PromptError():
            return HttpError("invalid_value", str(error))
        case LssgenError():
            return HttpError("engine_error", str(error))
        case _:
            return HttpError("internal_error", "the server made a mistake, which its log tells more about")
