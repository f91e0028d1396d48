"""Every picture of a batch has its own row: the ground of continuous batching, on real exported graphs."""

from collections.abc import Mapping

import numpy as np
import pytest

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Engine
from lssgen.engines.demand import Demand
from lssgen.engines.registry import open_backend
from lssgen.manifest import GuidanceRescale, GuidanceScale, State, Text
from lssgen.plan import PlanOptions, make_plan
from lssgen.ports import Array

STAGES = (
    {"num_inference_steps": 4, "start_sigma": 0.75, "guidance_scale": 7.0},
    {"num_inference_steps": 9, "start_sigma": 0.5, "guidance_scale": 2.5},
    {"num_inference_steps": 6, "start_sigma": 0.9, "guidance_scale": 4.0, "solver": "dpm++2m"},
    {"num_inference_steps": 30, "start_sigma": 0.3, "guidance_scale": 1.5},
)
"""Of four pictures: other numbers of steps, other noise levels, another solver, other guidance."""

TURNS = (0, 3, 2, 5)
"""Where in its last stage each picture is."""


@pytest.fixture(params=["sd3_bundle", "demo"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """A tiny SD3 with random weights, and the demo model, which paints."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[1, 2])
def backend(request: pytest.FixtureRequest) -> Backend:
    return open_backend("onnxruntime", threads=request.param)


def test_a_batch_of_pictures_at_unlike_steps_equals_each_picture_alone_bit_for_bit(
    bundle: Bundle, backend: Backend
) -> None:
    step = backend.open(bundle, Demand(graphs=("step",)))["step"]
    batch = feed_of(bundle, step)
    together = run(backend, step, batch)
    for index in range(len(STAGES)):
        alone = run(backend, step, {name: picture(bundle, name, value, index) for name, value in batch.items()})
        for name, value in alone.items():
            assert np.array_equal(np.take(together[name], [index], batch_axis(bundle, name)), value), name


def feed_of(bundle: Bundle, step: Engine) -> dict[str, Array]:
    """Four pictures in the middle of four runs."""
    rng = np.random.default_rng(1)
    manifest = bundle.manifest
    height, width = (side // manifest.facts.cell_px for side in manifest.resolutions[-1])
    rows, weights = zip(*(numbers(bundle, stage, turn) for stage, turn in zip(STAGES, TURNS, strict=True)), strict=True)
    sizes = {"batch": len(STAGES), "branches": 2, "height": height, "width": width, **manifest.token_axes}
    feed: dict[str, Array] = {}
    for port in step.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in port.shape]
        feed[port.name] = rng.standard_normal(shape).astype(port.dtype)
    feed["row"], feed["guidance_weights"] = np.stack(rows), np.stack(weights, 1)
    if "layer_gates" in feed:
        feed["layer_gates"] = np.ones_like(feed["layer_gates"])
    return feed


def numbers(bundle: Bundle, choices: Mapping[str, object], turn: int) -> tuple[Array, Array]:
    facts = bundle.manifest.facts
    given = {"min_resolution": bundle.manifest.resolutions[0][0], "scaling_space": "latent", **choices}
    options = PlanOptions.from_defaults(facts.defaults, **given)
    step = make_plan(facts, options).stages[-1].steps[turn % 2]
    return step.row(bundle.manifest.history), np.asarray([weight for _, weight in step.guidance], np.float32)


def batch_axis(bundle: Bundle, name: str) -> int:
    graph = bundle.manifest.graphs["step"]
    (shape,) = (port.shape for port in (*graph.inputs, *graph.outputs) if port.name == name)
    return shape.index("batch") if "batch" in shape else -1


def picture(bundle: Bundle, name: str, value: Array, index: int) -> Array:
    axis = batch_axis(bundle, name)
    return value if axis < 0 else np.take(value, [index], axis)


def run(backend: Backend, step: Engine, feed: Mapping[str, Array]) -> dict[str, Array]:
    buffers = {name: backend.empty(value.shape, value.dtype) for name, value in feed.items()}
    for name, value in feed.items():
        buffers[name].write(value)
    outputs = {"next_latent": feed["latent"].shape, "next_history": feed["history"].shape}
    buffers |= {name: backend.empty(shape, np.float32) for name, shape in outputs.items()}
    step.bind(buffers)()
    return {name: buffers[name].read() for name in outputs}


def test_every_input_of_an_exported_step_says_where_its_value_comes_from(sd3_bundle: Bundle) -> None:
    step = sd3_bundle.manifest.graphs["step"]
    assert set(step.feeds) == {port.name for port in step.inputs}
    assert {feed.output for feed in sd3_bundle.manifest.feeds(State) if isinstance(feed, State)} == {
        port.name for port in step.outputs
    }
    text = {port.name for port in sd3_bundle.manifest.graphs["text"].outputs}
    assert {feed.output for feed in sd3_bundle.manifest.feeds(Text) if isinstance(feed, Text)} == text
    assert not sd3_bundle.manifest.feeds(GuidanceScale)
    assert not sd3_bundle.manifest.feeds(GuidanceRescale)
