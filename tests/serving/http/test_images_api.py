"""OpenAI's Images API, as OpenAI's own client speaks it."""

import base64
import hashlib
import json
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from fake_room import FakeRoom
from PIL import Image
from sites import Host, Site

import lssgen
from lssgen.bundle import Bundle
from lssgen.errors import NonFiniteError, RefusedError
from lssgen.runtime.pictures import SOURCE_TYPE

FOX = "a fox"

deprecated = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
"""What the client says of variations."""


def client_of(site: Site, **choices: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="sk-anything-at-all", **choices)


@pytest.fixture
def client(site: Site) -> Generator[openai.OpenAI]:
    with client_of(site, max_retries=0) as opened:
        yield opened


@pytest.fixture
def real(painted: Site) -> Generator[openai.OpenAI]:
    with client_of(painted, max_retries=0) as opened:
        yield opened


def picture(data: str | None) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data or "")))


def png(size: tuple[int, int] = (64, 64), mode: str = "RGB", colour: Any = "blue") -> bytes:
    file = BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def half_masked() -> bytes:
    """A mask of OpenAI's kind: the left half is transparent."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    file = BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def test_a_picture_is_the_one_that_the_pipeline_paints(real: openai.OpenAI, small: Bundle) -> None:
    answer = real.images.generate(prompt=FOX, n=2, extra_body={"seed": 7, "num_inference_steps": 5})
    with lssgen.load(small.folder, threads=1) as pipeline:
        expected = pipeline(FOX, num_images=2, seed=7, num_inference_steps=5)
    assert len(answer.data or []) == 2
    for given, wanted in zip(answer.data or [], expected.images, strict=True):
        assert np.array_equal(np.asarray(picture(given.b64_json)), np.asarray(wanted))


def test_the_answer_has_openais_keys_and_usage_and_timings(real: openai.OpenAI) -> None:
    answer = real.images.generate(prompt=FOX, size="128x64", quality="low", extra_body={"seed": 1})
    assert (answer.size, answer.quality, answer.output_format, answer.background) == ("128x64", "low", "png", "opaque")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    extra = answer.model_extra or {}
    assert extra["timings"]["total_seconds"] >= extra["timings"]["queue_seconds"] >= 0
    assert {span["name"] for span in extra["timings"]["spans"]} >= {"stage", "decode"}
    assert (answer.data or [])[0].model_extra == {"seed": 1}


def test_pictures_say_that_they_are_generated_and_how(real: openai.OpenAI) -> None:
    answer = real.images.generate(prompt=FOX, extra_body={"seed": 3})
    image = picture((answer.data or [])[0].b64_json)
    said = json.loads(image.text["parameters"])  # pyright: ignore[reportAttributeAccessIssue]
    assert (said["prompt"], said["seed"]) == (FOX, 3)
    assert SOURCE_TYPE in image.text["XML:com.adobe.xmp"]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("form", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_keeps_the_mark(client: openai.OpenAI, form: Any, name: str) -> None:
    (answer,) = client.images.generate(prompt=FOX, output_format=form).data or []
    image = picture(answer.b64_json)
    assert image.format == name
    assert SOURCE_TYPE.encode() in base64.b64decode(answer.b64_json or "")


def test_compression_makes_files_smaller(real: openai.OpenAI) -> None:
    sizes = []
    for quality in (100, 10):
        answer = real.images.generate(
            prompt=FOX, output_format="jpeg", output_compression=quality, extra_body={"seed": 1}
        )
        sizes.append(len((answer.data or [])[0].b64_json or ""))
    assert sizes[0] > sizes[1]


def test_a_url_leads_to_the_picture_without_a_key(client: openai.OpenAI) -> None:
    (answer,) = client.images.generate(prompt=FOX, response_format="url", extra_body={"seed": 9}).data or []
    assert answer.url is not None
    assert answer.b64_json is None
    got = httpx2.get(answer.url)
    assert got.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(got.content)).size == (64, 64)


def test_a_stream_sends_the_small_stage_and_then_the_picture(real: openai.OpenAI, small: Bundle) -> None:
    events = list(real.images.generate(prompt=FOX, stream=True, partial_images=1, extra_body={"seed": 7}))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    first, last = events
    assert picture(first.b64_json).size == (32, 32)
    assert (first.size, last.size) == ("32x32", "64x64")  # type: ignore[comparison-overlap]
    assert getattr(first, "partial_image_index", None) == 0
    assert getattr(last, "usage").total_tokens > 0  # noqa: B009
    with lssgen.load(small.folder, threads=1) as pipeline:
        expected = pipeline(FOX, seed=7).images[0]
    assert np.array_equal(np.asarray(picture(last.b64_json)), np.asarray(expected))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_stream_sends_no_more_previews_than_asked_for(real: openai.OpenAI, count: int) -> None:
    events = list(real.images.generate(prompt=FOX, stream=True, partial_images=count))
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert len(partial) == count
    assert [getattr(event, "partial_image_index") for event in partial] == list(range(count))  # noqa: B009
    assert events[-1].type == "image_generation.completed"


def test_a_stream_of_several_pictures_tells_them_apart(real: openai.OpenAI) -> None:
    events = list(real.images.generate(prompt=FOX, n=3, stream=True))
    done = [event for event in events if event.type == "image_generation.completed"]
    assert sorted((event.model_extra or {})["index"] for event in done) == [0, 1, 2]


def test_a_stream_that_fails_says_so_in_the_stream(client: openai.OpenAI, room: FakeRoom) -> None:
    room.fail = NonFiniteError("NaN in the latent")
    with pytest.raises(openai.APIError, match="NaN in the latent"):
        list(client.images.generate(prompt=FOX, stream=True))


def test_a_silent_stream_sends_comments(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    body = {"prompt": FOX, "stream": True}
    with site.http.stream("POST", "/v1/images/generations", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": ping"
        room.hold.set()
        assert any(line == "event: image_generation.completed" for line in lines)


def test_edits_paint_over_a_picture_by_form_and_by_json(real: openai.OpenAI, painted: Site) -> None:
    by_form = real.images.edit(image=("x.png", png()), prompt=FOX, extra_body={"seed": 4, "strength": 0.5})
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    body = {"prompt": FOX, "images": [{"image_url": url}], "seed": 4, "strength": 0.5}
    by_json = painted.http.post("/v1/images/edits", json=body).json()
    assert (by_form.data or [])[0].b64_json == by_json["data"][0]["b64_json"]


def test_a_mask_of_openais_kind_is_painted_where_it_is_transparent(real: openai.OpenAI) -> None:
    answer = real.images.edit(image=("x.png", png()), mask=("m.png", half_masked()), prompt=FOX)
    pixels = np.asarray(picture((answer.data or [])[0].b64_json))
    assert (pixels[:, 32:] == (0, 0, 255)).all()
    assert not (pixels[:, :32] == (0, 0, 255)).all()


def sent(data: bytes) -> dict[str, str]:
    return {"image_url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}


def test_a_control_picture_reaches_the_room_with_its_words(client: openai.OpenAI, room: FakeRoom) -> None:
    client.images.generate(prompt=FOX, extra_body={"control_image": sent(png(colour="red"))})
    asked = room.asked[-1]
    assert asked.init_image is None
    assert asked.conditions["control"].getpixel((0, 0)) == (255, 0, 0)


def test_a_jobs_control_picture_is_not_among_its_fields(site: Site, room: FakeRoom) -> None:
    body = {"prompt": FOX, "control_image": sent(png())}
    job = site.http.post("/v1/jobs", json=body).json()
    assert "control" in room.asked[-1].conditions
    assert "base64" not in json.dumps(site.http.get(f"/v1/jobs/{job['id']}").json())


@pytest.mark.parametrize(
    ("given", "words", "param"),
    [
        ({"control_image": sent(png())}, "has no ControlNet", "control_image"),
        ({"controlnet_conditioning_scale": 0.5}, "has no ControlNet", "controlnet_conditioning_scale"),
        ({"control_image": {"image_url": "https://example.com/x.png"}}, "fetches nothing", "control_image"),
        ({"control_image": sent(b"no picture")}, "cannot be read", "control_image"),
    ],
)
def test_a_control_picture_that_is_wrong_is_refused(
    real: openai.OpenAI, given: dict[str, Any], words: str, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        real.images.generate(prompt=FOX, extra_body=given)
    assert words in str(caught.value)
    assert caught.value.param == param


def test_an_edit_can_be_streamed(real: openai.OpenAI) -> None:
    events = list(real.images.edit(image=("x.png", png()), prompt=FOX, stream=True, partial_images=1))
    assert {event.type for event in events} <= {"image_edit.partial_image", "image_edit.completed"}
    assert events[-1].type == "image_edit.completed"


@deprecated
def test_variations_start_from_the_picture(real: openai.OpenAI) -> None:
    answer = real.images.create_variation(image=("x.png", png()), n=2)
    assert len(answer.data or []) == 2


@deprecated
def test_variations_need_a_bundle_that_can(client: openai.OpenAI, room: FakeRoom) -> None:
    room.starts = False
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.create_variation(image=("x.png", png()))
    assert (caught.value.code, caught.value.param) == ("not_supported", "model")


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "toy"
    assert client.models.retrieve("toy@style").id == "toy@style"
    for name in ("sd9", "toy@none"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found"


def test_a_lora_is_a_model(client: openai.OpenAI, room: FakeRoom) -> None:
    client.images.generate(prompt=FOX, model="toy@style")
    assert room.asked[-1].model == "toy@style"


def test_an_alias_is_a_model(client: openai.OpenAI, room: FakeRoom) -> None:
    client.images.generate(prompt=FOX, model="dall-e-2")
    assert room.asked[-1].model == "dall-e-2"


@pytest.mark.parametrize(
    ("quality", "options"),
    [
        ("low", {"num_inference_steps": 3}),
        ("auto", {}),
        ("medium", {}),
        ("standard", {}),
        ("high", {"start_sigma": 1.0}),
        ("hd", {"start_sigma": 1.0}),
    ],
)
def test_quality_is_a_schedule(client: openai.OpenAI, room: FakeRoom, quality: Any, options: dict[str, Any]) -> None:
    client.images.generate(prompt=FOX, quality=quality, extra_body={"seed": 1})
    assert room.asked[-1].options == {"seed": 1, **options}


def test_words_that_are_given_win_over_quality(client: openai.OpenAI, room: FakeRoom) -> None:
    extra = {"seed": 1, "num_inference_steps": 9, "start_sigma": 0.5}
    client.images.generate(prompt=FOX, quality="low", extra_body=extra)
    assert room.asked[-1].options == extra


def test_extensions_reach_the_room_in_diffusers_words(client: openai.OpenAI, room: FakeRoom) -> None:
    extra = {"negative_prompt": "rain", "guidance_scale": 2, "eta": 0.0, "seed": 2**63, "solver": "own"}
    client.images.generate(prompt=FOX, size="64x128", extra_body={**extra, "deadline_ms": 60_000})
    asked = room.asked[-1]
    assert asked.options == {**extra, "width": 64, "height": 128}
    assert (asked.deadline_ms, asked.max_latency_ms) == (60_000, None)


@pytest.mark.parametrize(
    ("refusal", "status", "code", "posts"),
    [
        (RefusedError("full", code="queue_full", retry_after_s=0.001), 429, "queue_full", 3),
        (RefusedError("does not fit", code="no_memory"), 503, "will_not_fit", 1),
        (RefusedError("too many", code="too_large"), 400, "too_large", 1),
        (RefusedError("too late", code="deadline_passed"), 504, "deadline_passed", 1),
        (RefusedError("no time", code="deadline_impossible", fastest_ms=900), 400, "deadline_impossible", 1),
        (RefusedError("stuck", code="device_stuck"), 503, "device_stuck", 1),
        (RefusedError("stops", code="draining", retry_after_s=0.001), 503, "stopping", 3),
    ],
)
def test_the_client_posts_again_only_where_that_helps(
    host: Host, room: FakeRoom, refusal: RefusedError, status: int, code: str, posts: int
) -> None:
    room.refuse = refusal
    tries: list[int] = []
    transport = httpx2.Client(event_hooks={"response": [lambda answer: tries.append(answer.status_code)]})
    with (
        host() as site,
        client_of(site, http_client=transport) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.images.generate(prompt=FOX)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert tries == [status] * posts


def test_a_request_id_comes_back(site: Site) -> None:
    body = {"prompt": FOX}
    own = site.http.post("/v1/images/generations", json=body, headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    assert site.http.post("/v1/images/generations", json=body).headers["x-request-id"].startswith("req_")
    strange = site.http.post("/v1/images/generations", json=body, headers={"x-request-id": "a b"})
    assert strange.headers["x-request-id"].startswith("req_")


def test_a_client_that_goes_takes_its_request_back(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{site.url}/v1/images/generations", json={"prompt": FOX}, timeout=0.3)
    until(lambda: room.cancelled == 1)


def test_a_client_that_leaves_a_stream_takes_its_request_back(site: Site, room: FakeRoom) -> None:
    room.hold.clear()
    with site.http.stream("POST", "/v1/images/generations", json={"prompt": FOX, "stream": True}) as answer:
        assert answer.status_code == 200
    until(lambda: room.cancelled == 1)


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become so."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_request_gets_its_own_picture(host: Host) -> None:
    with host() as site, ThreadPoolExecutor(16) as pool:

        def ask(seed: int) -> tuple[int, str]:
            answer = site.http.post("/v1/images/generations", json={"prompt": FOX, "seed": seed}).json()
            data = base64.b64decode(answer["data"][0]["b64_json"])
            return answer["data"][0]["seed"], hashlib.sha256(Image.open(BytesIO(data)).tobytes()).hexdigest()

        got = list(pool.map(ask, range(64)))
    assert [seed for seed, _ in got] == list(range(64))
    wanted = [hashlib.sha256(Image.new("RGB", (64, 64), seed).tobytes()).hexdigest() for seed in range(64)]
    assert [mark for _, mark in got] == wanted
