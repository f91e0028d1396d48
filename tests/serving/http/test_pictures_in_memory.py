"""What a server remembers of pictures: 95 kB of a file are 100 MB of pixels, and jobs are kept for an hour."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom
from PIL import Image
from sites import Host, Site

from lssgen.serving.http import known, reading
from lssgen.serving.http.reception import MOST_DECODED
from lssgen.serving.ticket import Ticket

SIZE = (304, 208)


def edit(site: Site, **headers: str) -> Any:
    file = BytesIO()
    Image.new("RGB", SIZE, "red").save(file, "PNG")
    files = {"image": ("a.png", file.getvalue(), "image/png")}
    answer = site.http.post("/v1/images/edits", data={"prompt": "a fox", "size": "64x64"}, files=files, headers=headers)
    assert answer.status_code < 300, answer.text
    return answer.json()


def ended(site: Site, job: str) -> dict[str, Any]:
    end = time.monotonic() + 20
    while (now := site.http.get(f"/v1/jobs/{job}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < end, now
        time.sleep(0.01)
    return now


def alive() -> list[tuple[int, int]]:
    """Sizes of all pictures in memory."""
    gc.collect()
    return [one.size for one in gc.get_objects() if type(one) is Image.Image]


def test_what_has_ended_holds_no_pixels(site: Site, room: FakeRoom) -> None:
    before = alive()
    job = edit(site, Prefer="respond-async")
    edit(site, **{"Idempotency-Key": "kept-too"})
    now = ended(site, job["id"])
    assert (now["status"], now["model"], now["notes"], now["progress"]["done"]) == ("done", "toy", ["a note"], 1)
    room.asked.clear()  # the double keeps what it was asked
    end = time.monotonic() + 10
    while len(alive()) > len(before):
        assert time.monotonic() < end, sorted(set(alive()))
        time.sleep(0.05)
    assert site.http.get(f"/v1/jobs/{job['id']}/result").status_code == 200


def test_a_job_that_waits_holds_the_room_s_picture_only(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    job = edit(site, Prefer="respond-async")
    assert alive().count(SIZE) == 1
    room.hold.set()
    ended(site, job["id"])


def test_few_pictures_are_decoded_at_a_time(host: Host, room: FakeRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, decoded = threading.Lock(), [0, 0]  # now, most
    order_from, submit, quote = reading.order_from, room.submit, room.quote

    def counted(*given: Any) -> Any:
        with lock:
            decoded[0] += 1
            decoded[1] = max(decoded)
        return order_from(*given)

    def submitted(*given: Any) -> Any:
        with lock:
            decoded[0] -= 1
        return submit(*given)

    def slow(*given: Any) -> Any:
        time.sleep(0.02)
        return quote(*given)

    monkeypatch.setattr(reading, "order_from", counted)
    monkeypatch.setattr(room, "submit", submitted)
    monkeypatch.setattr(room, "quote", slow)
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    with host() as site, ThreadPoolExecutor(12) as clients:

        def ask(_: int) -> int:
            files = {"image": ("a.png", file.getvalue(), "image/png")}
            return site.http.post("/v1/images/edits", data={"prompt": "a fox"}, files=files).status_code

        assert set(clients.map(ask, range(12))) == {200}
    assert decoded[1] <= MOST_DECODED


def test_previews_of_old_jobs_are_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with host() as site:
        job = site.http.post("/v1/jobs", json={"prompt": "a fox"}).json()["id"]
        ended(site, job)
        assert "partial_image" in site.http.get(f"/v1/jobs/{job}/events").text
        monkeypatch.setattr(known, "PREVIEWS_S", 0.0)
        end = time.monotonic() + 10
        while "partial_image" in (told := site.http.get(f"/v1/jobs/{job}/events").text):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert "completed" in told
        assert site.http.get(f"/v1/jobs/{job}").json()["previews"] == 1


def test_what_cannot_be_stored_is_painted_no_further(
    host: Host, room: FakeRoom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del room
    cancelled = threading.Event()
    monkeypatch.setattr(Ticket, "cancel", lambda _: cancelled.set())
    with host(state=tmp_path) as site:
        (tmp_path / "pictures").rmdir()
        (tmp_path / "pictures").write_bytes(b"")  # as a disk that takes nothing more
        job = site.http.post("/v1/jobs", json={"prompt": "a fox", "n": 4}).json()["id"]
        now = ended(site, job)
        assert now["status"] == "failed"
        assert now["error"]["message"].startswith("a picture cannot be kept")
        assert cancelled.is_set()
