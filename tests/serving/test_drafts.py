"""Draft n, refine k: small pictures first, and those that are liked go on from their latents, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from rooms import Follower, alone, ask, fake_server
from test_schedules_in_time import slow

from lssgen.errors import RefusedError
from lssgen.serving import ImageRequest
from lssgen.serving.api import PictureDone
from lssgen.testing import FakeBackend

WORDS = {"num_inference_steps": 5, "solver": "dpm++2m-sde", "scaling_space": "pixel", "seed": 20}
"""With noise in every step and in the transition, so that a stream that is not where it was would be seen."""


def draft(n: int = 4) -> ImageRequest:
    return ask(n=n, draft=True, **WORDS)


def test_refined_pictures_are_those_of_the_whole_run_to_the_bit_and_nothing_is_painted_twice(tmp_path: Path) -> None:
    follower = Follower()
    with fake_server(tmp_path, observe=follower) as server:
        drawn = server.submit(draft()).result(10)
        first, second = (len(stage.steps) for stage in drawn.request.plan.stages)
        before = server.stats().steps
        kept = server.refine(drawn.draft, [3, 1]).result(10)
        expected = alone(server)("a red circle", num_images=4, **WORDS)
        assert server.stats().steps - before == 2 * second
    assert drawn.usage.steps == 4 * first
    assert [picture.image.size for picture in drawn.pictures] == [(32, 32)] * 4
    assert [picture.seed for picture in kept.pictures] == [23, 21]
    for picture, number in zip(kept.pictures, (3, 1), strict=True):
        assert picture.latent.tobytes() == expected.pictures[number].latent.tobytes()
        assert picture.image.tobytes() == expected.pictures[number].image.tobytes()


def test_a_draft_shows_what_the_small_stage_painted(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        ticket = server.submit(ask(draft=True, seed=5))
        small = server.submit(ask(height=32, width=32, seed=5)).result(10)
        drawn = ticket.result(10)
        assert ticket.state == "drafted"
        assert [event.index for event in ticket.events(1) if isinstance(event, PictureDone)] == [0]
    assert np.array_equal(np.asarray(drawn.pictures[0].image), np.asarray(small.pictures[0].image))


def test_a_draft_can_be_refined_again_and_with_an_engine_that_was_closed_meanwhile(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        drawn = server.submit(draft(2)).result(10)
        once = server.refine(drawn.draft, [1]).result(10)
        server._scheduler.call(server._models.first.close)
        twice = server.refine(drawn.draft, [1, 1]).result(10)
    assert {picture.latent.tobytes() for picture in (*once.pictures, *twice.pictures)} == {
        once.pictures[0].latent.tobytes()
    }


@pytest.mark.parametrize(
    ("keep", "param"), [([], "keep"), ([2], "keep"), ([-1], "keep"), ([True], "keep"), ([0] * 11, "keep")]
)
def test_only_pictures_of_the_draft_can_be_kept(tmp_path: Path, keep: list[int], param: str) -> None:
    with fake_server(tmp_path) as server:
        drawn = server.submit(draft(2)).result(10)
        with pytest.raises(RefusedError) as refusal:
            server.refine(drawn.draft, keep)
        assert refusal.value.param == param


def test_drafts_go_after_their_time_by_memory_and_when_they_are_forgotten(tmp_path: Path) -> None:
    with fake_server(tmp_path, draft_seconds=0.0) as server:
        drawn = server.submit(draft(1)).result(10)
        with pytest.raises(RefusedError, match="there is no draft") as refusal:
            server.refine(drawn.draft, [0])
        assert refusal.value.code == "unknown_draft"
    with fake_server(tmp_path / "small", draft_mib=0.0) as server:
        first, second = (server.submit(draft(1)).result(10) for _ in range(2))
        with pytest.raises(RefusedError):
            server.refine(first.draft, [0])
        assert server.stats().drafts == 1
        assert server.stats().draft_bytes > 0
        assert server.forget(second.draft)
        assert not server.forget(second.draft)
        assert server.stats().drafts == 0


def test_what_is_left_of_a_draft_is_refused_at_once_where_it_cannot_be_done_in_time(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        drawn = server.submit(draft()).result(10)
        slow(server, per_cell=0.1)
        with pytest.raises(RefusedError, match="what is left of the draft takes") as refusal:
            server.refine(drawn.draft, [0], deadline_ms=5)
        assert (refusal.value.code, refusal.value.param) == ("deadline_impossible", "deadline_ms")
        assert refusal.value.fastest_ms is not None
        ticket = server.refine(drawn.draft, [0], deadline_ms=1.01 * refusal.value.fastest_ms)
        assert ticket.result(10).pictures
        assert server.stats().refused["deadline_impossible"] == 1


def test_a_draft_does_not_call_what_it_does_not_need(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        backend = server._backend
        assert isinstance(backend, FakeBackend)
        backend.calls.clear()
        server.submit(draft(3)).result(10)
        assert not {"transition_pixel", "transition_latent", "encode"} & set(backend.calls)
        assert backend.calls.count("decode") == 3
