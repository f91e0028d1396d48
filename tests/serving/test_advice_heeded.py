"""What was measured decides for a server's requests as it does for a run alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rooms import alone, ask, bundle_of, networks

from lssgen.bundle import Bundle
from lssgen.measured import Guarantee, Measured, Ratio, place_of, write_measured
from lssgen.plan.facts import NetworkCost
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.serving.times import Call, StepTimes
from lssgen.testing import FakeBackend


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose stages take longer than one stage, on an engine that takes longer than its reference."""
    made, backend = bundle_of(tmp_path / "toy", networks()), FakeBackend(networks())
    slow = Ratio(ratio=1.3, lower=1.2, upper=1.4, pairs=12)
    known = Guarantee(width=64, height=64, staged_over_single=slow, engine_over_reference=slow, reference="plain")
    place = place_of(backend.name, backend.describe())
    write_measured(made, place, Measured(written="2026-11-26", guarantees=(known,)))
    return made


def test_a_server_uses_one_stage_where_a_run_alone_does_and_says_so(bundle: Bundle) -> None:
    with Server(bundle.folder, engine=FakeBackend(networks()), verify="never") as server:
        quote = server.quote(ask())
        assert len(quote.request.plan.stages) == 1
        assert [note for note in quote.notes if "one stage: at 64 x 64 px it was measured to be faster" in note]
        assert [note for note in quote.notes if "slower on this machine than plain" in note]
        (picture,) = server.submit(ask()).result().pictures
        with alone(server) as pipeline:
            np.testing.assert_array_equal(picture.image, pipeline("a red circle", **ask().options).images[0])


def test_who_asks_a_server_for_stages_or_for_a_draft_is_heard(bundle: Bundle) -> None:
    with Server(bundle.folder, engine=FakeBackend(networks()), verify="never") as server:
        by_stage = ask(stage_steps=(3, 3)), ask(cached_steps="ffff,fff")
        for asked in (ask(draft=True), ask(start_sigma=0.5), *by_stage):
            assert len(server.quote(asked).request.plan.stages) == 2


def test_a_server_in_haste_chooses_no_stages_where_one_stage_is_faster(bundle: Bundle) -> None:
    with Server(
        bundle.folder, engine=FakeBackend(networks()), verify="never", options=ServerOptions(least_steps=2)
    ) as server:
        times = StepTimes(NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
        times.note(Call("step", 4, 4, 1, 1), 16e-3)
        server._models.first.times = times
        asked = ImageRequest(prompt="a", options={"seed": 0, "scaling_space": "latent"})
        plain = server.quote(asked)
        assert plain.alone_seconds is not None
        quote = server.quote(replace(asked, max_latency_ms=0.7e3 * plain.alone_seconds))
        assert len(plain.request.plan.stages) == len(quote.request.plan.stages) == 1
        assert quote.request.plan.evaluations < plain.request.plan.evaluations
