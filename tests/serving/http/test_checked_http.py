"""What clients see of the owner's hooks: replaced pictures, also in streams, and refusals in OpenAI's words."""

import base64
import json
from collections.abc import Generator, Sequence
from io import BytesIO
from typing import Any

import openai
import pytest
from PIL import Image
from sites import Site, serving

from lssgen.bundle import Bundle
from lssgen.runtime.checking import Verdict
from lssgen.serving.http.metrics import Metrics
from lssgen.serving.server import Server


class Owners:
    """A checker that refuses prompts with "bad" in them, fails at "odd" ones, and blackens all others."""

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        if "odd" in prompts[0]:
            raise ValueError("a secret of the owner's")
        action: Any = "refuse" if "bad" in prompts[0] else "replace"
        return [Verdict(action=action, reason="the owner says so")] * len(pictures)


@pytest.fixture(scope="module")
def checked(small: Bundle) -> Generator[Site]:
    metrics = Metrics()
    with Server(small.folder, observe=metrics.observe, threads=1, checker=Owners()) as room:
        assert room.wait_ready(60)
        with serving(room, metrics) as opened:
            yield opened


@pytest.fixture
def client(checked: Site) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{checked.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def picture(data: str | None) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data or "")))


def test_replaced_picture_is_given_and_says_so(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a fox")
    image = picture((answer.data or [])[0].b64_json)
    assert image.getextrema() == ((0, 0),) * 3
    (said,) = json.loads(image.info["parameters"])["checked"]
    assert (said["action"], said["reason"]) == ("replace", "the owner says so")


def test_streamed_partial_pictures_pass_the_checker(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a fox", stream=True, partial_images=3))
    assert len(events) > 2
    assert all(picture(event.b64_json).getextrema() == ((0, 0),) * 3 for event in events)


def test_refusal_has_openais_words_and_the_reason(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a bad fox")
    assert (caught.value.code, caught.value.type) == ("moderation_blocked", "image_generation_user_error")
    assert "the owner says so" in caught.value.message


def test_refusal_in_a_stream_shows_nothing_before(client: openai.OpenAI) -> None:
    seen: list[Any] = []
    with pytest.raises(openai.APIError, match="the owner says so"):
        seen.extend(client.images.generate(prompt="a bad fox", stream=True, partial_images=3))
    assert seen == []


def test_failure_of_a_checker_tells_nothing_of_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt="an odd fox")
    assert caught.value.code == "checker_failed"
    assert "secret" not in caught.value.message
