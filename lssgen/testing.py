"""Networks as Python functions: a backend, and whole bundles, for tests that need no weights and no ONNX.

    networks = {"step": step_network(lambda ask: 0.9 * np.tanh(ask.u)), ...}
    pipeline = Pipeline(fake_bundle(folder, facts, networks), FakeBackend(networks))

`step_network` and `transition_network` compute in NumPy what `docs/bundle.md` asks of the exported graphs, so they
are also that page's reference.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from lssgen.bundle import MANIFEST, Bundle, manifest_json
from lssgen.engines.base import Binding, Buffer, GraphEngine, HostBuffer, HostMark, Mark, check_buffers, see_graph
from lssgen.engines.demand import Demand
from lssgen.errors import EngineError, ShapeError
from lssgen.manifest import (
    Feed,
    Graph,
    GuidanceWeights,
    Latent,
    Manifest,
    Mix,
    Noise,
    Quantity,
    Row,
    Runs,
    Source,
    State,
    Text,
    Tokens,
)
from lssgen.plan.cosines import lowering
from lssgen.plan.facts import ModelFacts
from lssgen.plan.transitions import TRANSITIONS
from lssgen.ports import Array, Port

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Arrays by input port -> arrays by output port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Python function with ports.

    Attributes:
        inputs, outputs: Its ports.
        run: The function.
        runs, feeds: Occasion and sources of its inputs, as in `lssgen.manifest.Graph`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    run: Function
    runs: Runs
    feeds: Mapping[str, Feed] = field(default_factory=dict[str, Feed])

    @property
    def axes(self) -> Mapping[str, Quantity]:
        """As in `lssgen.manifest.Graph`: an axis counts what it is called, and every other name counts tokens."""
        named = {axis for port in (*self.inputs, *self.outputs) for axis in port.shape if isinstance(axis, str)}
        alone = {"batch": "one"} if self.runs in ("prompt", "end", "start") else {}
        counted = {axis: axis if axis in get_args(Quantity) else "tokens" for axis in sorted(named)}
        return {axis: cast(Quantity, alone.get(axis, what)) for axis, what in counted.items()}


class FakeBuffer(HostBuffer):
    """A NumPy array in the place of device memory."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        super().__init__(np.full(shape, 113, dtype))  # contents are undefined; zeros would hide a mistake


class FakeEngine(GraphEngine):
    """A `Network` behind the `Engine` protocol."""

    def __init__(self, name: str, network: Network, calls: list[str]) -> None:
        super().__init__(name, network)
        self._network = network
        self._calls = calls
        self.closed = False

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        check_buffers(self._name, (*self.inputs, *self.outputs), buffers)
        tied = {name: buffer for name, buffer in buffers.items() if isinstance(buffer, FakeBuffer)}
        if len(tied) < len(buffers):
            raise ShapeError(f"{self._name} was given buffers of another backend")

        def run() -> None:
            if self.closed:
                raise EngineError(f"{self._name} was closed")
            self._calls.append(self._name.rpartition("/")[2])
            given = {port.name: tied[port.name].array for port in self.inputs}
            for array in given.values():
                # A graph never writes into its inputs; a function that does so by mistake fails here.
                array.flags.writeable = False
            try:
                results = self._network.run(given)
            finally:
                for array in given.values():
                    array.flags.writeable = True
            for port in self.outputs:
                tied[port.name].write(np.asarray(results[port.name], port.dtype))

        return run


class FakeEngines:
    """The networks of a bundle behind the `Engines` protocol.

    Attributes:
        demands: Demands, in the order in which they came.
    """

    def __init__(self, backend: "FakeBackend", bundle: Bundle, demand: Demand) -> None:
        self._backend = backend
        self._bundle = bundle
        self._loaded: dict[str, FakeEngine] = {}
        self.demands: list[Demand] = []
        self.require(demand)

    def __getitem__(self, graph: str) -> FakeEngine:
        return self._loaded[graph]

    def require(self, demand: Demand) -> None:
        self.demands.append(demand)
        for graph in demand.graphs or self._bundle.manifest.graphs:
            see_graph(self._bundle, graph)
            if graph not in self._loaded:
                name = f"{self._bundle.manifest.facts.name}/{graph}"
                self._loaded[graph] = self._backend.engine(name, self._backend.networks[graph])

    def close(self) -> None:
        for engine in self._loaded.values():
            engine.closed = True
        self._loaded.clear()


class FakeBackend:
    """Runs Python functions; `open` looks them up by the names of the bundle's graphs.

    Attributes:
        networks: Networks by name of the graph.
        calls: Names of the graphs that ran, in order.
        buffers: Number of buffers that were made.
        opened: Every bundle that was opened.
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self.networks = networks
        self.calls: list[str] = []
        self.buffers = 0
        self.opened: list[FakeEngines] = []

    @property
    def name(self) -> str:
        return "fake"

    def open(self, bundle: Bundle, demand: Demand) -> FakeEngines:
        self.opened.append(FakeEngines(self, bundle, demand))
        return self.opened[-1]

    def engine(self, name: str, network: Network) -> FakeEngine:
        """The engine of a network; a subclass may give another one."""
        return FakeEngine(name, network, self.calls)

    def empty(self, shape: Sequence[int], dtype: Any) -> FakeBuffer:
        self.buffers += 1
        return FakeBuffer(shape, dtype)

    def mark(self) -> Mark:
        return HostMark()

    def free_bytes(self) -> int | None:
        return None

    def describe(self) -> Mapping[str, object]:
        return {"backend": self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a denoiser sees of one guidance branch.

    Attributes:
        u: (batch, C, height, width) scaled latent.
        labels: (batch, 1, 1, 1) timestep of every picture.
        extra: The step's other inputs for this branch, (batch, ...) by port.
    """

    u: Array
    labels: Array
    extra: Mapping[str, Array]

    @property
    def label(self) -> float:
        """Timestep of the first picture; in an ordinary run, that of all."""
        return float(self.labels.flat[0])


Denoiser = Callable[[Ask], Array]


def step_network(
    denoiser: Denoiser,
    *,
    channels: int = 4,
    history: int = 3,
    text: Mapping[str, tuple[int | str, ...]] = {"text": (1,)},
    extra: Sequence[tuple[Port, Feed]] = (),
    columns: int = 0,
) -> Network:
    """The step graph around a denoiser.

    Args:
        denoiser: The network; called once a branch.
        channels: Number of latent channels.
        history: Estimates carried from step to step.
        text: Shape of the text conditioning for one picture, by port.
        extra: Further inputs, and where their values come from. Where the first axis is "branches", the denoiser gets
            its branch's part as `extra[name]`, else the whole.
        columns: Number of columns of the row after those of the history, a ControlNet's; the denoiser gets them as
            `extra["told"]`, (batch, columns).
    """
    latent = ("batch", channels, "height", "width")
    state = Port("history", "float32", (history, *latent))
    fed: list[tuple[Port, Feed]] = [
        (Port("latent", "float32", latent), State(output="next_latent", start="latent")),
        (state, State(output="next_history")),
        (Port("noise", "float32", latent), Noise()),
        (Port("row", "float32", ("batch", 7 + history + columns)), Row()),
        (Port("guidance_weights", "float32", ("branches", "batch")), GuidanceWeights()),
        *((Port(name, "float32", ("branches", "batch", *shape)), Text(output=name)) for name, shape in text.items()),
        *extra,
    ]
    # Behind the five that every step has.
    further = [port for port, _ in fed[5:]]

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        x = given["latent"]
        numbers = given["row"].T[:, :, None, None, None]
        labels, c_in, h_x, h_f, keep, noise = numbers[:6]
        f = np.zeros_like(x)
        for branch, weight in enumerate(given["guidance_weights"]):
            seen = {p.name: given[p.name][branch] if p.shape[0] == "branches" else given[p.name] for p in further}
            seen["told"] = given["row"][:, 7 + history :]
            f = f + weight[:, None, None, None] * denoiser(Ask(u=c_in * x, labels=labels, extra=seen))
        estimates = np.concatenate([(h_x * x + h_f * f)[None], given["history"]])
        moved = keep * x + (numbers[6 : 7 + history] * estimates).sum(0) + noise * given["noise"]
        return {"next_latent": moved, "next_history": estimates[:-1]}

    return Network(
        inputs=tuple(port for port, _ in fed),
        outputs=(Port("next_latent", "float32", latent), Port("next_history", "float32", state.shape)),
        run=run,
        runs="stage",
        feeds={port.name: feed for port, feed in fed},
    )


def transition_network(*, channels: int = 4, posterior: bool = False) -> Network:
    """The transition graph around bicubic interpolation; with `posterior`, the port that pixel transitions have."""
    before, after = ("batch", channels, "height", "width"), ("batch", channels, "next_height", "next_width")
    fed: dict[str, tuple[tuple[int | str, ...], Feed]] = {
        "latent": (before, Latent()),
        "noise": (after, Noise()),
        "mix": (("batch", 2), Mix()),
        **({"posterior_noise": (after, Noise(of="posterior"))} if posterior else {}),
    }

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        image, noise = given["mix"].T[:, :, None, None, None]
        # A little of it, so that a test sees whether the posterior's noise was drawn, and in which order.
        up = bicubic_double(given["latent"]) + 0.01 * given.get("posterior_noise", np.float32(0))
        return {"next_latent": image * up + noise * given["noise"]}

    return Network(
        inputs=tuple(Port(name, "float32", shape) for name, (shape, _) in fed.items()),
        outputs=(Port("next_latent", "float32", after),),
        run=run,
        runs="transition",
        feeds={name: feed for name, (_, feed) in fed.items()},
    )


def keeping_network(*, channels: int = 4) -> Network:
    """The transition graph that keeps a noisy state: its cosine transform within a larger one."""
    before, after = ("batch", channels, "height", "width"), ("batch", channels, "next_height", "next_width")
    values = TRANSITIONS["dct"].mixes

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        state, noise = given["latent"], given["noise"]
        gain, amount, low_amount = given["mix"].T[:, :, None, None, None]
        rows, columns = (lowering(small, 2 * small) for small in state.shape[2:])
        low = gain * state + (low_amount - amount) * (rows @ noise @ columns.T)
        return {"next_latent": (rows.T @ low @ columns + amount * noise).astype(np.float32)}

    return Network(
        inputs=(
            Port("latent", "float32", before),
            Port("noise", "float32", after),
            Port("mix", "float32", ("batch", len(values))),
        ),
        outputs=(Port("next_latent", "float32", after),),
        run=run,
        runs="transition",
        feeds={"latent": Latent(), "noise": Noise(), "mix": Mix(values=values)},
    )


def bicubic_double(x: Array) -> Array:
    """(..., h, w) -> (..., 2 h, 2 w) as torch's bicubic interpolation with align_corners=False."""
    # Keys' cubic with a = -0.75, torch's, at distances 1.75, 0.75, 0.25 and 1.25: doubling always falls a quarter off.
    taps = np.asarray((-0.03515625, 0.26171875, 0.87890625, -0.10546875), np.float32)
    for axis in (-2, -1):
        size = x.shape[axis]
        even, odd = (
            sum(
                weight * np.take(x, np.clip(np.arange(size) + first + k, 0, size - 1), axis)
                for k, weight in enumerate(weights)
            )
            for first, weights in ((-2, taps), (-1, taps[::-1]))
        )
        doubled = np.stack([np.asarray(even), np.asarray(odd)], axis=-1 if axis == -1 else -2)
        x = doubled.reshape(*(2 * n if i == x.ndim + axis else n for i, n in enumerate(x.shape)))
    return x


def text_network(
    encode: Callable[[Array], Array] = lambda ids: ids.astype(np.float32).mean(1, keepdims=True),
) -> Network:
    """A text graph from ids (batch, tokens) to "text" (batch, 1)."""
    return Network(
        inputs=(Port("ids", "int64", ("batch", "tokens")),),
        outputs=(Port("text", "float32", ("batch", 1)),),
        run=lambda given: {"text": encode(given["ids"])},
        runs="prompt",
    )


def decode_network(*, channels: int = 4, cell_px: int = 8) -> Network:
    """A decoder that paints every cell in one colour."""

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        rgb = np.clip(given["latent"][:, :3] * 64 + 128, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return {"picture": rgb.repeat(cell_px, 1).repeat(cell_px, 2)}

    return Network(
        inputs=(Port("latent", "float32", ("batch", channels, "height", "width")),),
        outputs=(Port("picture", "uint8", ("batch", "picture_height", "picture_width", 3)),),
        run=run,
        runs="end",
    )


def encode_network(*, channels: int = 4, cell_px: int = 8) -> Network:
    """The encoder that belongs to `decode_network`."""

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        batch, height, width, _ = given["picture"].shape
        cells = given["picture"].reshape(batch, height // cell_px, cell_px, width // cell_px, cell_px, 3)
        rgb = (cells.mean((2, 4)).transpose(0, 3, 1, 2) - 128) / 64
        mean = np.concatenate([rgb, np.zeros((batch, channels - 3, *rgb.shape[2:]))], axis=1)
        return {"latent": mean + 0.01 * given["posterior_noise"]}

    return Network(
        inputs=(
            Port("picture", "uint8", ("batch", "picture_height", "picture_width", 3)),
            Port("posterior_noise", "float32", ("batch", channels, "height", "width")),
        ),
        outputs=(Port("latent", "float32", ("batch", channels, "height", "width")),),
        run=run,
        runs="start",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """What a fake bundle is made from; `networks` has the graphs that a run needs.

    Attributes:
        facts: Model as the plan sees it.
        networks: Networks by name of the graph; see docs/bundle.md.
        words: Vocabulary of the word-level tokenizer; unknown words are 1, and 0 fills up.
        length: Tokens of a prompt.
        history: Number of estimates that `step_network` carries.
        empty_negative, resolutions: Fields of `Manifest`.
    """

    facts: ModelFacts
    networks: Mapping[str, Network]
    words: Sequence[str] = ("a", "red", "blue", "circle", "square")
    length: int = 8
    history: int = 3
    empty_negative: Any = "encode"
    resolutions: tuple[tuple[int, int], ...] = field(default=())


def fake_bundle(folder: Path, model: FakeModel) -> Bundle:
    """Write a bundle whose graphs are empty files; a `FakeBackend` with the same networks runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    graphs: dict[str, Graph] = {}
    for name, network in model.networks.items():
        (folder / f"{name}.onnx").write_bytes(b"")
        graphs[name] = Graph(
            file=f"{name}.onnx",
            sha256={},
            key=name,
            precision="fp32",
            inputs=network.inputs,
            outputs=network.outputs,
            runs=network.runs,
            axes=network.axes,
            feeds=network.feeds,
        )
    tokenizer = _tokenizer_json(model.words)
    (folder / "tokenizer.json").write_bytes(tokenizer)
    rules = Tokens(
        port="ids", file="tokenizer.json", sha256=sha256(tokenizer).hexdigest(), length=model.length, pad_id=0
    )
    manifest = Manifest(
        lssgen="test",
        family="fake",
        facts=model.facts,
        source=Source(model="fake"),
        resolutions=model.resolutions,
        history=model.history,
        graphs=graphs,
        tokenizers=(rules,),
        empty_negative=model.empty_negative,
    )
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(folder, manifest)


def _tokenizer_json(words: Sequence[str]) -> bytes:
    vocabulary = {word: number for number, word in enumerate(("[PAD]", "[UNK]", *words))}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    return json.dumps(tokenizer).encode()
