"""Jobs: created, followed, cancelled, fetched, gone; repeated without being painted twice; over a restart."""

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fake_room import FakeRoom
from PIL import Image
from sites import Host, Site, serving

from lssgen.bundle import Bundle
from lssgen.errors import RefusedError
from lssgen.serving import Server
from lssgen.serving.http import reception, submitting
from lssgen.serving.http.metrics import Metrics

FOX = {"prompt": "a fox", "seed": 7}


def create(site: Site, **more: Any) -> dict[str, Any]:
    answer = site.http.post("/v1/jobs", json={**FOX, **more})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    return answer.json()


def until(site: Site, job: str, status: str) -> dict[str, Any]:
    end = time.monotonic() + 20
    while (now := site.http.get(f"/v1/jobs/{job}").json())["status"] != status:
        assert time.monotonic() < end, now
        time.sleep(0.01)
    return now


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_job_is_queued_with_its_position_then_done_then_fetched(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    job = create(site)
    assert (job["status"], job["queue_position"], job["estimated_seconds"]) == ("queued", 3, 1.5)
    assert code(site.http.get(f"/v1/jobs/{job['id']}/result")) == (409, "job_not_finished")
    room.hold.set()
    done = until(site, job["id"], "done")
    assert (done["progress"], done["pictures"], done["queue_position"]) == (
        {"done": 1, "total": 6, "stage": 1, "stages": 2, "width": 32, "height": 32},
        1,
        None,
    )
    answer = site.http.get(f"/v1/jobs/{job['id']}/result").json()
    image = Image.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert (image.size, answer["data"][0]["seed"], answer["usage"]["total_tokens"]) == ((64, 64), 7, 67)
    address = site.http.get(f"/v1/jobs/{job['id']}/result?response_format=url").json()["data"][0]["url"]
    assert site.http.get(address).headers["content-type"] == "image/png"


def test_a_jobs_events_end_with_its_state(site: Site) -> None:
    job = create(site, partial_images=1)
    with site.http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        lines = list(answer.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert names[0] == "job.status"
    assert names.index("image_generation.partial_image") < names.index("image_generation.completed")
    assert names[-1] == "job.done"


def test_a_request_may_become_a_job(site: Site) -> None:
    answer = site.http.post("/v1/images/generations", json=FOX, headers={"prefer": "respond-async"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")
    until(site, answer.json()["id"], "done")


def test_a_job_is_cancelled_at_any_moment(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    job = create(site)
    cancelled = site.http.post(f"/v1/jobs/{job['id']}/cancel").json()
    assert (cancelled["status"], cancelled["error"]["code"], room.cancelled) == ("cancelled", "cancelled", 1)
    answer = site.http.get(f"/v1/jobs/{job['id']}/result")
    assert (code(answer), answer.headers["x-should-retry"]) == ((409, "cancelled"), "false")
    assert site.http.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


def test_a_job_goes_on_when_its_client_has_gone(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    job = create(site)
    with site.http.stream("GET", f"/v1/jobs/{job['id']}/events"):
        pass
    room.hold.set()
    until(site, job["id"], "done")
    assert room.cancelled == 0


def test_a_job_is_gone_after_its_time(host: Host) -> None:
    with host(settings={"keep_seconds": 1.0}) as site:
        job = create(site)
        until(site, job["id"], "done")
        address = site.http.get(f"/v1/jobs/{job['id']}/result?response_format=url").json()["data"][0]["url"]
        end = time.monotonic() + 10
        while site.http.get(f"/v1/jobs/{job['id']}").status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        for path in (f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/result", address):
            assert code(site.http.get(path)) == (410, "gone")


def test_a_job_that_is_deleted_is_gone_and_one_that_never_was_is_not_there(site: Site) -> None:
    job = create(site)
    assert site.http.delete(f"/v1/jobs/{job['id']}").json()["deleted"] is True
    assert code(site.http.get(f"/v1/jobs/{job['id']}")) == (410, "gone")
    assert code(site.http.get(f"/v1/jobs/{'0' * 32}")) == (404, "not_found")
    assert code(site.http.get("/v1/images/files/" + "0" * 32 + ".png")) == (404, "not_found")
    assert code(site.http.get("/v1/images/files/..%2f..%2fetc%2fpasswd")) == (404, "not_found")


def test_a_draft_is_refined_and_other_jobs_are_not(site: Site, room: FakeRoom) -> None:
    draft = create(site, draft=True, n=4)
    assert until(site, draft["id"], "done")["draft"] is True
    answer = site.http.post(f"/v1/jobs/{draft['id']}/refine", json={"keep": [0, 2]})
    assert answer.status_code == 202
    assert until(site, answer.json()["id"], "done")["pictures"] == 2
    assert room.asked[0].draft
    other = create(site)
    until(site, other["id"], "done")
    assert code(site.http.post(f"/v1/jobs/{other['id']}/refine", json={"keep": [0]})) == (404, "not_found")
    assert code(site.http.post(f"/v1/jobs/{draft['id']}/refine", json={"keep": []})) == (400, "invalid_value")


def drawn(site: Site, **more: Any) -> dict[str, Any]:
    """A draft of four pictures, done."""
    return until(site, create(site, draft=True, n=4, **more)["id"], "done")


def refine(site: Site, draft: dict[str, Any], *keep: int, **headers: str) -> Any:
    return site.http.post(f"/v1/jobs/{draft['id']}/refine", json={"keep": keep}, headers=headers)


def test_a_draft_that_the_room_has_forgotten_is_painted_again(site: Site, room: FakeRoom) -> None:
    draft = drawn(site)
    room.forgetful = 1
    job = refine(site, draft, 3, 1).json()
    assert until(site, job["id"], "done")["pictures"] == 2
    assert [(asked.draft, asked.n) for asked in room.asked] == [(True, 4), (True, 4), (False, 2)]
    assert len({asked.options["seed"] for asked in room.asked}) == 1


def test_a_draft_whose_schedule_the_clock_chose_is_not(site: Site, room: FakeRoom) -> None:
    draft = drawn(site, max_latency_ms=60_000)
    room.forgetful = 1
    assert code(refine(site, draft, 0)) == (404, "not_found")


def test_a_refinement_that_waits_for_its_draft_can_be_cancelled(site: Site, room: FakeRoom) -> None:
    draft = drawn(site)
    room.forgetful = 1
    room.hold.clear()
    job = refine(site, draft, 0).json()
    assert site.http.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    room.forgetful, room.refuse = 1, RefusedError("full", code="queue_full", retry_after_s=0.05)
    job = refine(site, draft, 0).json()
    assert site.http.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"


def test_a_refinement_is_repeated_without_being_painted_twice(site: Site, room: FakeRoom) -> None:
    draft = drawn(site)
    first, second = (refine(site, draft, 1, **KEY).json()["id"] for _ in range(2))
    assert first == second
    assert code(refine(site, draft, 2, **KEY)) == (409, "idempotency_conflict")
    assert code(refine(site, draft, 4)) == (400, "invalid_value")
    assert len(room.asked) == 2


def test_a_job_is_not_a_stream(site: Site) -> None:
    assert code(site.http.post("/v1/jobs", json={**FOX, "stream": True})) == (400, "invalid_value")


# --- Repetitions ------------------------------------------------------------------------------------------------------

KEY = {"idempotency-key": "order-1"}


def test_a_repetition_with_the_same_key_is_painted_once(host: Host, room: FakeRoom) -> None:
    with host() as site, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: site.http.post("/v1/images/generations", json={"prompt": "a"}, headers=KEY), range(8))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == len(room.asked) == 1


def test_a_key_with_another_body_is_a_conflict_that_is_not_tried_again(host: Host) -> None:
    with host() as site:
        job = site.http.post("/v1/jobs", json=FOX, headers=KEY).json()
        assert site.http.post("/v1/jobs", json=FOX, headers=KEY).json()["id"] == job["id"]
        answer = site.http.post("/v1/jobs", json={**FOX, "seed": 8}, headers=KEY)
    assert (code(answer), answer.headers["x-should-retry"]) == ((409, "idempotency_conflict"), "false")


def test_a_refusal_does_not_use_up_a_key(host: Host, room: FakeRoom) -> None:
    with host() as site:
        room.refuse = RefusedError("full", code="queue_full", retry_after_s=1)
        assert site.http.post("/v1/jobs", json=FOX, headers=KEY).status_code == 429
        room.refuse = None
        time.sleep(submitting.FULL_S)
        assert site.http.post("/v1/jobs", json=FOX, headers=KEY).status_code == 202


def test_of_a_flood_only_the_first_is_read(host: Host, room: FakeRoom) -> None:
    with host() as site:
        room.refuse = RefusedError("full", code="queue_full", retry_after_s=1)
        assert site.http.post("/v1/jobs", json=FOX).status_code == 429
        room.refuse = None
        flood = site.http.post("/v1/jobs", json=FOX)
        assert (code(flood), flood.headers["retry-after-ms"]) == ((429, "queue_full"), "1000")
        time.sleep(submitting.FULL_S)
        assert site.http.post("/v1/jobs", json=FOX).status_code == 202


def test_a_request_with_a_key_waits_a_while_for_the_next_try(
    host: Host, room: FakeRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "GRACE_S", 0.5)
    room.hold.clear()
    body = {**FOX, "stream": True}
    with host() as site:
        with site.http.stream("POST", "/v1/images/generations", json=body, headers=KEY):
            pass  # the client goes
        with site.http.stream("POST", "/v1/images/generations", json=body, headers=KEY) as again:
            time.sleep(0.7)
            assert (len(room.asked), room.cancelled) == (1, 0)
            room.hold.set()
            assert "image_generation.completed" in "".join(again.iter_lines())
        room.hold.clear()
        with site.http.stream("POST", "/v1/images/generations", json=body, headers={"idempotency-key": "order-2"}):
            pass
        end = time.monotonic() + 10
        while not room.cancelled:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("key", ["a b", "x" * 256])
def test_a_key_that_makes_no_sense_is_refused(site: Site, key: str) -> None:
    assert code(site.http.post("/v1/jobs", json=FOX, headers={"idempotency-key": key})) == (400, "invalid_value")


# --- Restarts ---------------------------------------------------------------------------------------------------------


def test_a_job_that_was_acknowledged_is_finished_by_the_next_server(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    with host(state=tmp_path) as site:
        job = site.http.post("/v1/jobs", json={"prompt": "a fox"}, headers=KEY).json()
    room.hold.set()
    with host(state=tmp_path) as site:
        done = until(site, job["id"], "done")
        assert (done["seed"], done["created_at"]) == (job["seed"], job["created_at"])
        assert site.http.get(f"/v1/jobs/{job['id']}/result").json()["data"][0]["seed"] == job["seed"]
        assert site.http.post("/v1/jobs", json={"prompt": "a fox"}, headers=KEY).json()["id"] == job["id"]
    assert [asked.options["seed"] for asked in room.asked] == [job["seed"]] * 2


def test_an_edit_goes_on_with_its_picture_and_mask(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    file = BytesIO()
    Image.new("RGB", (64, 64), (9, 8, 7)).save(file, "PNG")
    mask = BytesIO()
    Image.new("L", (64, 64), 255).save(mask, "PNG")
    files = {"image": ("x.png", file.getvalue()), "mask": ("m.png", mask.getvalue())}
    with host(state=tmp_path) as site:
        job = site.http.post("/v1/images/edits", data=FOX, files=files, headers={"prefer": "respond-async"}).json()
    room.hold.set()
    with host(state=tmp_path) as site:
        until(site, job["id"], "done")
    again = room.asked[-1]
    assert again.init_image is not None
    assert again.mask_image is not None
    assert again.init_image.getpixel((0, 0)) == (9, 8, 7)
    assert list((tmp_path / "jobs").glob("*.bin")) == []


def test_a_job_that_has_ended_is_fetched_from_the_next_server(host: Host, tmp_path: Path) -> None:
    with host(state=tmp_path) as site:
        job = create(site)
        until(site, job["id"], "done")
        before = site.http.get(f"/v1/jobs/{job['id']}/result").json()
    with host(state=tmp_path) as site:
        assert site.http.get(f"/v1/jobs/{job['id']}/result").json() == before
        with site.http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
            assert "image_generation.completed" in answer.read().decode()


def test_a_job_that_cannot_go_on_is_reported_as_lost(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    with host(state=tmp_path) as site:
        job = create(site)
    room.refuse = RefusedError("there is no such model now", code="unknown_model")
    for _ in range(2):  # and the server after that still knows it
        with host(state=tmp_path) as site:
            lost = until(site, job["id"], "lost")
            assert "there is no such model now" in lost["error"]["message"]
            assert site.http.get(f"/v1/jobs/{job['id']}/result").status_code == 404
        room.refuse = None


def test_jobs_that_do_not_fit_the_queue_after_a_restart_wait_for_it(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    with host(state=tmp_path) as site:
        jobs = [create(site, seed=seed)["id"] for seed in range(3)]
    room.hold.set()
    room.refuse = RefusedError("full", code="queue_full", retry_after_s=0.05)
    with host(state=tmp_path) as site:
        time.sleep(0.2)
        assert [site.http.get(f"/v1/jobs/{job}").json()["status"] for job in jobs] == ["queued"] * 3
        assert site.http.post(f"/v1/jobs/{jobs[0]}/cancel").json()["status"] == "cancelled"
        time.sleep(0.2)
        room.refuse = None
        for job in jobs[1:]:
            until(site, job, "done")
    with host(state=tmp_path) as site:
        states = [site.http.get(f"/v1/jobs/{job}").json()["status"] for job in jobs]
    assert states == ["cancelled", "done", "done"]


def test_a_job_that_brings_the_server_down_is_not_begun_for_ever(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    with host(state=tmp_path) as site:
        job = create(site)
    for _ in range(2):
        with host(state=tmp_path):
            pass
    with host(state=tmp_path) as site:
        lost = until(site, job["id"], "lost")
    assert (lost["error"]["code"], len(room.asked)) == ("lost", 3)


def test_a_draft_is_finished_by_the_next_server(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    with host(state=tmp_path) as site:
        draft = drawn(site)
    with host(state=tmp_path) as site:
        assert site.http.get(f"/v1/jobs/{draft['id']}").json()["draft"] is True
        job = refine(site, draft, 2).json()
        assert until(site, job["id"], "done")["seed"] == draft["seed"]
    assert [(asked.draft, asked.n) for asked in room.asked] == [(True, 4), (True, 4), (False, 1)]


def test_a_refinement_that_was_acknowledged_is_finished_by_the_next_server(
    host: Host, room: FakeRoom, tmp_path: Path
) -> None:
    with host(state=tmp_path) as site:
        draft = drawn(site)
        room.hold.clear()
        job = refine(site, draft, 3, 0).json()
    room.hold.set()
    with host(state=tmp_path) as site:
        assert until(site, job["id"], "done")["pictures"] == 2


def test_what_the_next_server_finishes_of_a_draft_is_the_whole_run_to_the_bit(small: Bundle, tmp_path: Path) -> None:
    words = {**FOX, "n": 3, "num_inference_steps": 4, "solver": "dpm++2m-sde"}
    with Server(small.folder, threads=1) as room:
        assert room.wait_ready(60)
        with serving(room, Metrics(), state=tmp_path) as site:
            draft = until(site, create(site, draft=True, **words)["id"], "done")
            whole = result(site, create(site, **words))
        with serving(room, Metrics(), state=tmp_path) as site:
            kept = result(site, refine(site, draft, 2, 0).json())
    assert kept == [whole[2], whole[0]]


def result(site: Site, job: dict[str, Any]) -> list[bytes]:
    """Pixels of a job's pictures."""
    until(site, job["id"], "done")
    data = site.http.get(f"/v1/jobs/{job['id']}/result").json()["data"]
    return [Image.open(BytesIO(base64.b64decode(one["b64_json"]))).tobytes() for one in data]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"id": 1}', json.dumps({"id": "x"}).encode()])
def test_a_damaged_journal_does_not_keep_the_server_from_starting(host: Host, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / f"{'a' * 32}.json").write_bytes(damage)
    with host(state=tmp_path) as site:
        assert site.http.get("/v1/jobs").json()["data"] == []


def test_a_deadline_that_passed_while_the_server_was_down_is_told(host: Host, room: FakeRoom, tmp_path: Path) -> None:
    room.hold.clear()
    with host(state=tmp_path) as site:
        job = create(site, deadline_ms=300)
    time.sleep(0.4)
    with host(state=tmp_path) as site:
        assert until(site, job["id"], "lost")["error"]["code"] == "deadline_passed"
