"""Several models on one device: what fits is loaded, what does not waits or is refused; and what names lead to."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rooms import FullBackend, ask, bundle_of, fake_server, networks
from test_life import Gate

from lssgen.errors import BackendError, BundleError, EngineError, RefusedError
from lssgen.plan import PlanOptions
from lssgen.runtime import Pipeline
from lssgen.runtime.workspace import Geometry, Workspace
from lssgen.serving import Server, ServerOptions
from lssgen.serving.memory import lane_bytes
from lssgen.serving.plans import Plans
from lssgen.testing import FakeBackend

KB = 1000


def heavy(folder: Path, name: str, kilobytes: int = 1000) -> Path:
    """A bundle whose graphs' files take so much."""
    bundle = bundle_of(folder / name, networks())
    bundle.path("step.onnx").write_bytes(bytes(kilobytes * KB))
    return bundle.folder


def several(folder: Path, count: int, budget_kb: int, gate: Any = None, **words: Any) -> Server:
    graphs = networks(gate) if gate else networks()
    bundles = {f"m{number}": heavy(folder, f"m{number}") for number in range(count)}
    options = ServerOptions(batches=(1, 2, 4), memory_gib=budget_kb * KB / 2**30, **words)
    return Server(bundles, engine=FakeBackend(graphs), verify="never", options=options)


def loaded(server: Server) -> set[str]:
    return {model.name for model in server.models() if model.loaded}


def test_models_are_loaded_when_they_are_asked_for_and_leave_least_recently_used_first(tmp_path: Path) -> None:
    with several(tmp_path, 3, 2500) as server:
        assert server.wait_ready(10)
        assert loaded(server) == {"m0", "m1"}  # as many as there is memory for
        for name, expected in (("m1", {"m0", "m1"}), ("m0", {"m0", "m1"}), ("m2", {"m0", "m2"}), ("m1", {"m1", "m2"})):
            server.submit(ask(model=name)).result(10)
            assert loaded(server) == expected
        assert server.stats().loaded_bytes == 2000 * KB
        assert server.stats().memory_bytes == 2500 * KB


def test_a_model_that_is_painted_with_stays_and_the_other_gets_its_turn(tmp_path: Path) -> None:
    gate = Gate()
    with several(tmp_path, 2, 1500, gate) as server:
        assert server.wait_ready(10)
        gate.shut()
        first = server.submit(ask(num_inference_steps=10))
        assert gate.reached.wait(10)
        other = server.submit(ask(model="m1"))
        younger = [server.submit(ask(seed=seed)) for seed in (1, 2)]
        gate.open.set()
        assert first.result(10).pictures
        assert other.result(10).model == "m1"
        assert all(ticket.result(10).pictures for ticket in younger)
        assert loaded(server) == {"m0"}
    # The first model's younger requests wait until the other one has had the device.
    assert other.result(0).timings.submitted + other.result(0).timings.total <= min(
        ticket.result(0).timings.submitted + ticket.result(0).timings.total for ticket in younger
    )


def test_buffers_wait_for_each_other_where_they_do_not_fit_together(tmp_path: Path) -> None:
    gate = Gate()
    graphs = networks(gate)
    bundle = bundle_of(tmp_path / "toy", graphs)
    need = lane_bytes(bundle.manifest, (16, 16), 2, 1)
    options = ServerOptions(batches=(1, 2), memory_gib=1.5 * need / 2**30, sizes=((32, 32),))
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options) as server:
        assert server.wait_ready(10)
        gate.shut()
        wide = {"start_sigma": 1.0, "num_inference_steps": 6}
        tickets = [server.submit(ask(height=128, width=128, seed=seed, **wide)) for seed in range(3)]
        tickets.append(server.submit(ask(height=112, width=128, **wide)))
        assert gate.reached.wait(10)
        assert [lane.rows for lane in server.stats().lanes] == [1]
        gate.open.set()
        assert all(ticket.result(10).pictures for ticket in tickets)


def test_a_device_that_is_full_after_all_paints_fewer_at_a_time(tmp_path: Path) -> None:
    graphs = networks()
    backend = FullBackend(graphs)
    with fake_server(tmp_path, graphs=graphs, engine=backend, batches=(1, 2, 4), sizes=((32, 32),)) as server:
        alone = server.submit(ask(seed=1)).result(10)
        backend.most = 3 * 2 * 4 * 64 * 4  # histories of two pictures of 8 x 8 cells
        tickets = [server.submit(ask(seed=seed, num_inference_steps=6)) for seed in range(6)]
        assert all(ticket.result(10).pictures for ticket in tickets)
        assert server.submit(ask(seed=1)).result(10).pictures[0].latent.tobytes() == alone.pictures[0].latent.tobytes()


def test_a_device_that_cannot_hold_one_picture_says_so_to_its_caller_alone(tmp_path: Path) -> None:
    graphs = networks()
    backend = FullBackend(graphs)
    with fake_server(tmp_path, graphs=graphs, engine=backend, sizes=((32, 32),)) as server:
        backend.most = 3 * 4 * 4 * 16 * 4  # of four pictures of 4 x 4 cells, and of none of 16 x 16
        large = server.submit(ask(height=128, width=128, start_sigma=1.0))
        with pytest.raises(BackendError, match="no room"):
            large.result(10)
        assert server.submit(ask(height=32, width=32)).result(10).pictures


def test_a_model_that_cannot_be_loaded_fails_its_own_requests(tmp_path: Path) -> None:
    class Picky(FakeBackend):
        def open(self, bundle: Any, demand: Any) -> Any:
            if bundle.folder.name == "m1":
                raise BackendError("this network does not run here")
            return super().open(bundle, demand)

    bundles = {name: heavy(tmp_path, name) for name in ("m0", "m1")}
    with Server(bundles, engine=Picky(networks()), verify="never") as server:
        ticket = server.submit(ask(model="m1"))
        with pytest.raises(RefusedError, match=r"m1 cannot be made ready .* does not run here") as refusal:
            ticket.result(10)
        assert refusal.value.code == "broken_model"
        assert server.submit(ask()).result(10).pictures


def test_names_and_aliases_lead_to_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    bundles = {"sd3": heavy(tmp_path, "one"), "flux": heavy(tmp_path, "two")}
    heavy(tmp_path / "home" / "bundles", "sd3@style")
    heavy(tmp_path / "home" / "bundles", "other@style")
    with Server(bundles, aliases={"best": "flux"}, engine=FakeBackend(networks()), verify="never") as server:
        said = {asked: server.submit(ask(model=asked)).result(10).model for asked in ("", "sd3", "best", "sd3@style")}
        assert said == {"": "sd3", "sd3": "sd3", "best": "flux", "sd3@style": "sd3@style"}
        for wrong in ("other@style", "sd3@", "sd3@none", "sd3@../../one", "bset"):
            with pytest.raises(RefusedError, match="there is no model") as refusal:
                server.submit(ask(model=wrong))
            assert (refusal.value.code, refusal.value.param) == ("unknown_model", "model")
        infos = {info.name: info for info in server.models()}
    assert infos["flux"].aliases == ("best",)
    assert (infos["sd3"].multiple, infos["sd3"].height, infos["sd3"].starts, infos["sd3"].stages) == (8, 64, True, True)


def test_names_that_stand_for_two_are_refused(tmp_path: Path) -> None:
    one, two = heavy(tmp_path / "a", "same"), heavy(tmp_path / "b", "same")
    with pytest.raises(BundleError, match="two bundles are called 'same'"):
        Server([one, two], engine=FakeBackend(networks()), verify="never")
    for aliases in ({"x": "nowhere"}, {"same": "same"}):
        with pytest.raises(BundleError, match=r"alias 'x' for 'nowhere'|'same' is the name of a bundle"):
            Server([one], aliases=aliases, engine=FakeBackend(networks()), verify="never")


@given(height=st.integers(1, 12), width=st.integers(1, 12), branches=st.integers(1, 2), batch=st.integers(1, 4))
def test_memory_is_known_before_the_buffers_are_made(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, branches: int, batch: int
) -> None:
    backend = FakeBackend(networks())
    bundle = bundle_of(tmp_path_factory.mktemp("memory"), networks())
    pipeline = Pipeline(bundle, backend)
    pipeline.prepare(start_sigma=1.0)
    geometry = Geometry(sizes=((height, width),), batch=batch, text=(("text", (1,)),), scaling_space="")
    assert pipeline._open.engines is not None
    workspace = Workspace(bundle.manifest, backend, pipeline._open.engines, geometry)
    names = ("negative", "positive")[:branches]
    workspace.step(0, 0, names)
    assert lane_bytes(bundle.manifest, (height, width), branches, batch) == workspace.bytes


@pytest.mark.parametrize("hurry", [{}, {"deadline_ms": 6e5}])
def test_a_large_picture_gets_its_memory_however_many_small_ones_come(tmp_path: Path, hurry: dict[str, Any]) -> None:
    graphs = networks()
    bundle = bundle_of(tmp_path / "toy", graphs)
    room = lane_bytes(bundle.manifest, (16, 16), 2, 1)
    options = ServerOptions(batches=(1,), memory_gib=(room + 100) / 2**30, sizes=((32, 32),), patience=4)
    with Server(bundle.folder, engine=FakeBackend(graphs), verify="never", options=options) as server:
        assert server.wait_ready(10)
        ended: list[int] = []
        large: list[Any] = []

        def small(number: int) -> None:
            def hear(event: Any) -> None:
                if type(event).__name__ == "Done":
                    ended.append(number)
                    if number < 200:
                        small(number + 2)

            server.submit(ask(height=32, width=32, num_inference_steps=3, seed=number, **hurry), hear)

        def start() -> None:
            small(0)
            small(1)
            large.append(server.submit(ask(height=128, width=128, num_inference_steps=3, start_sigma=1.0)))

        server._scheduler.call(start)
        while not large:
            pass
        large[0].result(20)
        assert len(ended) < 60


def test_plans_are_made_once_and_the_oldest_are_forgotten(tmp_path: Path) -> None:
    facts = bundle_of(tmp_path / "toy", networks()).manifest.facts
    plans = Plans(history=3, most=2)
    asked = [PlanOptions.from_defaults(facts.defaults, num_inference_steps=steps) for steps in (2, 3, 4)]
    first = plans.make(facts, asked[0])
    assert plans.make(facts, asked[0]) is first
    assert plans.tables(first) is plans.tables(first)
    for options in asked[1:]:
        plans.make(facts, options)
    assert len(plans) == 2
    again = plans.make(facts, asked[0])
    assert again == first
    assert again is not first
    assert len(plans.tables(first)) == len(first.stages)  # of a plan that was forgotten, too


def test_a_server_whose_memory_holds_no_picture_says_so(tmp_path: Path) -> None:
    options = ServerOptions(batches=(1,), memory_gib=1000 / 2**30, sizes=((32, 32),))
    bundle = bundle_of(tmp_path / "toy", networks())
    with (
        Server({"toy": bundle.folder}, engine=FakeBackend(networks()), verify="never", options=options) as server,
        pytest.raises(EngineError, match=r"does not hold one picture of 32 x 32 px beside toy's weights.*memory_gib"),
    ):
        server.wait_ready(10)
