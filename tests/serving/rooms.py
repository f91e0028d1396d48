"""Servers on networks without weights, and servers whose work can be followed call by call."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.errors import BackendError
from lssgen.plan.facts import ModelFacts
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.serving.api import Event, Observation
from lssgen.testing import (
    Ask,
    FakeBackend,
    FakeModel,
    Network,
    decode_network,
    encode_network,
    fake_bundle,
    step_network,
    text_network,
    transition_network,
)

SMALL = Options(num_inference_steps=4, scaling_space="latent")
"""A run of 64 px in two stages of the toy model."""


def denoise(ask: Ask) -> Array:
    """A network whose output depends on all that it is given about one picture, and on nothing of its neighbours."""
    text = ask.extra["text"][:, :, None, None]
    return 0.9 * np.tanh(0.6 * ask.u) + 0.05 * np.cos(0.01 * ask.labels) + 0.05 * text


def networks(denoiser: Callable[[Ask], Array] = denoise, **step: Any) -> dict[str, Network]:
    return {
        "text": text_network(),
        "step": step_network(denoiser, **step),
        "decode": decode_network(),
        "encode": encode_network(),
        "transition_resnet": transition_network(),
        "transition_latent": transition_network(),
        "transition_pixel": transition_network(posterior=True),
    }


def bundle_of(folder: Path, graphs: Mapping[str, Network], facts: ModelFacts = FACTS, **model: Any) -> Bundle:
    return fake_bundle(folder, FakeModel(facts=facts, networks=graphs, **model))


class Follower:
    """Does things after so many engine calls of steps, in the scheduler's thread: what happens, happens every time.

    Attributes:
        calls: Pictures in every call so far.
        then: What to do after a call, by its number.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.seen: list[Observation] = []
        self.then: dict[int, list[Callable[[], None]]] = {}

    def __call__(self, seen: Observation) -> None:
        self.seen.append(seen)
        if seen.kind == "step":
            self.calls.append(seen.rows)
            for work in self.then.pop(len(self.calls), []):
                work()

    def after(self, calls: int, work: Callable[[], None]) -> None:
        """Do something after so many more calls."""
        self.then.setdefault(len(self.calls) + calls, []).append(work)


def fake_server(folder: Path, denoiser: Callable[[Ask], Array] = denoise, **given: Any) -> Server:
    """A server on a fake model, warm; `given` goes to `Server`, but for its options, which may be words."""
    graphs = given.pop("graphs", None) or networks(denoiser)
    bundle = bundle_of(folder / "toy", graphs)
    backend = given.pop("engine", None) or FakeBackend(graphs)
    words = {name: given.pop(name) for name in list(given) if name in ServerOptions.__dataclass_fields__}
    words = {"batches": (1, 2, 4), **words}
    server = Server({"toy": bundle.folder}, engine=backend, verify="never", options=ServerOptions(**words), **given)
    assert server.wait_ready(10)
    return server


def alone(server: Server, **words: Any) -> Pipeline:
    """A pipeline on the same bundle and the same kind of networks."""
    model = server._models.first
    assert isinstance(server._backend, FakeBackend)
    return Pipeline(model.bundle, FakeBackend(server._backend.networks), **words)


def ask(prompt: str = "a red circle", **given: Any) -> ImageRequest:
    """A request for a small picture; words of a run and fields of the request alike."""
    fields = {name: given.pop(name) for name in list(given) if name in ImageRequest.__dataclass_fields__}
    return ImageRequest(prompt=prompt, options=Options(**{**SMALL, "seed": 0, **given}), **fields)


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


class FullBackend(FakeBackend):
    """A device that has room for histories of `most` bytes."""

    most = 10**9

    def empty(self, shape: Any, dtype: Any) -> Any:
        if len(shape) == 5 and int(np.prod(shape)) * np.dtype(dtype).itemsize > self.most:
            raise BackendError("no room for another buffer")
        return super().empty(shape, dtype)
