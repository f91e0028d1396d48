"""A server's pictures pass the owner's hooks: finished ones, previews, estimates and drafts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rooms import ask, fake_server

from lssgen.errors import CheckError, RefusedPictureError
from lssgen.runtime.checking import Verdict
from lssgen.serving import Server
from lssgen.serving.api import PictureDone, Preview
from lssgen.serving.http.refusals import refusal_of

Hook = Callable[[Sequence[Image.Image], Sequence[str]], list[Verdict]]


def blackens(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
    """Replaces every picture."""
    del prompts
    return [Verdict(action="replace", reason="all")] * len(pictures)


def shown(server: Server, **words: Any) -> list[Image.Image]:
    """Every picture that a request shows to its caller."""
    ticket = server.submit(ask(**words))
    answer = ticket.result(10)
    told = [one.image for one in ticket.events(1) if isinstance(one, Preview)]
    told += [one.picture.image for one in ticket.events(1) if isinstance(one, PictureDone)]
    assert not any(picture.latent.any() for picture in answer.pictures)
    return [*told, *(picture.image for picture in answer.pictures)]


def is_black(image: Image.Image) -> bool:
    return image.getextrema() == ((0, 0),) * 3


def test_nothing_is_shown_that_the_checker_has_not_seen(tmp_path: Path) -> None:
    with fake_server(tmp_path, checker=blackens) as server:
        images = shown(server, n=2, previews=True, estimate_every=1)
        assert len(images) > 6
        assert all(map(is_black, images))
        draft = shown(server, draft=True)
        assert draft
        assert all(map(is_black, draft))


def test_finished_draft_is_looked_at_again(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def checker(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        assert list(prompts) == ["a red circle"] * len(pictures)
        seen.extend(picture.size for picture in pictures)
        return [Verdict()] * len(pictures)

    with fake_server(tmp_path, checker=checker) as server:
        answer = server.submit(ask(draft=True)).result(10)
        server.refine(answer.draft, keep=[0]).result(10)
    assert seen == [(32, 32), (64, 64)]


def refuses(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
    action = "refuse" if "bad" in prompts[0] else "keep"
    return [Verdict(action=action, reason="the prompt is bad")] * len(pictures)


def test_refused_request_ends_and_others_are_painted(tmp_path: Path) -> None:
    with fake_server(tmp_path, checker=refuses) as server:
        bad, good = server.submit(ask("a bad one", previews=True)), server.submit(ask("a good one"))
        assert len(good.result(10).pictures) == 1
        with pytest.raises(RefusedPictureError, match="the prompt is bad") as caught:
            bad.result(10)
        assert not [event for event in bad.events(1) if isinstance(event, Preview | PictureDone)]
        told = refusal_of(caught.value)
        assert (told.code, told.kind.status) == ("moderation_blocked", 400)


def test_checker_that_fails_ends_the_request_and_not_the_server(tmp_path: Path) -> None:
    def fails(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[Verdict]:
        if "bad" in prompts[0]:
            raise SystemExit("secret of the owner's")
        return [Verdict()] * len(pictures)

    with fake_server(tmp_path, checker=fails) as server:
        with pytest.raises(CheckError, match="no picture is let out") as caught:
            server.submit(ask("a bad one")).result(10)
        told = refusal_of(caught.value)
        assert (told.code, told.kind.status) == ("checker_failed", 500)
        assert "secret" not in told.message
        assert len(server.submit(ask("a good one")).result(10).pictures) == 1


def test_watermark_is_in_previews_and_pictures(tmp_path: Path) -> None:
    def red(pictures: Sequence[Image.Image]) -> list[Image.Image]:
        return [Image.new("RGB", picture.size, "red") for picture in pictures]

    with fake_server(tmp_path, watermark=red) as server:
        ticket = server.submit(ask(previews=True))
        images = [*ticket.result(10).pictures]
        previews = [event.image for event in ticket.events(1) if isinstance(event, Preview)]
    assert {image.getpixel((0, 0)) for image in [images[0].image, *previews]} == {(255, 0, 0)}


def test_hook_that_is_not_there_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="cannot be made"):
        fake_server(tmp_path, checker="nowhere_at_all:make")
