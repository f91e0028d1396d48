"""A line for every request, for programs or for people, without prompts unless they are asked for."""

import hashlib
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

ACCESS = logging.getLogger("lssgen.access")


def open_access_log(form: Literal["json", "text", "off"]) -> None:
    """Let the lines of requests go to stderr, in a form of their own."""
    ACCESS.handlers.clear()
    ACCESS.propagate = False
    ACCESS.disabled = form == "off"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    ACCESS.addHandler(handler)
    ACCESS.setLevel(logging.INFO)


def note(**said: Any) -> None:
    """Note a request."""
    ACCESS.info("request", extra={"said": said})


def pseudonym(user: str | None) -> str | None:
    """What a log says of an end user: the beginning of a hash."""
    return None if user is None else hashlib.sha256(user.encode("utf-8", "replace")).hexdigest()[:12]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return msgspec.json.encode({"at": at, **_said(record)}).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        parts = [f"{name}={_shown(value)}" for name, value in _said(record).items() if value not in (None, "")]
        return f"lssgen serve: {' '.join(parts)}"


def _said(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "said", {})


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode() if isinstance(value, str) and not value.isprintable() else str(value)
    return f'"{text}"' if " " in text else text
