"""Servers on networks without weights, and servers whose work can be followed call by call."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.errors import BackendError, ShapeError
from lssgen.plan.facts import ModelFacts
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline
from lssgen.serving import ImageRequest, Server, ServerOptions
from lssgen.serving.api import Event
from lssgen.serving.status import Observation
from lssgen.testing import (
    Ask,
    FakeBackend,
    FakeBuffer,
    FakeEngine,
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


class LateDevice(FakeBackend):
    """Does what is asked of it only when somebody waits for it, as a GPU does it later.

    Attributes:
        waiting: What was asked for and is not done.
        done: Number of things that were done.
        most_ahead: The most steps that were asked for and not done.
    """

    def __init__(self, graphs: Mapping[str, Network]) -> None:
        super().__init__(graphs)
        self.waiting: deque[Callable[[], None]] = deque()
        self.done = 0
        self.steps = 0
        self.most_ahead = 0

    def ask(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def catch_up(self, until: int | None = None) -> None:
        while self.waiting and (until is None or self.done < until):
            self.waiting.popleft()()
            self.done += 1

    def engine(self, name: str, network: Network) -> FakeEngine:
        return LateEngine(self, name, network, self.calls)

    def empty(self, shape: Sequence[int], dtype: Any) -> FakeBuffer:
        return LateBuffer(self, shape, dtype)

    def mark(self) -> Any:
        return LateMark(self)


class LateBuffer(FakeBuffer):
    def __init__(self, device: LateDevice, shape: Sequence[int], dtype: Any) -> None:
        super().__init__(shape, dtype)
        self._device = device

    def write(self, value: Array) -> None:
        if value.shape != self.shape:
            raise ShapeError(f"{value.shape} does not fit {self.shape}")
        copy = np.array(value)
        self._device.ask(lambda: self.array.__setitem__(..., copy))

    def read(self) -> Array:
        self._device.catch_up()
        return super().read()

    def write_part(self, first: int, values: Array) -> None:
        copy = np.array(values)
        self._device.ask(lambda: FakeBuffer.write_part(self, first, copy))

    def read_part(self, first: int, count: int) -> Array:
        self._device.catch_up()
        return super().read_part(first, count)


class LateEngine(FakeEngine):
    def __init__(self, device: LateDevice, name: str, network: Network, calls: list[str]) -> None:
        super().__init__(name, network, calls)
        self._device = device

    def bind(self, buffers: Any) -> Any:
        step = self.name.endswith("/step")
        given = {port.name: buffers[port.name] for port in self.inputs}
        device = self._device

        def work() -> None:
            device.steps -= step
            made = self._network.run({name: buffer.array for name, buffer in given.items()})
            for port in self.outputs:
                buffers[port.name].array[...] = made[port.name]

        def run() -> None:
            device.steps += step
            device.most_ahead = max(device.most_ahead, device.steps)
            device.ask(work)

        return run


class LateMark:
    def __init__(self, device: LateDevice) -> None:
        self._device = device
        self.at = device.done + len(device.waiting)

    def reached(self) -> bool:
        return self._device.done >= self.at

    def wait(self) -> None:
        self._device.catch_up(self.at)

    def seconds_since(self, earlier: "LateMark") -> float:
        return 1e-3 * (self.at - earlier.at)
