"""A server that speaks the Hugging Face hub's API, as far as its client asks for it; for tests, on this machine.

Source: what huggingface_hub 2.4 sends and reads (hf_api.py, file_download.py, utils/_http.py).
"""

import hashlib
import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000
"""Bytes from which on a file is kept as a large one (Git LFS), somewhere else."""

SLOW_S = 1.0
"""Seconds that a slow server says nothing for."""


@dataclass
class Repo:
    """A repository with one commit.

    Attributes:
        files: Contents by name.
        commit: Hash of the commit; branches that lead to it.
        card, gated: As the API says them.
        token: Without it, its files are not given.
    """

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    branches: tuple[str, ...] = ("main",)
    card: Mapping[str, object] = field(default_factory=dict[str, object])
    gated: str | bool = False
    private: bool = False
    token: str = ""


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    range: str
    token: str


@dataclass
class Hub:
    """The server's side.

    Attributes:
        repos: Repositories by id.
        asked: Requests, in their order.
        faults: What goes wrong with the next requests for contents of large files: "cut" in the middle, "damage",
            "whole" where a range is asked for, "busy" (429), "down" (500), "slow": half of it, and nothing for a while.
        busy: Number of API requests that are answered with 429.
        url: Its address.
        files_at: Address that large files are given at: another host, as at the hub.
    """

    repos: dict[str, Repo]
    asked: list[Asked] = field(default_factory=list[Asked])
    faults: list[str] = field(default_factory=list[str])
    busy: int = 0
    url: str = ""
    files_at: str = ""

    def contents(self, start: str = "") -> list[Asked]:
        """Requests for contents of large files that begin with some text."""
        return [one for one in self.asked if one.method == "GET" and one.path.startswith(f"/blobs/{start}")]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.asked.append(Asked(self.command, path, self.headers.get("Range", ""), token))
        if path.startswith("/blobs/"):
            self._blob(path.removeprefix("/blobs/"))
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        elif "/resolve/" in path:
            owner, name, _, revision, file = path.removeprefix("/").split("/", 4)
            self._resolve(f"{owner}/{name}", revision, file)
        else:  # the client asks for more than its users do
            self._send(404, b"", {})

    def _api(self, path: str) -> None:
        owner, name, *rest = path.split("/")
        repo = self._repo(f"{owner}/{name}")
        if self.hub.busy:
            self.hub.busy -= 1
            return self._send(429, b"", {"Retry-After": "0"})
        if repo is None:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        revision = "/".join(rest[1:]) or "main"
        if rest[:1] == ["tree"]:
            revision = rest[1]
        if revision not in (repo.commit, *repo.branches):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if rest[:1] == ["tree"]:
            return self._json([self._entry(*one) for one in repo.files.items()])
        query = parse_qs(urlsplit(self.path).query)
        siblings = [self._sibling(*one, blobs="blobs" in query) for one in repo.files.items()]
        return self._json({
            "id": f"{owner}/{name}", "sha": repo.commit, "siblings": siblings, "cardData": dict(repo.card),
            "gated": repo.gated, "private": repo.private,
        })  # fmt: skip

    def _sibling(self, name: str, content: bytes, *, blobs: bool) -> dict[str, object]:
        if not blobs:
            return {"rfilename": name}
        lfs = (
            {"lfs": {"sha256": _sha(content), "size": len(content), "pointerSize": 130}}
            if len(content) >= LARGE
            else {}
        )
        return {"rfilename": name, "size": len(content), "blobId": _oid(content), **lfs}

    def _entry(self, name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": _oid(content), **_large("oid", content)}

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return None if repo is None or (repo.private and token != repo.token) else repo

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo is None:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in (repo.commit, *repo.branches):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if repo.gated and token != repo.token:
            return self._send(403 if token else 401, b"", {"X-Error-Code": "GatedRepo"})
        commit = {"X-Repo-Commit": repo.commit}
        if file not in repo.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
        content = repo.files[file]
        if len(content) < LARGE:
            return self._send(200, content, {"ETag": f'"{_oid(content)}"', **commit})
        where = f"{self.hub.files_at}/blobs/{_sha(content)}?signature=s3cret"
        linked = {"X-Linked-Etag": f'"{_sha(content)}"', "X-Linked-Size": str(len(content))}
        return self._send(302, b"", {"Location": where, **linked, **commit})

    def _blob(self, sha: str) -> None:
        content = next(one for repo in self.hub.repos.values() for one in repo.files.values() if _sha(one) == sha)
        fault = self.hub.faults.pop(0) if self.hub.faults and self.command == "GET" else ""
        if fault in ("busy", "down"):
            self._send(429 if fault == "busy" else 500, b"", {"Retry-After": "0"})
            return
        asked = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        begin = int(asked) if asked and fault != "whole" else 0
        if begin >= len(content):
            self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        part = content[begin:]
        if fault == "damage":
            part = part[:-1] + bytes([part[-1] ^ 1])
        more = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        cut = len(part) // 2 if fault in ("cut", "slow") else None
        self._send(206 if begin else 200, part, more, cut=cut)
        if fault == "slow":
            self.wfile.flush()
            time.sleep(SLOW_S)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _large(hash_word: str, content: bytes) -> dict[str, object]:
    """What is said of a large file besides; the two ways of asking have two words for its hash."""
    if len(content) < LARGE:
        return {}
    return {"lfs": {hash_word: _sha(content), "size": len(content), "pointerSize": 130}}


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _oid(content: bytes) -> str:
    """What git calls a file of these contents."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are what is tested."""


@contextmanager
def serving(repos: dict[str, Repo]) -> Generator[Hub]:
    """The server, in a thread of its own, while the block lasts."""
    hub = Hub(repos)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        hub.files_at = f"http://localhost:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
