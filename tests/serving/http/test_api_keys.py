"""Keys, and what each may ask for."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom
from sites import Host

from lssgen.errors import ServingError
from lssgen.serving.http import keys as keys_module
from lssgen.serving.http.keys import Keys, read_keys
from lssgen.serving.http.limits import KeyLimits, Limits, Meter
from lssgen.serving.http.refusals import KINDS, HttpError

ALICE, ROBOT = "sk-alice-0123456789", "sk-robot-0123456789"
FOX = {"prompt": "a secret fox"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.txt"
    hashed = hashlib.sha256(ROBOT.encode()).hexdigest()
    path.write_text(f"# who may ask\n\nalice {ALICE}  # a comment\nrobot sha256:{hashed} concurrent=1 pixels=8192\n")
    path.chmod(0o600)
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_only_those_with_a_key_may_ask(host: Host, file: Path) -> None:
    with host(settings={"api_keys": file}) as site:
        for headers in ({}, bearer("sk-wrong"), {"authorization": f"Basic {ALICE}"}, bearer("x" * 5000)):
            for method, path in (("POST", "/v1/images/generations"), ("GET", "/v1/models"), ("GET", "/v1/jobs")):
                answer = site.http.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        for key in (ALICE, ROBOT):
            assert site.http.post("/v1/images/generations", json=FOX, headers=bearer(key)).status_code == 200
        for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json", "/"):
            assert site.http.get(path).status_code == 200


def test_jobs_are_their_owners_alone(host: Host, file: Path) -> None:
    with host(settings={"api_keys": file}) as site:
        job = site.http.post("/v1/jobs", json=FOX, headers=bearer(ALICE)).json()["id"]
        assert site.http.get(f"/v1/jobs/{job}", headers=bearer(ALICE)).status_code == 200
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/result"), ("GET", "/events")):
            assert site.http.request(method, f"/v1/jobs/{job}{path}", headers=bearer(ROBOT)).status_code == 404
        assert site.http.get("/v1/jobs", headers=bearer(ROBOT)).json()["data"] == []


def test_a_key_has_limits_of_its_own(host: Host, room: FakeRoom, file: Path) -> None:
    room.hold.clear()
    with host(settings={"api_keys": file}) as site:
        big = site.http.post("/v1/jobs", json={**FOX, "size": "128x128"}, headers=bearer(ROBOT))
        assert (big.status_code, big.json()["error"]["code"]) == (429, "too_many_requests")
        assert site.http.post("/v1/jobs", json=FOX, headers=bearer(ROBOT)).status_code == 202
        second = site.http.post("/v1/jobs", json=FOX, headers=bearer(ROBOT))
        assert (second.status_code, second.headers["retry-after-ms"], second.headers["x-should-retry"]) == (
            429,
            "1000",
            "true",
        )
        assert site.http.post("/v1/jobs", json=FOX, headers=bearer(ALICE)).status_code == 202
        room.hold.set()
        end = time.monotonic() + 10
        while site.http.post("/v1/jobs", json=FOX, headers=bearer(ROBOT)).status_code != 202:
            assert time.monotonic() < end
            time.sleep(0.02)


def test_requests_per_minute_are_a_bucket_that_fills_again() -> None:
    now = [0.0]
    meter, limits = Meter(clock=lambda: now[0]), KeyLimits(requests_per_minute=2)
    for _ in range(2):
        meter.begin("a", limits, 1)()
    with pytest.raises(HttpError, match="2 requests a minute") as caught:
        meter.begin("a", limits, 1)
    assert (caught.value.code, caught.value.retry_after_ms) == ("rate_limit_exceeded", 30_000)
    meter.begin("b", limits, 1)
    now[0] = 30
    meter.begin("a", limits, 1)


def test_keys_are_read_again_when_their_file_changes(file: Path) -> None:
    now = [0.0]
    keys = Keys(file, KeyLimits(), clock=lambda: now[0])
    file.write_text(f"bob {'b' * 16}\n")
    now[0] = 2
    assert keys.client(f"Bearer {'b' * 16}").name == "bob"
    with pytest.raises(HttpError):
        keys.client(f"Bearer {ALICE}")
    file.write_text("half a li\n")
    now[0] = 4
    assert keys.client(f"Bearer {'b' * 16}").name == "bob"


def test_every_key_is_compared_whichever_fits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    equal = keys_module.hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append(1)
        return equal(one, other)

    keys = Keys(file, KeyLimits())
    monkeypatch.setattr(keys_module.hmac, "compare_digest", count)
    for key in (ALICE, ROBOT, "sk-wrong"):
        compared.clear()
        try:
            keys.client(f"Bearer {key}")
        except HttpError:
            assert key == "sk-wrong"
        assert len(compared) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds none"),
        ("alice", "line 1 .* has one word"),
        ("alice short", "5 characters; 16 or more"),
        ("alice sha256:12", "64 hexadecimal digits"),
        (f"a {'k' * 16} speed=3", "limits are requests_per_minute=N, concurrent=N, pixels=N"),
        (f"a {'k' * 16} pixels=-3", "limits are"),
        (f"a {'k' * 16}\na {'l' * 16}", "a name twice"),
        (f"a {'k' * 16}\nb {'k' * 16}", "a key twice"),
    ],
)
def test_a_file_of_keys_that_makes_no_sense_is_refused_without_telling_a_key(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ServingError, match=words) as caught:
        read_keys(path, KeyLimits())
    assert "kkkk" not in str(caught.value)


def test_a_file_of_keys_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="cannot be read"):
        read_keys(tmp_path / "none", KeyLimits())
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(ServingError, match="UTF-8"):
        read_keys(tmp_path / "x", KeyLimits())


def test_keys_that_others_can_read_are_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.chmod(0o644)
    read_keys(file, KeyLimits())
    assert "chmod 600" in caplog.text


@pytest.mark.parametrize("words", [{"max_body_mb": 0}, {"max_requests": -1}, {"body_seconds": float("nan")}])
def test_limits_that_make_no_sense_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ServingError):
        Limits(**words)


@pytest.mark.parametrize("prompts", [False, True])
def test_logs_have_prompts_only_where_they_are_asked_for(
    host: Host, file: Path, capsys: pytest.CaptureFixture[str], prompts: bool
) -> None:
    from lssgen.serving.http.logs import open_access_log

    open_access_log("json")
    with host(settings={"api_keys": file, "log_prompts": prompts}) as site:
        site.http.post("/v1/images/generations", json={**FOX, "user": "carol", "n": 2}, headers=bearer(ALICE))
        site.http.post("/v1/images/generations", json={**FOX, "sneed": 2}, headers=bearer(ALICE))
    open_access_log("off")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{"))
    assert (first["client"], first["status"], first["n"], first["route"]) == (
        "alice",
        200,
        2,
        "/v1/images/generations",
    )
    assert first.get("prompt") == ("a secret fox" if prompts else None)
    assert "carol" not in json.dumps(first)
    assert ALICE not in json.dumps(first)
    assert (second["status"], second["code"]) == (400, "unknown_field")


def test_every_code_says_whether_to_try_again_where_clients_would() -> None:
    """OpenAI's clients post again after 408, 409, 429 and 5xx unless they are told not to."""
    for code, kind in KINDS.items():
        if kind.status in (408, 409, 429) or kind.status >= 500:
            assert kind.retry is not None, code
