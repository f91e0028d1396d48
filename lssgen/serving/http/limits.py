"""How much is too much: for the server, and for every key."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lssgen.choices import choice, refuse_outside
from lssgen.errors import ServingError
from lssgen.serving.http.refusals import HttpError

_GROUP = "limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """What one key may ask for.

    Attributes:
        requests_per_minute: Requests that paint, by a bucket that holds a minute's worth.
        concurrent: Requests that wait or paint.
        pixels: Pixels that wait or paint, all of the key's requests together.
    """

    requests_per_minute: int = 10**9
    concurrent: int = 10**6
    pixels: int = 2**50


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server takes.

    Attributes:
        max_body_mb: Size of a body in 2^20 bytes.
        max_prompt: Characters of a prompt, and of a negative one.
        max_requests: Requests that are read, wait or paint at a time.
        body_seconds: Time in which a body must have come.
        send_seconds: Time in which a client must take 64 KiB of an answer.
        key_requests_per_minute, key_concurrent, key_pixels: `KeyLimits` of keys that have no others.

    Raises:
        ServingError: A number that cannot be one of these.
    """

    max_body_mb: int = choice(
        32, help="largest body, in MiB; edits carry their pictures", metavar="N", group=_GROUP, least=1, most=1024
    )
    max_prompt: int = choice(
        20_000, help="characters of the longest prompt", metavar="N", group=_GROUP, least=1, most=20_000
    )
    max_requests: int = choice(
        1024, help="requests that are open at a time", metavar="N", group=_GROUP, least=1, most=100_000
    )
    body_seconds: float = choice(
        30.0, help="time in which a body must have come", metavar="S", group=_GROUP, least=0.1, most=3600
    )
    send_seconds: float = choice(
        30.0, help="time in which a client must take 64 KiB", metavar="S", group=_GROUP, least=0.1, most=3600
    )
    key_requests_per_minute: int = choice(
        10**9,
        help="requests that paint, of a key in a minute",
        metavar="N",
        group=_GROUP,
        unset="no limit",
        least=1,
        most=10**9,
    )
    key_concurrent: int = choice(
        10**6,
        help="requests of a key that wait or paint",
        metavar="N",
        group=_GROUP,
        unset="no limit",
        least=1,
        most=10**6,
    )
    key_pixels: int = choice(
        2**50,
        help="pixels of a key that wait or paint",
        metavar="N",
        group=_GROUP,
        unset="no limit",
        least=1,
        most=2**50,
    )

    def __post_init__(self) -> None:
        refuse_outside(self, ServingError)

    @property
    def max_body(self) -> int:
        """Bytes."""
        return self.max_body_mb * 2**20

    @property
    def of_key(self) -> KeyLimits:
        return KeyLimits(
            requests_per_minute=self.key_requests_per_minute, concurrent=self.key_concurrent, pixels=self.key_pixels
        )


@dataclass(slots=True)
class _Use:
    """What a key has in use.

    Attributes:
        tokens: Requests that it may still send at once.
        at: Time of `tokens`.
        open, pixels: Requests and pixels that wait or paint.
    """

    tokens: float
    at: float
    open: int = 0
    pixels: int = 0


@dataclass(slots=True)
class Meter:
    """Counts what every key uses. For one thread.

    Attributes:
        clock: Seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _used: dict[str, _Use] = field(default_factory=dict[str, _Use])

    def begin(self, name: str, limits: KeyLimits, pixels: int) -> Callable[[], None]:
        """Count a request from now on.

        Returns:
            What ends it.

        Raises:
            HttpError: It is one too many.
        """
        use = self._refilled(name, limits)
        if use.open >= limits.concurrent:
            raise HttpError(
                "too_many_requests",
                f"this key has {use.open} requests waiting or painting, of {limits.concurrent}; wait for one to end",
                retry_after_ms=1000,
            )
        if use.pixels + pixels > limits.pixels:
            raise HttpError(
                "too_many_requests",
                f"this key has {use.pixels:,} pixels waiting or painting, and {pixels:,} more would be above "
                f"{limits.pixels:,}; wait, or ask for smaller or fewer pictures",
                retry_after_ms=1000,
            )
        if use.tokens < 1:
            wait = (1 - use.tokens) * 60_000 / limits.requests_per_minute
            raise HttpError(
                "rate_limit_exceeded",
                f"this key may send {limits.requests_per_minute} requests a minute",
                retry_after_ms=wait,
            )
        use.tokens -= 1
        use.open += 1
        use.pixels += pixels

        def end() -> None:
            use.open -= 1
            use.pixels -= pixels

        return end

    def _refilled(self, name: str, limits: KeyLimits) -> _Use:
        now, full = self.clock(), float(limits.requests_per_minute)
        use = self._used.setdefault(name, _Use(tokens=full, at=now))
        use.tokens = min(full, use.tokens + (now - use.at) * full / 60)
        use.at = now
        return use
