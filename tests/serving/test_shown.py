"""Previews, clean estimates, and runs that start from pictures: the same as alone, whoever is painted beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rooms import Follower, alone, ask, fake_server, networks
from test_life import Gate
from toy_bundle import FACTS

from lssgen.errors import CancelledError
from lssgen.manifest import Gates, Picture
from lssgen.plan.facts import Control
from lssgen.ports import Array, Port
from lssgen.runtime import Pipeline
from lssgen.serving import Server, ServerOptions
from lssgen.serving.api import Preview
from lssgen.testing import Ask, FakeBackend, FakeModel, fake_bundle


def previews(events: Any, kind: str) -> list[Preview]:
    return [event for event in events if isinstance(event, Preview) and event.kind == kind]


def test_a_preview_is_the_small_stages_picture_at_its_own_size(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        ticket = server.submit(ask(n=2, previews=True, seed=3))
        ticket.result(10)
        shown = previews(ticket.events(1), "stage")
        small = server.submit(ask(height=32, width=32, n=2, seed=3)).result(10)
    assert [(event.index, event.stage, event.stages) for event in shown] == [(0, 0, 2), (1, 0, 2)]
    assert [event.image.tobytes() for event in shown] == [picture.image.tobytes() for picture in small.pictures]


def test_nobody_is_shown_what_he_did_not_ask_for(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        ticket = server.submit(ask())
        ticket.result(10)
        assert not [event for event in ticket.events(1) if isinstance(event, Preview)]
        assert server.stats().previews == 0


@pytest.mark.parametrize("solver", ["own", "dpm++2m", "dpm++2m-sde", "heun"])
def test_an_estimate_is_the_clean_picture_where_the_network_knows_it(tmp_path: Path, solver: str) -> None:
    """A network that always knows the same clean latent z: x = (1 - s) z + s e, and velocity e - z, from its label."""
    z = np.float32(0.7)

    def knows(given: Ask) -> Array:
        sigma = given.labels / 1000
        return (given.u - z) / np.maximum(sigma, 1e-6)

    with fake_server(tmp_path, knows) as server:
        ticket = server.submit(ask(estimate_every=1, guidance_scale=1.0, num_inference_steps=8, solver=solver))
        ticket.result(10)
        shown = previews(ticket.events(1), "estimate")
    assert len(shown) > 6
    expected = np.clip(z * 64 + 128, 0, 255).astype(np.uint8)
    for event in shown:
        off = np.abs(np.asarray(event.image).astype(int) - int(expected)).max()
        assert off <= 2, f"stage {event.stage}, step {event.step}"  # float32 sums, rounded down to a level of grey


def test_an_estimate_can_be_asked_for_once(tmp_path: Path) -> None:
    gate = Gate()
    with fake_server(tmp_path, gate) as server:
        gate.shut()
        ticket = server.submit(ask(num_inference_steps=10))
        assert gate.reached.wait(10)
        ticket.estimate()
        gate.open.set()
        ticket.result(10)
        assert len(previews(ticket.events(1), "estimate")) == 1


def photo(seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8))


def half() -> Image.Image:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    return Image.fromarray(mask)


@pytest.mark.parametrize("mask", [None, half()])
def test_runs_from_a_picture_are_the_same_beside_runs_from_noise(tmp_path: Path, mask: Image.Image | None) -> None:
    follower = Follower()
    words = {"num_inference_steps": 6, "strength": 0.9, "scaling_space": "latent"}
    with fake_server(tmp_path, observe=follower) as server:
        tickets: list[Any] = []

        def come() -> None:
            tickets.append(server.submit(ask(seed=1)))
            for seed in (1, 2):
                tickets.append(
                    server.submit(ask(init_image=photo(seed), mask_image=mask, n=1, **{**words, "seed": seed}))
                )

        server._scheduler.call(come)
        while len(tickets) < 3:
            pass
        answers = [ticket.result(10) for ticket in tickets]
        pipeline = alone(server)
        for seed, answer in zip((1, 2), answers[1:], strict=True):
            expected = pipeline("a red circle", init_image=photo(seed), mask_image=mask, **{**words, "seed": seed})
            assert answer.pictures[0].latent.tobytes() == expected.pictures[0].latent.tobytes()
            assert answer.pictures[0].image.tobytes() == expected.pictures[0].image.tobytes()
    assert max(follower.calls) == 3


def test_a_network_that_takes_a_picture_gets_everybodys_own(tmp_path: Path) -> None:
    shape = ("batch", 4, "height", "width")
    extra = (Port("control", "float32", shape), Picture(name="control"))

    def controlled(given: Ask) -> Array:
        return 0.5 * given.u + 0.3 * given.extra["control"]

    graphs = networks(controlled, extra=[extra])
    bundle = fake_bundle(tmp_path / "toy", FakeModel(facts=FACTS, networks=graphs))
    words: dict[str, Any] = {"num_inference_steps": 3, "scaling_space": "latent", "seed": 4}
    options = ServerOptions(batches=(1, 2, 4))
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options) as server:
        tickets = [server.submit(ask(conditions={"control": photo(seed)}, **words)) for seed in (1, 2, 3)]
        answers = [ticket.result(10) for ticket in tickets]
    pipeline = Pipeline(bundle, FakeBackend(graphs))
    for seed, answer in zip((1, 2, 3), answers, strict=True):
        expected = pipeline("a red circle", conditions={"control": photo(seed)}, **words)
        assert answer.pictures[0].latent.tobytes() == expected.pictures[0].latent.tobytes()


def test_control_pictures_at_unlike_scales_and_none_share_steps(tmp_path: Path) -> None:
    control = (Port("control", "float32", ("batch", 192, "height", "width")), Picture(name="control", read_as="cells"))

    def steered(given: Ask) -> Array:
        return 0.5 * given.u + given.extra["told"][:, :, None, None] * given.extra["control"].mean(1, keepdims=True)

    graphs = networks(steered, extra=[control], columns=1)
    facts = replace(FACTS, control=Control())
    bundle = fake_bundle(tmp_path / "toy", FakeModel(facts=facts, networks=graphs))
    words: dict[str, Any] = {"num_inference_steps": 4, "scaling_space": "latent", "seed": 4}
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"controlnet_conditioning_scale": 0.0}, {}),
        ({"controlnet_conditioning_scale": 0.5, "control_guidance_end": 0.5}, {"control": photo(1)}),
        ({}, {"control": photo(2)}),
    ]
    options = ServerOptions(batches=(1, 2, 4))
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options) as server:
        tickets = [server.submit(ask(conditions=pictures, **words, **more)) for more, pictures in asked]
        answers = [ticket.result(10) for ticket in tickets]
    pipeline = Pipeline(bundle, FakeBackend(graphs))
    for (more, pictures), answer in zip(asked, answers, strict=True):
        expected = pipeline("a red circle", conditions=pictures, **words, **more)
        assert answer.pictures[0].latent.tobytes() == expected.pictures[0].latent.tobytes()
    assert len({answer.pictures[0].latent.tobytes() for answer in answers}) == 3


def test_a_picture_whose_branches_change_in_the_middle_of_a_stage_changes_its_company(tmp_path: Path) -> None:
    """Skip-layer guidance: a third branch during a window of the steps."""
    gates = (Port("gates", "float32", ("branches", 3)), Gates(skipped=(1,)))

    def gated(given: Ask) -> Array:
        return (0.5 + 0.1 * given.extra["gates"].sum()) * np.tanh(given.u)

    graphs = networks(gated, extra=[gates])
    bundle = fake_bundle(tmp_path / "toy", FakeModel(facts=FACTS, networks=graphs))
    words: dict[str, Any] = {"num_inference_steps": 8, "scaling_space": "latent", "solver": "dpm++2m"}
    skipping = {**words, "skip_layers": True}
    options = ServerOptions(batches=(1, 2, 4))
    follower = Follower()
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options, observe=follower) as server:
        tickets = [server.submit(ask(seed=1, **words)), server.submit(ask(seed=2, **skipping))]
        answers = [ticket.result(10) for ticket in tickets]
    pipeline = Pipeline(bundle, FakeBackend(graphs))
    for seed, given, answer in zip((1, 2), (words, skipping), answers, strict=True):
        expected = pipeline("a red circle", seed=seed, **given)
        assert answer.pictures[0].latent.tobytes() == expected.pictures[0].latent.tobytes()
    branches = {len(step.guidance) for stage in answers[1].request.plan.stages for step in stage.steps}
    assert branches == {2, 3}


def test_a_cancelled_preview_leaves_the_others(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        stay = server.submit(ask(previews=True, seed=1))
        leave: list[Any] = []

        def hear(event: Any) -> None:
            if isinstance(event, Preview):
                leave[0].cancel()

        server._scheduler.call(lambda: leave.append(server.submit(replace(ask(seed=2, previews=True)), hear)))
        while not leave:
            pass
        with pytest.raises(CancelledError):
            leave[0].result(10)
        assert stay.result(10).pictures
