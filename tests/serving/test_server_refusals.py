"""Bad requests never reach the device: each is refused at once, with a code, the word that is to blame, and advice."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rooms import ask, fake_server

from lssgen.errors import PlanError, RefusedError
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.testing import FakeBackend

PICTURE, MASK = Image.new("RGB", (64, 64)), Image.new("L", (64, 64), 255)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with fake_server(tmp_path_factory.mktemp("bundles"), most_pixels=128 * 128, most_pictures=4, most_steps=50) as one:
        yield one


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": 3}, "invalid_value", "prompt"),
    ({"prompt": "a" * 20_001}, "invalid_value", "prompt"),
    ({"prompt": "a \ud800"}, "invalid_value", "prompt"),
    ({"negative_prompt": "\ud800"}, "invalid_value", "negative_prompt"),
    ({"model": "sd9"}, "unknown_model", "model"),
    ({"model": 7}, "invalid_value", "model"),
    ({"model": "../toy"}, "unknown_model", "model"),
    ({"model": "toy@../../etc"}, "unknown_model", "model"),
    ({"n": 0}, "invalid_value", "n"),
    ({"n": True}, "invalid_value", "n"),
    ({"n": 1.5}, "invalid_value", "n"),
    ({"n": 5}, "too_large", "n"),
    ({"height": 65}, "invalid_value", "size"),
    ({"height": 0}, "invalid_value", "height"),
    ({"width": "64"}, "invalid_value", "width"),
    ({"width": 256, "height": 128}, "too_large", "size"),
    ({"width": 10**6}, "invalid_value", "width"),
    ({"num_inference_steps": 51}, "too_large", "num_inference_steps"),
    ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps"),
    ({"num_inference_steps": 10**9}, "invalid_value", "num_inference_steps"),
    ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale"),
    ({"guidance_scale": "strong"}, "invalid_value", "guidance_scale"),
    ({"start_sigma": 1.5}, "invalid_value", "start_sigma"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"seed": 2**64}, "invalid_value", "seed"),
    ({"seed": 2**64 - 1, "n": 2}, "invalid_value", "seed"),
    ({"solver": "best"}, "invalid_value", "solver"),
    ({"scaling_space": "fax"}, "invalid_value", "scaling_space"),
    ({"skip_layers": True}, "invalid_value", "skip_layers"),
    ({"guidance_rescale": 0.5}, "invalid_value", "guidance_rescale"),
    ({"steps": 4}, "invalid_value", "steps"),
    ({"num_images": 2}, "invalid_value", "num_images"),
    ({"batch": 2}, "invalid_value", "batch"),
    ({"deadline_ms": 0}, "invalid_value", "deadline_ms"),
    ({"deadline_ms": "soon"}, "invalid_value", "deadline_ms"),
    ({"max_latency_ms": float("inf")}, "invalid_value", "max_latency_ms"),
    ({"estimate_every": -1}, "invalid_value", "estimate_every"),
    ({"mask_image": MASK}, "invalid_value", "init_image"),
    ({"init_image": PICTURE, "mask_image": MASK.resize((32, 32))}, "invalid_value", "mask_image"),
    ({"init_image": PICTURE, "mask_image": Image.new("L", (64, 64))}, "invalid_value", "mask_image"),
    ({"strength": 0.5}, "invalid_value", "init_image"),
    ({"conditions": {"control": PICTURE}}, "invalid_value", "conditions"),
    ({"draft": True, "start_sigma": 1.0}, "invalid_value", "draft"),
]


@pytest.mark.parametrize(("given", "code", "param"), BAD, ids=[str(bad[0])[:40] for bad in BAD])
def test_what_cannot_be_painted_is_refused_with_a_code_and_the_word_to_blame(
    server: Server, given: dict[str, Any], code: str, param: str | None
) -> None:
    before, backend = server.stats(), server._backend
    assert isinstance(backend, FakeBackend)
    called = len(backend.calls)
    with pytest.raises(RefusedError) as refusal:
        server.submit(ask(**given))
    assert (refusal.value.code, refusal.value.param) == (code, param), str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600
    after = server.stats()
    assert len(backend.calls) == called
    assert after.accepted == before.accepted
    assert after.refused[code] == before.refused.get(code, 0) + 1


def test_a_picture_that_the_memory_cannot_hold_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with fake_server(tmp_path, memory_gib=2**20 / 2**30, most_pixels=10**8) as server:
        with pytest.raises(RefusedError, match=r"takes [0-9]+ MB with toy's weights; this server has 1 MB") as refusal:
            server.submit(ask(height=4096, width=4096))
        assert (refusal.value.code, refusal.value.param) == ("no_memory", "size")
        assert server.submit(ask()).result(10).pictures


def test_a_size_that_was_not_declared_is_refused_where_only_those_are_taken(tmp_path: Path) -> None:
    with fake_server(tmp_path, sizes=((64, 64), (32, 64)), declared_only=True) as server:
        with pytest.raises(RefusedError, match=r"128 x 64 px is not a size .* ready for: 64 x 64, 64 x 32"):
            server.submit(ask(height=64, width=128))
        assert server.submit(ask(height=32, width=64)).result(10).pictures


def test_a_seed_that_is_not_given_is_drawn_and_told(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        asked = [ImageRequest(prompt="a", options={"num_inference_steps": 2}) for _ in range(2)]
        first, second = (server.submit(one).result(10) for one in asked)
        assert first.request.seed != second.request.seed
        again = server.submit(ask("a", num_inference_steps=2, scaling_space="resnet", seed=first.request.seed))
        assert again.result(10).pictures[0].latent.tobytes() == first.pictures[0].latent.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"batches": ()},
        {"batches": (4, 1)},
        {"batches": (0,)},
        {"order": ("luck",)},
        {"order": ()},
        {"patience": 0},
        {"stuck_seconds": 0.0},
        {"memory_gib": float("nan")},
        {"most_requests": "many"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(wrong))):
        ServerOptions(**wrong)


def test_a_size_to_be_ready_for_that_cannot_be_painted_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="65"):
        fake_server(tmp_path, sizes=((65, 65),))
