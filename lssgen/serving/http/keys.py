"""Who may ask: API keys from a file, compared in constant time, and how much each may ask for.

A line of the file has a name, a key and perhaps limits of its own; what follows # is a comment:

    alice   sk-4f1c...                      requests_per_minute=120
    robot   sha256:9f86d081884c7d65...      concurrent=2 pixels=8388608

A key stands there as it is, or as the SHA-256 of it in hexadecimal, which gives nothing away. The file is read again
when it changes; a damaged one leaves the keys that were.
"""

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lssgen.errors import ServingError
from lssgen.files import read_regular
from lssgen.serving.http.limits import KeyLimits
from lssgen.serving.http.refusals import HttpError

_LOG = logging.getLogger("lssgen.serve")

MOST_BYTES = 2**20
"""Size of the largest file of keys."""

SHORTEST = 16
"""Characters of the shortest key that is taken; shorter ones are guessed."""

LOOK_EVERY_S = 1.0
"""Seconds between two looks whether the file has changed."""

_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may ask.

    Attributes:
        name: Name for logs and metrics.
        limits: Most that they may ask for at a time.
        digest: SHA-256 of the key; empty for everybody, where the server has no keys.
    """

    name: str
    limits: KeyLimits
    digest: bytes = b""


class Keys:
    """The keys of a file.

    Args:
        path: The file.
        limits: For keys whose line says nothing else.
        clock: Seconds.

    Raises:
        ServingError: The file cannot be read, or a line of it makes no sense. The message never has a key in it.
    """

    def __init__(self, path: Path, limits: KeyLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._limits = limits
        self._clock = clock
        self._looked = clock()
        self._seen = _entry(path)
        self._clients = read_keys(path, limits)

    def client(self, authorization: str | None) -> Client:
        """Whose key a request has.

        Every key is compared, whichever fits: the time tells nothing.

        Raises:
            HttpError: It has none, or one that is not in the file.
        """
        self._look()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise HttpError("invalid_api_key", "send an API key, as in Authorization: Bearer sk-...")
        digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found: Client | None = None
        for client in self._clients:
            if hmac.compare_digest(client.digest, digest):
                found = client
        if found is None:
            raise HttpError("invalid_api_key", "the API key is not one of this server's")
        return found

    def _look(self) -> None:
        if self._clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self._clock()
        if (now := _entry(self._path)) == self._seen:
            return
        self._seen = now
        try:
            self._clients = read_keys(self._path, self._limits)
            _LOG.info("API keys read again: %d", len(self._clients))
        except ServingError as error:
            _LOG.warning("API keys stay as they were: %s", error)


def read_keys(path: Path, limits: KeyLimits) -> tuple[Client, ...]:
    """The clients of a file of keys.

    Raises:
        ServingError: It cannot be read, holds none, or a line of it makes no sense.
    """
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise ServingError(f"API keys {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ServingError(f"API keys {path} are not text in UTF-8") from error
    lines = [(number, line.partition("#")[0].split()) for number, line in enumerate(text.splitlines(), 1)]
    clients = [_client(path, number, words, limits) for number, words in lines if words]
    if not clients:
        raise ServingError(f'API keys {path} holds none; write one line for each, as in "alice sk-..."')
    for what, values in (("name", [one.name for one in clients]), ("key", [one.digest for one in clients])):
        if len(set(values)) < len(values):
            raise ServingError(f"API keys {path} has a {what} twice")
    if os.name != "nt" and stat.S_IMODE(path.stat().st_mode) & 0o044:
        _LOG.warning("API keys %s can be read by others than its owner; chmod 600 it", path)
    return tuple(clients)


def _client(path: Path, number: int, words: list[str], limits: KeyLimits) -> Client:
    where = f"line {number} of API keys {path}"
    if len(words) < 2:
        raise ServingError(f"{where} has one word; write a name, a key, and perhaps limits")
    name, key, *own = words
    if found := _HASHED.fullmatch(key):
        digest = bytes.fromhex(found[1])
    elif key.startswith("sha256:"):
        raise ServingError(f"{where}: sha256: is followed by 64 hexadecimal digits")
    elif len(key) < SHORTEST:
        raise ServingError(f"{where} has a key of {len(key)} characters; {SHORTEST} or more are taken")
    else:
        digest = hashlib.sha256(key.encode()).digest()
    return Client(name, replace(limits, **_numbers(where, own)), digest)


def _numbers(where: str, words: list[str]) -> Mapping[str, int]:
    known = [field.name for field in fields(KeyLimits)]
    found: dict[str, int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known or not re.fullmatch(r"[1-9][0-9]{0,14}", value):
            raise ServingError(f"{where}: limits are {', '.join(f'{one}=N' for one in known)}")
        found[name] = int(value)
    return found


def _entry(path: Path) -> tuple[int, int, int]:
    try:
        seen = path.stat()
    except OSError:  # being replaced; looked at again
        return (0, 0, 0)
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns)
