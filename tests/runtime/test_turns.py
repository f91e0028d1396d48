"""A pipeline lives long and is shared: threads, alternating sizes, devices that lag behind, callers that call back."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import denoise, fake_pipeline
from PIL import Image

from lssgen.engines.base import Buffer
from lssgen.errors import BackendError, EngineError, PromptError
from lssgen.manifest import Feed, Picture, State
from lssgen.ports import Array, Port
from lssgen.runtime import Options, Pipeline, Preview, Progress
from lssgen.testing import Ask, FakeBackend, FakeBuffer, FakeEngine, Network, step_network

LATENT = Options(scaling_space="latent")


class LateDevice:
    """A device that does what is asked of it only when somebody waits for it."""

    def __init__(self) -> None:
        self.queue: list[Any] = []
        self.done = 0

    def run(self, until: int | None = None) -> None:
        while self.queue and (until is None or self.done < until):
            self.queue.pop(0)()
            self.done += 1


class LateMark:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self.at = device.done + len(device.queue)

    def reached(self) -> bool:
        return self._device.done >= self.at

    def wait(self) -> None:
        self._device.run(self.at)

    def seconds_since(self, earlier: "LateMark") -> float:
        return float(self.at - earlier.at)


class LateBuffer(FakeBuffer):
    def __init__(self, device: LateDevice, shape: Sequence[int], dtype: Any) -> None:
        super().__init__(shape, dtype)
        self._device = device

    def write(self, value: Array) -> None:
        copy = np.array(value)
        self._device.queue.append(lambda: super(LateBuffer, self).write(copy))

    def read(self) -> Array:
        self._device.run()
        return super().read()


class LateEngine(FakeEngine):
    def __init__(self, device: LateDevice, name: str, network: Network, calls: list[str]) -> None:
        super().__init__(name, network, calls)
        self._device = device

    def bind(self, buffers: Any) -> Any:
        run = super().bind(buffers)
        outputs = [buffers[port.name] for port in self.outputs]

        def work() -> None:
            for buffer in outputs:
                buffer.write = lambda value, b=buffer: FakeBuffer.write(b, value)  # the device writes at once
            try:
                run()
            finally:
                for buffer in outputs:
                    del buffer.write

        return lambda: self._device.queue.append(work)


class LateBackend(FakeBackend):
    """Runs ahead of nothing: everything is queued, as on a GPU."""

    def __init__(self, networks: Any) -> None:
        super().__init__(networks)
        self.device = LateDevice()

    def engine(self, name: str, network: Network) -> FakeEngine:
        return LateEngine(self.device, name, network, self.calls)

    def empty(self, shape: Sequence[int], dtype: Any) -> LateBuffer:
        return LateBuffer(self.device, shape, dtype)

    def mark(self) -> Any:
        return LateMark(self.device)


def late_pipeline(folder: Path) -> Pipeline:
    plain = fake_pipeline(folder)
    assert isinstance(plain.backend, FakeBackend)
    return Pipeline(plain.bundle, LateBackend(plain.backend.networks))


def test_threads_that_share_a_pipeline_get_their_own_pictures(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    prompts = ["a red circle", "a blue square", "a", "red"]
    alone = [pipeline(prompt, seed=seed, **LATENT).latents for seed, prompt in enumerate(prompts)]
    came: list[Array | None] = [None] * 40

    def paint(number: int) -> None:
        came[number] = pipeline(prompts[number % 4], seed=number % 4, **LATENT).latents

    threads = [
        threading.Thread(target=lambda first=first: [paint(n) for n in range(first, 40, 4)]) for first in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(latents, alone[number % 4]) for number, latents in enumerate(came))


@pytest.mark.parametrize("call", [lambda p: p("a", **LATENT), lambda p: p.close(), lambda p: p.prepare(**LATENT)])
def test_a_call_from_inside_a_run_is_refused_and_the_run_goes_on(tmp_path: Path, call: Any) -> None:
    pipeline = fake_pipeline(tmp_path)
    alone = pipeline("a", **LATENT).latents
    heard: list[str] = []

    def again(_: Progress) -> None:
        with pytest.raises(EngineError, match="in the middle of a run") as refusal:
            call(pipeline)
        heard.append(str(refusal.value))

    assert np.array_equal(pipeline("a", on_step=again, **LATENT).latents, alone)
    assert heard


def test_sizes_that_alternate_keep_their_buffers_and_bindings(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    backend = pipeline.backend
    assert isinstance(backend, FakeBackend)
    for _ in range(2):
        for height in (64, 96):
            pipeline("a", height=height, **LATENT)
        made = backend.buffers
    for height in (64, 96, 64, 96):
        pipeline("a", height=height, **LATENT)
    assert backend.buffers == made


def test_buffers_of_other_sizes_go_when_they_are_too_many(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    pipeline._workspaces._most = 0
    first = pipeline("a", **LATENT).latents
    for width in (64, 96, 128):
        pipeline("a", width=width, **LATENT)
        assert len(pipeline._workspaces) == 1
    assert np.array_equal(pipeline("a", **LATENT).latents, first)


def test_the_least_recently_used_size_goes_first(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    pipeline("a", width=64, **LATENT)
    pipeline("a", width=96, **LATENT)
    pipeline("a", width=64, **LATENT)
    pipeline._workspaces._most = pipeline._workspaces.bytes - 1
    pipeline._workspaces.trim()
    assert [geometry.sizes[-1] for geometry in pipeline._workspaces._kept] == [(8, 8)]


def test_a_device_that_is_full_of_other_sizes_gets_room_and_the_run_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = fake_pipeline(tmp_path)
    expected = pipeline("a", width=96, **LATENT).latents
    pipeline.close()
    pipeline("a", **LATENT)
    empty = pipeline.backend.empty

    def full(shape: Sequence[int], dtype: Any) -> Buffer:
        if len(pipeline._workspaces) > 1:
            raise BackendError("no room for another buffer")
        return empty(shape, dtype)

    monkeypatch.setattr(pipeline.backend, "empty", full)
    seen: list[Progress] = []
    assert np.array_equal(pipeline("a", width=96, on_step=seen.append, **LATENT).latents, expected)
    assert seen[-1].done == seen[-1].total


def test_a_device_that_is_full_without_others_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = fake_pipeline(tmp_path)

    def full(*_: Any) -> Buffer:
        raise BackendError("no room for another buffer")

    monkeypatch.setattr(pipeline.backend, "empty", full)
    with pytest.raises(BackendError, match="no room"):
        pipeline("a", **LATENT)


def test_a_step_is_told_when_the_device_has_done_it(tmp_path: Path) -> None:
    pipeline = late_pipeline(tmp_path)
    backend = pipeline.backend
    assert isinstance(backend, LateBackend)
    counts: list[tuple[int, int]] = []

    def told(progress: Progress) -> None:
        counts.append((progress.done, backend.calls.count("step")))

    plan = pipeline("a", on_step=told, **LATENT).plan
    assert [done for done, _ in counts] == list(range(1, plan.evaluations + 1))
    assert all(ran >= done for done, ran in counts)


def test_the_host_is_at_most_one_step_ahead_of_the_device(tmp_path: Path) -> None:
    pipeline = late_pipeline(tmp_path)
    backend = pipeline.backend
    assert isinstance(backend, LateBackend)

    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline("a", on_step=stop, **LATENT)
    backend.device.run()
    assert backend.calls.count("step") <= 3 + 2  # one on the device, one on its way


def test_a_late_device_paints_the_same_picture(tmp_path: Path) -> None:
    late, plain = late_pipeline(tmp_path / "late"), fake_pipeline(tmp_path / "plain")
    expected = plain(["a", "red"], batch=2, **LATENT)
    came = late(["a", "red"], batch=2, **LATENT)
    assert np.array_equal(came.latents, expected.latents)
    assert [len(stage.steps) for stage in came.times[0].stages] == [len(stage.steps) for stage in came.plan.stages]


def test_every_stage_but_the_last_is_shown_at_its_own_size(tmp_path: Path) -> None:
    seen: list[Preview] = []
    pipeline = fake_pipeline(tmp_path)
    alone = pipeline(["a", "red", "blue"], batch=2, **LATENT)
    result = pipeline(["a", "red", "blue"], batch=2, on_preview=seen.append, **LATENT)
    assert np.array_equal(result.latents, alone.latents)
    assert [(p.stage, p.stages, p.first, len(p.images)) for p in seen] == [(0, 2, 0, 2), (0, 2, 2, 1)]
    assert {image.size for p in seen for image in p.images} == {(32, 32)}


def test_a_preview_is_the_picture_that_a_run_of_the_small_stage_alone_would_be(tmp_path: Path) -> None:
    seen: list[Preview] = []
    pipeline = fake_pipeline(tmp_path)
    pipeline("a", on_preview=seen.append, **LATENT)
    small = pipeline("a", height=32, width=32, **LATENT)
    assert np.array_equal(np.asarray(seen[0].images[0]), np.asarray(small.images[0]))


def test_a_pipeline_asks_one_door_for_what_its_runs_need(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    pipeline("a", start_sigma=1.0, **LATENT)
    pipeline("a", start_sigma=1.0, **LATENT)
    pipeline("a", **LATENT)
    (engines,) = pipeline.backend.opened  # type: ignore[attr-defined]
    assert [demand.graphs for demand in engines.demands] == [
        ("text", "step", "decode"),
        ("text", "step", "transition_latent", "decode"),
    ]


def test_batches_that_are_declared_are_asked_for_with_those_of_the_run(tmp_path: Path) -> None:
    plain = fake_pipeline(tmp_path)
    pipeline = Pipeline(plain.bundle, plain.backend, batches=(1, 4))
    pipeline.prepare(batch=2, num_images=2, **LATENT)
    (engines,) = pipeline.backend.opened  # type: ignore[attr-defined]
    assert engines.demands[0].batches == (1, 2, 4)
    assert pipeline.backend.calls == []  # type: ignore[attr-defined]


def test_engines_that_were_replaced_are_bound_anew(tmp_path: Path) -> None:
    pipeline = fake_pipeline(tmp_path)
    before = pipeline("a", **LATENT).latents
    (engines,) = pipeline.backend.opened  # type: ignore[attr-defined]
    for engine in engines._loaded.values():
        engine.closed = True
    engines._loaded.clear()
    pipeline._open._met.clear()
    assert np.array_equal(pipeline("a", **LATENT).latents, before)


def test_a_state_beside_the_latent_is_a_record_of_the_bundle(tmp_path: Path) -> None:
    """A residual that the step before left behind, as a cache of a network's first block would be."""
    shape = ("batch", 4, "height", "width")
    extra: tuple[Port, Feed] = (Port("residual", "float32", shape), State(output="next_residual"))
    seen: list[Array] = []

    def network(ask: Ask) -> Array:
        seen.append(ask.extra["residual"].copy())
        return denoise_without(ask)

    step = step_network(network, extra=[extra])
    run = step.run

    def with_residual(given: Any) -> Any:
        return {**run(given), "next_residual": given["residual"] + 1}

    carried = Network(
        inputs=step.inputs,
        outputs=(*step.outputs, Port("next_residual", "float32", shape)),
        run=with_residual,
        runs=step.runs,
        feeds=step.feeds,
    )
    pipeline = fake_pipeline(tmp_path, step=carried)
    plan = pipeline("a", guidance_scale=1.0, **LATENT).plan
    expected = [turn for stage in plan.stages for turn in range(len(stage.steps))]
    assert [float(residual.max()) for residual in seen] == expected
    assert {residual.shape[-1] for residual in seen} == {4, 8}


def denoise_without(ask: Ask) -> Array:
    return denoise(Ask(u=ask.u, labels=ask.labels, extra={"text": ask.extra["text"]}))


def test_a_picture_that_conditions_the_network_is_a_record_of_the_bundle(tmp_path: Path) -> None:
    places: list[tuple[Port, Feed]] = [
        (
            Port("control", "float32", ("batch", 3, "picture_height", "picture_width")),
            Picture(name="c", read_as="pixels"),
        ),
        (Port("mask", "float32", ("batch", 1, "height", "width")), Picture(name="m", read_as="mask")),
        (Port("painted", "float32", ("batch", 4, "height", "width")), Picture(name="c", read_as="latent")),
    ]
    seen: list[dict[str, Array]] = []

    def network(ask: Ask) -> Array:
        seen.append({name: value.copy() for name, value in ask.extra.items()})
        return denoise_without(ask)

    pipeline = fake_pipeline(tmp_path, step=step_network(network, extra=places))
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 32, 64))
    control = Image.new("RGB", (64, 64), (255, 0, 0))
    pipeline("a", num_images=2, batch=2, conditions={"c": control, "m": half}, **LATENT)
    assert [value["mask"].shape for value in (seen[0], seen[-1])] == [(2, 1, 4, 4), (2, 1, 8, 8)]
    assert seen[0]["mask"][1, 0].tolist() == [[1, 1, 0, 0]] * 4
    assert seen[-1]["control"].shape == (2, 3, 64, 64)
    assert (seen[-1]["control"][:, 0] == 1).all()
    assert (seen[-1]["control"][:, 1:] == -1).all()
    assert seen[0]["painted"].shape == (2, 4, 4, 4)
    assert (seen[0]["painted"][:, 0] > 0).all()


def test_pictures_that_a_network_does_not_take_or_misses_are_refused(tmp_path: Path) -> None:
    plain = fake_pipeline(tmp_path / "plain")
    with pytest.raises(PromptError, match="toy takes no pictures besides init_image; c came in conditions"):
        plain.paint("a", conditions={"c": Image.new("RGB", (8, 8))}, **LATENT)
    mask: tuple[Port, Feed] = (Port("m", "float32", ("batch", 1, "height", "width")), Picture(name="m", read_as="mask"))
    wants = fake_pipeline(tmp_path / "wants", step=step_network(denoise_without, extra=[mask]))
    with pytest.raises(PromptError, match="toy takes the pictures m; none came in conditions"):
        wants.paint("a", **LATENT)


def test_the_reference_of_a_step_gives_every_picture_its_own_row_and_guidance() -> None:
    network = step_network(lambda ask: 0.5 * ask.u + 0.001 * ask.labels + ask.extra["text"][:, :, None, None])
    rng = np.random.default_rng(0)
    batch, history = 5, 3
    given: dict[str, Array] = {
        "latent": rng.standard_normal((batch, 4, 8, 8)).astype(np.float32),
        "history": rng.standard_normal((history, batch, 4, 8, 8)).astype(np.float32),
        "noise": rng.standard_normal((batch, 4, 8, 8)).astype(np.float32),
        "row": rng.standard_normal((batch, 7 + history)).astype(np.float32),
        "guidance_weights": rng.standard_normal((2, batch)).astype(np.float32),
        "text": rng.standard_normal((2, batch, 1)).astype(np.float32),
    }
    axis = {"history": 1, "guidance_weights": 1, "text": 1}
    together = network.run(given)
    for index in range(batch):
        mine = {name: np.take(value, [index], axis.get(name, 0)) for name, value in given.items()}
        alone = network.run(mine)
        assert np.array_equal(together["next_latent"][[index]], alone["next_latent"])


def test_a_result_is_short_in_a_terminal(tmp_path: Path) -> None:
    result = fake_pipeline(tmp_path)("a red circle", num_images=2, **LATENT)
    said = repr(result)
    assert said.startswith("<Result 2 pictures, ")
    assert "64 x 64 px" in said
    assert len(said) < 120
    assert repr(result.pictures[1]) == "<Picture 64 x 64 px, seed 1: 'a red circle'>"
