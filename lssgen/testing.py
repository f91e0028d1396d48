"""Networks as Python functions: a backend, and whole bundles, for tests that need no weights and no ONNX.

    networks = {"step": step_network(lambda ask: 0.9 * np.tanh(ask.u)), ...}
    pipeline = Pipeline(fake_bundle(folder, facts, networks), FakeBackend(networks))

`step_network` and `transition_network` compute in NumPy what `docs/bundle.md` asks of the exported graphs, so they
are also that page's reference.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lssgen.bundle import MANIFEST, Bundle, Graph, Manifest, SizePort, SkipLayers, Source, Tokens, manifest_json
from lssgen.engines.base import Binding, Buffer, check_buffers
from lssgen.errors import EngineError, ShapeError
from lssgen.plan.facts import ModelFacts
from lssgen.ports import Array, Port

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""Arrays by input port -> arrays by output port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Python function with ports."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    run: Function


class FakeBuffer:
    """A NumPy array in the place of device memory."""

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        self.array = np.full(shape, 113, dtype)  # contents are undefined; zeros would hide a mistake

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def write(self, value: Array) -> None:
        if value.shape != self.shape:
            raise ShapeError(f"a buffer of shape {self.shape} was given an array of shape {value.shape}")
        self.array[...] = value

    def read(self) -> Array:
        return self.array.copy()


class FakeEngine:
    """A `Network` behind the `Engine` protocol."""

    def __init__(self, name: str, network: Network, calls: list[str]) -> None:
        self._name = name
        self._network = network
        self._calls = calls
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._network.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._network.outputs

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        check_buffers(self._name, (*self.inputs, *self.outputs), buffers)
        tied = {name: buffer for name, buffer in buffers.items() if isinstance(buffer, FakeBuffer)}
        if len(tied) < len(buffers):
            raise ShapeError(f"{self._name} was given buffers of another backend")

        def run() -> None:
            if self._closed:
                raise EngineError(f"{self._name} was closed")
            self._calls.append(self._name.rpartition("/")[2])
            given = {port.name: tied[port.name].array for port in self.inputs}
            for array in given.values():
                array.flags.writeable = False
            try:
                results = self._network.run(given)
            finally:
                for array in given.values():
                    array.flags.writeable = True
            for port in self.outputs:
                tied[port.name].write(np.asarray(results[port.name], port.dtype))

        return run

    def close(self) -> None:
        self._closed = True


class FakeBackend:
    """Runs Python functions; `load` looks them up by the name of the graph.

    Attributes:
        calls: Names of the graphs that ran, in order.
        buffers: How many buffers were made.
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._networks = networks
        self.calls: list[str] = []
        self.buffers = 0

    @property
    def name(self) -> str:
        return "fake"

    def load(self, graph: Path, *, name: str) -> FakeEngine:
        return FakeEngine(name, self._networks[graph.stem], self.calls)

    def empty(self, shape: Sequence[int], dtype: Any) -> FakeBuffer:
        self.buffers += 1
        return FakeBuffer(shape, dtype)

    def describe(self) -> Mapping[str, object]:
        return {"backend": self.name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a denoiser sees of one guidance branch.

    Attributes:
        u: (batch, C, height, width) scaled latent.
        label: The timestep.
        extra: The step's other inputs for this branch, (batch, ...) by port.
    """

    u: Array
    label: float
    extra: Mapping[str, Array]


Denoiser = Callable[[Ask], Array]


def step_network(
    denoiser: Denoiser,
    *,
    channels: int = 4,
    history: int = 3,
    text: Mapping[str, tuple[int | str, ...]] = {"text": (1,)},
    sizes: Sequence[SizePort] = (),
    layers: int = 0,
) -> Network:
    """The step graph around a denoiser.

    Args:
        denoiser: The network; called once a branch.
        channels: Latent channels.
        history: Estimates carried from step to step.
        text: Shape of the text conditioning for one picture, by port.
        sizes: Size ports.
        layers: Number of layer gates; 0 for none. They reach the denoiser as `extra["layer_gates"]`, (layers,).
    """
    latent = ("batch", channels, "height", "width")
    floats = {
        "latent": latent,
        "history": (history, *latent),
        "noise": latent,
        "row": (7 + history,),
        "guidance_weights": ("branches",),
        **({"layer_gates": ("branches", layers)} if layers else {}),
        **{size.port: ("branches", "batch", len(size.values)) for size in sizes},
        **{port: ("branches", "batch", *shape) for port, shape in text.items()},
    }
    branched = [*text, *(size.port for size in sizes), *(["layer_gates"] if layers else [])]

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        x = given["latent"]
        label, c_in, h_x, h_f, keep, noise, *blend = given["row"]
        f = np.zeros_like(x)
        for branch, weight in enumerate(given["guidance_weights"]):
            extra = {port: given[port][branch] for port in branched}
            f = f + weight * denoiser(Ask(u=c_in * x, label=float(label), extra=extra))
        estimates = np.concatenate([(h_x * x + h_f * f)[None], given["history"]])
        moved = keep * x + np.tensordot(np.asarray(blend), estimates, 1) + noise * given["noise"]
        return {"next_latent": moved, "next_history": estimates[:-1]}

    return Network(
        inputs=tuple(Port(name, "float32", shape) for name, shape in floats.items()),
        outputs=(Port("next_latent", "float32", latent), Port("next_history", "float32", (history, *latent))),
        run=run,
    )


def transition_network(*, channels: int = 4, posterior: bool = False) -> Network:
    """The transition graph around bicubic interpolation; with `posterior`, the port that pixel transitions have."""
    before, after = ("batch", channels, "height", "width"), ("batch", channels, "next_height", "next_width")
    shapes = {"latent": before, "noise": after, "mix": (2,), **({"posterior_noise": after} if posterior else {})}

    def run(given: Mapping[str, Array]) -> Mapping[str, Array]:
        image, noise = given["mix"]
        up = bicubic_double(given["latent"]) + 0.01 * given.get("posterior_noise", np.float32(0))
        return {"next_latent": image * up + noise * given["noise"]}

    return Network(
        inputs=tuple(Port(name, "float32", shape) for name, shape in shapes.items()),
        outputs=(Port("next_latent", "float32", after),),
        run=run,
    )


def bicubic_double(x: Array) -> Array:
    """(..., h, w) -> (..., 2 h, 2 w) as torch's bicubic interpolation with align_corners=False."""
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
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeModel:
    """What a fake bundle is made from; `networks` has the graphs that a run needs.

    Attributes:
        facts: What the plan knows.
        networks: By name of the graph; see docs/bundle.md.
        words: Vocabulary of the word-level tokenizer; unknown words are 1, and 0 fills up.
        length: Tokens of a prompt.
        history: As `step_network` has it.
        size_ports, skip_layers, empty_negative: As in `Manifest`.
    """

    facts: ModelFacts
    networks: Mapping[str, Network]
    words: Sequence[str] = ("a", "red", "blue", "circle", "square")
    length: int = 8
    history: int = 3
    size_ports: tuple[SizePort, ...] = ()
    skip_layers: SkipLayers | None = None
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
        )
    (folder / "tokenizer.json").write_bytes(_tokenizer_json(model.words))
    manifest = Manifest(
        lssgen="test",
        family="fake",
        facts=model.facts,
        source=Source(model="fake"),
        resolutions=model.resolutions,
        history=model.history,
        graphs=graphs,
        tokenizers=(Tokens(port="ids", file="tokenizer.json", length=model.length, pad_id=0),),
        size_ports=model.size_ports,
        skip_layers=model.skip_layers,
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
