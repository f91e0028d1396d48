"""Requests that make no sense never reach the engine, and say what is wrong with them."""

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Generator
from contextlib import closing
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_room import FakeRoom
from PIL import Image
from sites import Host, Site

from lssgen.errors import EngineError, NonFiniteError
from lssgen.serving.http.fields import Generation

GOOD: dict[str, Any] = {"prompt": "a fox"}


def error_of(answer: Any) -> dict[str, Any]:
    """The error of an answer, which is in OpenAI's form."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def post(site: Site, body: object, **more: Any) -> Any:
    return site.http.post("/v1/images/generations", json=body, **more)


@pytest.fixture(autouse=True)
def _untouched(request: pytest.FixtureRequest, room: FakeRoom) -> Generator[None]:
    """Nothing of what is refused reaches the room."""
    yield
    if "reaches" not in request.node.name:
        assert room.asked == []


BAD_FIELDS: list[tuple[str, Any, str]] = [
    ("prompt", "", "invalid_value"),
    ("prompt", 7, "wrong_type"),
    ("prompt", None, "wrong_type"),
    ("prompt", "x" * 20_001, "invalid_value"),
    ("prompt", "x" * 40_000, "invalid_value"),
    ("model", "sd9", "model_not_found"),
    ("model", "sd9@style", "model_not_found"),
    ("model", "toy@none", "model_not_found"),
    ("model", "toy@../../x", "model_not_found"),
    ("model", 3, "wrong_type"),
    ("n", 0, "invalid_value"),
    ("n", 11, "invalid_value"),
    ("n", 1.5, "wrong_type"),
    ("n", "2", "wrong_type"),
    ("n", True, "wrong_type"),
    ("size", "64", "invalid_size"),
    ("size", "64x", "invalid_size"),
    ("size", "0x64", "invalid_size"),
    ("size", "-64x64", "invalid_size"),
    ("size", "65x64", "invalid_size"),
    ("size", "999999x64", "invalid_size"),
    ("size", [64, 64], "wrong_type"),
    ("quality", "best", "invalid_value"),
    ("response_format", "file", "invalid_value"),
    ("output_format", "gif", "invalid_value"),
    ("output_compression", 101, "invalid_value"),
    ("output_compression", 50, "invalid_value"),
    ("background", "transparent", "not_supported"),
    ("moderation", "high", "invalid_value"),
    ("style", "vivid", "not_supported"),
    ("stream", "yes", "wrong_type"),
    ("partial_images", 4, "invalid_value"),
    ("partial_images", 1, "invalid_value"),
    ("seed", -1, "invalid_value"),
    ("seed", 2**64, "invalid_value"),
    ("seed", 10**30, "invalid_value"),
    ("seed", 1.5, "wrong_type"),
    ("num_inference_steps", 0, "invalid_value"),
    ("num_inference_steps", 10_001, "invalid_value"),
    ("guidance_scale", 1e300, "invalid_value"),
    ("guidance_scale", "7", "wrong_type"),
    ("true_cfg_scale", -1e300, "invalid_value"),
    ("guidance_rescale", 1.1, "invalid_value"),
    ("cfg_truncation", 1.1, "invalid_value"),
    ("start_sigma", 0, "invalid_value"),
    ("start_sigma", 1.01, "invalid_value"),
    ("start_sigma", "best", "invalid_value"),
    ("hand_off", 1, "invalid_value"),
    ("hand_off", "never", "invalid_value"),
    ("noise_field", "screen", "invalid_value"),
    ("min_resolution", 0, "invalid_value"),
    ("shorten", 1, "wrong_type"),
    ("scaling_space", "bicubic", "invalid_value"),
    ("scaling_space", "pixel", "invalid_value"),
    ("solver", "magic", "invalid_value"),
    ("timestep_spacing", "random", "invalid_value"),
    ("sigma_schedule", "random", "invalid_value"),
    ("eta", 2, "invalid_value"),
    ("cached_steps", "most", "invalid_value"),
    ("cached_steps", "c" * 10_001, "invalid_value"),
    ("cached_steps", True, "wrong_type"),
    ("cache_order", 2, "invalid_value"),
    ("controlnet_conditioning_scale", 1e300, "invalid_value"),
    ("control_guidance_start", -0.1, "invalid_value"),
    ("control_guidance_end", 1.1, "invalid_value"),
    ("control_mode", -1, "invalid_value"),
    ("control_mode", 1.5, "wrong_type"),
    ("control_image", "x.png", "wrong_type"),
    ("control_image", {"file_id": "file-1"}, "not_supported"),
    ("prompt_weighting", "webui", "invalid_value"),
    ("negative_prompt", "x" * 20_001, "invalid_value"),
    ("deadline_ms", 0, "invalid_value"),
    ("deadline_ms", 10**12, "invalid_value"),
    ("max_latency_ms", -1, "invalid_value"),
    ("user", "x" * 513, "invalid_value"),
]


@pytest.mark.parametrize(("field", "value", "code"), BAD_FIELDS)
def test_a_field_out_of_range_is_refused_by_its_name(site: Site, field: str, value: object, code: str) -> None:
    error = error_of(post(site, {**GOOD, field: value}))
    assert error["code"] == code
    assert error["param"] == field or field in error["message"] or str(value)[:5] in error["message"]


def test_every_field_of_a_request_is_tried() -> None:
    assert {field for field, _, _ in BAD_FIELDS} == set(Generation.__struct_fields__)


@pytest.mark.parametrize("name", ["sneed", "strength", "width", "__class__", "", "a\nb", "ü" * 200])
def test_an_unknown_field_is_refused_by_its_name(site: Site, name: str) -> None:
    answer = post(site, {**GOOD, name: 1})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "unknown_field"


def test_a_slip_is_told_its_neighbour(site: Site) -> None:
    error = error_of(post(site, {**GOOD, "num_inference_step": 4}))
    assert error["message"] == "'num_inference_step' is not a field; did you mean num_inference_steps?"
    assert error["param"] == "num_inference_step"


def test_a_size_is_told_the_nearest_that_can_be_painted(site: Site) -> None:
    error = error_of(post(site, {**GOOD, "size": "100x61"}))
    assert (error["param"], error["message"].endswith("the nearest is 96x64")) == ("size", True)


def test_a_size_that_some_models_round_is_refused_all_the_same_and_reaches_no_picture(
    site: Site, room: FakeRoom
) -> None:
    room.floor = 64
    error = error_of(post(site, {**GOOD, "size": "96x64"}))
    assert (error["code"], error["message"].endswith("the nearest is 64x64")) == ("invalid_size", True)


def test_a_prompt_that_is_missing_is_asked_for(site: Site) -> None:
    assert error_of(post(site, {}))["param"] == "prompt"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "invalid_json"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', "invalid_value"),
        (b'["a fox"]', "wrong_type"),
        (b'"a fox"', "wrong_type"),
        (b"null", "wrong_type"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid_json"),
    ],
)
def test_a_body_that_is_not_an_object_is_refused(site: Site, body: bytes, code: str) -> None:
    answer = site.http.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (400, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_other_kinds_of_bodies_are_refused(site: Site, kind: str) -> None:
    answer = site.http.post("/v1/images/generations", content=b'{"prompt": "a"}', headers={"content-type": kind})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("told", [True, False])
def test_a_body_of_forty_megabytes_is_refused_with_an_answer(site: Site, told: bool) -> None:
    piece = b" " * 2**20
    body: Any = piece * 40 if told else (piece for _ in range(40))
    answer = site.http.post("/v1/images/generations", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")
    assert post(site, {**GOOD, "n": 0}).status_code == 400  # and the server goes on


def edit(site: Site, *, image: bytes | None, mask: bytes | None = None, **fields: str) -> Any:
    files = {name: (f"{name}.png", data) for name, data in (("image", image), ("mask", mask)) if data is not None}
    return site.http.post("/v1/images/edits", data={**GOOD, **fields}, files=files or {"x": b""})


def png(width: int = 8, height: int = 8, mode: str = "RGB", colour: Any = 0) -> bytes:
    file = BytesIO()
    Image.new(mode, (width, height), colour).save(file, "PNG")
    return file.getvalue()


def noise() -> bytes:
    file = BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims more than there is."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "image"),
        (b"not a picture", "not one of PNG"),
        (noise()[:1000], "image"),
        (bomb(50_000, 50_000), "pixels"),
        (bomb(8_000, 8_000), "8000 x 8000 px"),
        (bomb(6_000, 6_000), "6000 x 6000 px"),
    ],
)
def test_a_picture_that_is_none_or_too_much_is_refused(site: Site, image: bytes, words: str) -> None:
    answer = edit(site, image=image)
    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["code"], error["param"]) == ("invalid_picture", "image")
    assert words in error["message"]


def test_a_mask_of_another_size_is_refused(site: Site) -> None:
    error = error_of(edit(site, image=png(64, 64), mask=png(32, 64)))
    assert (error["code"], error["param"]) == ("invalid_picture", "mask")
    assert "32 x 64 px, the picture 64 x 64 px" in error["message"]


def test_an_edit_without_a_picture_is_refused(site: Site) -> None:
    assert error_of(edit(site, image=None))["code"] in ("missing_field", "unknown_field")
    body = {**GOOD, "images": []}
    assert error_of(site.http.post("/v1/images/edits", json=body))["param"] == "images"


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"image_url": "http://169.254.169.254/latest"}, "not_supported"),
        ({"image_url": "file:///etc/passwd"}, "not_supported"),
        ({"image_url": "data:image/png;base64,***"}, "invalid_picture"),
        ({"image_url": "data:text/html;base64,YQ=="}, "not_supported"),
        ({"file_id": "file-1"}, "not_supported"),
        ({}, "missing_field"),
        ({"image_url": "x", "more": 1}, "unknown_field"),
    ],
)
def test_no_address_is_fetched(site: Site, reference: dict[str, Any], code: str) -> None:
    body = {**GOOD, "images": [reference]}
    assert error_of(site.http.post("/v1/images/edits", json=body))["code"] == code


def test_two_pictures_are_one_too_many(site: Site) -> None:
    files = [("image[]", ("a.png", png())), ("image[]", ("b.png", png()))]
    answer = site.http.post("/v1/images/edits", data=GOOD, files=files)
    assert (error_of(answer)["code"], error_of(answer)["param"]) == ("not_supported", "image")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"n": "many"}, "n"), ({"sneed": "1"}, "sneed"), ({"strength": "2"}, "strength"), ({"seed": "-1"}, "seed")],
)
def test_fields_of_a_form_are_read_as_strictly(site: Site, fields: dict[str, str], param: str) -> None:
    answer = edit(site, image=png(64, 64), **fields)
    assert (answer.status_code, error_of(answer)["param"]) == (400, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"--x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", b"--x\r\n" * 5000, b"\x00" * 100],
)
def test_a_broken_form_is_refused(site: Site, body: bytes) -> None:
    for boundary in ("; boundary=x", ""):
        headers = {"content-type": f"multipart/form-data{boundary}"}
        answer = site.http.post("/v1/images/edits", content=body, headers=headers)
        assert answer.status_code == 400
        assert error_of(answer)["code"] in ("invalid_form", "missing_field")


def test_failures_of_the_engine_are_told_as_such_once_it_reaches_it(site: Site, room: FakeRoom) -> None:
    room.fail = NonFiniteError("NaN in the latent")
    assert error_of(post(site, GOOD))["code"] == "not_finite"
    room.fail = EngineError("no such kernel")
    answer = post(site, GOOD)
    assert (answer.status_code, error_of(answer)["code"]) == (500, "engine_error")
    assert answer.headers["x-should-retry"] == "false"


def test_a_mistake_of_ours_tells_nothing_of_the_inside_when_it_reaches_the_room(
    site: Site, room: FakeRoom, caplog: pytest.LogCaptureFixture
) -> None:
    room.submit = lambda *_: 1 / 0  # type: ignore[method-assign]
    error = error_of(post(site, GOOD))
    assert error["code"] == "internal_error"
    assert "division" not in error["message"]
    assert "ZeroDivisionError" in caplog.text


def test_what_is_not_there_is_told_in_the_same_form(site: Site) -> None:
    assert error_of(site.http.get("/v1/nothing"))["code"] == "not_found"
    answer = site.http.put("/v1/jobs")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert "POST" in answer.headers["allow"]


# --- Clients that are slow, or of somebody else -----------------------------------------------------------------------


def connect(site: Site) -> socket.socket:
    place = urlsplit(site.url)
    return socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=20)


HEAD = (
    b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


def test_a_client_that_never_sends_its_body_is_told_so(host: Host) -> None:
    with host(limits={"body_seconds": 0.3}) as site, closing(connect(site)) as client:
        client.sendall(HEAD % 100 + b'{"prompt"')
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b" 408 " in answer
    assert b'"body_too_slow"' in answer
    assert b"x-should-retry: false" in answer


def test_a_client_that_sends_a_byte_a_time_is_told_so(host: Host) -> None:
    with host(limits={"body_seconds": 0.3}) as site, closing(connect(site)) as client:
        client.sendall(HEAD % 1000)
        for _ in range(4):
            client.sendall(b" ")
            time.sleep(0.05)
        assert b" 408 " in client.recv(65536)


def test_a_client_that_sends_no_head_is_let_go(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lssgen.serving.http.running.HEAD_SECONDS", 0.2)
    with host() as site, closing(connect(site)) as client:
        client.sendall(b"POST /v1/")
        assert client.recv(10) == b""


def test_a_client_that_reads_a_byte_a_second_is_let_go_and_reaches_nobody_else(host: Host, room: FakeRoom) -> None:
    body = json.dumps({**GOOD, "n": 10, "size": "640x640", "num_inference_steps": 1, "output_format": "webp"}).encode()
    room.noise = True
    with host(limits={"send_seconds": 0.5}) as site, closing(connect(site)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(HEAD % len(body) + body)
        client.recv(1)
        end = time.monotonic() + 30
        while b"client_too_slow" not in site.http.get("/metrics").content:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert post(site, GOOD).status_code == 200


def test_a_web_page_of_somebody_else_may_not_ask(site: Site) -> None:
    answer = post(site, GOOD, headers={"origin": "https://evil.example"})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden_origin")
    answer = site.http.get("/v1/models", headers={"host": "evil.example"})  # DNS rebinding
    assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden_origin")


def test_a_page_of_an_origin_that_was_named_may_ask_and_reaches_it(host: Host) -> None:
    with host(settings={"allow_origin": ("https://good.example",)}) as site:
        answer = post(site, GOOD, headers={"origin": "https://good.example"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://good.example"


def test_a_data_url_is_a_picture_once_it_reaches_the_room(site: Site, room: FakeRoom) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png(64, 64, colour=(1, 2, 3))).decode()}"
    body = {**GOOD, "images": [{"image_url": url}], "input_fidelity": "high"}
    assert site.http.post("/v1/images/edits", json=body).status_code == 200
    start = room.asked[-1].init_image
    assert start is not None
    assert (start.size, start.getpixel((0, 0))) == ((64, 64), (1, 2, 3))
    assert room.asked[-1].options["strength"] == 0.5


def test_one_request_too_many_is_refused_until_one_that_reaches_the_room_has_ended(host: Host, room: FakeRoom) -> None:
    room.hold.clear()
    with (
        host(limits={"max_requests": 1}) as site,
        site.http.stream("POST", "/v1/images/generations", json={**GOOD, "stream": True}),
    ):
        answer = post(site, GOOD)
        assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_requests")
        assert float(answer.headers["retry-after-ms"]) > 0
        room.hold.set()
