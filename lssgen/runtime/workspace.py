"""Everything on the device that a run touches: buffers with fixed addresses, and the graphs bound to them.

A workspace belongs to one geometry: stage sizes, pictures at a time, text shapes. It is made once and serves every
run of that geometry. A stage has two latents and two histories, and its steps go from one to the other and back,
so nothing is ever copied; a graph is bound when its first call comes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lssgen.bundle import Manifest, SizeValue
from lssgen.engines.base import Backend, Binding, Buffer, Engine
from lssgen.ports import Array

Branches = tuple[str, ...]
"""Guidance branches in batch order: "negative", "positive", "skip"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldSizes:
    """What a network that is conditioned on sizes is told, in pixels; (height, width) and (top, left).

    Attributes:
        original, target: None: every stage's own size, as published.
        crop: Of the picture's upper left corner.
    """

    original: tuple[int, int] | None = None
    target: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)

    def at(self, height: int, width: int) -> Mapping[SizeValue, int]:
        """The entries of a `SizePort` at a stage of this size."""
        original, target = (size or (height, width) for size in (self.original, self.target))
        return {
            "height_px": height,
            "width_px": width,
            "original_height": original[0],
            "original_width": original[1],
            "target_height": target[0],
            "target_width": target[1],
            "crop_top": self.crop[0],
            "crop_left": self.crop[1],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What must be equal for two runs to share their buffers.

    Attributes:
        sizes: (height, width) of every stage in latent cells, smallest first.
        batch: Pictures at a time.
        text: Shape of every text conditioning port, for one picture and one branch.
        scaling_space: "resnet", "latent" or "pixel".
        told: Sizes for networks that are conditioned on them.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: int
    text: tuple[tuple[str, tuple[int, ...]], ...]
    scaling_space: str
    told: ToldSizes = ToldSizes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageBuffers:
    """Tensors of one stage. Of each pair, a step reads one and writes the other."""

    latents: tuple[Buffer, Buffer]
    histories: tuple[Buffer, Buffer]
    noise: Buffer


class Workspace:
    """Buffers and bindings of one geometry.

    Args:
        manifest: Of the bundle.
        backend: Where the buffers live.
        graph: Gives the loaded graph of a name; loads it at the first call.
        geometry: What to make room for.
    """

    def __init__(
        self, manifest: Manifest, backend: Backend, graph: Callable[[str], Engine], geometry: Geometry
    ) -> None:
        self.geometry = geometry
        self._manifest = manifest
        self._backend = backend
        self._graph = graph
        self._stages = tuple(self._stage_buffers(size) for size in geometry.sizes)
        self._bindings: dict[tuple[object, ...], Binding] = {}
        self._by_branches: dict[Branches, dict[str, Buffer]] = {}
        self.row = self._floats(7 + manifest.history)
        self.guidance = self._floats(geometry.batch)
        self.guidance_rescale = self._floats(1)
        self.mix = self._floats(2)
        self._one_latent = self._floats(1, manifest.facts.channels, *geometry.sizes[-1])
        height, width = (cells * manifest.facts.cell_px for cells in geometry.sizes[-1])
        self._one_picture = backend.empty((1, height, width, 3), np.uint8)

    def latent(self, stage: int, turn: int) -> Buffer:
        """(batch, C, h, w) latent that the stage's step number `turn` reads, and step `turn - 1` has written."""
        return self._stages[stage].latents[turn % 2]

    def noise(self, stage: int) -> Buffer:
        """(batch, C, h, w) noise of the transition into a stage, and of the steps that draw some."""
        return self._stages[stage].noise

    def forget(self, stage: int) -> None:
        """Clear the history that the stage's first step reads: its weight there is 0, but 0 * NaN is NaN."""
        history = self._stages[stage].histories[0]
        history.write(np.zeros(history.shape, history.dtype))

    def weights(self, branches: Branches) -> Buffer:
        """(branches,) guidance weights."""
        return self._guidance_buffers(branches)["guidance_weights"]

    def write_text(self, branches: Branches, text: Mapping[str, Mapping[str, Array]]) -> None:
        """Stack the text conditioning branch by branch; `text` has (batch, ...) arrays by branch and port."""
        buffers = self._guidance_buffers(branches)
        for port, _ in self.geometry.text:
            buffers[port].write(np.stack([text[_speaker(branch)][port] for branch in branches]))

    def step(self, stage: int, turn: int, branches: Branches) -> Binding:
        """The step graph, from `latent(stage, turn)` to `latent(stage, turn + 1)`."""
        return self._bound(("step", stage, turn % 2, branches), lambda: self._step_buffers(stage, turn % 2, branches))

    def transition(self, stage: int, turns: int) -> Binding:
        """From the last latent of the stage before, which took `turns` steps, to this stage's first."""
        name = f"transition_{self.geometry.scaling_space}"

        def buffers() -> dict[str, Buffer]:
            ports = {
                "latent": self.latent(stage - 1, turns),
                "noise": self.noise(stage),
                "mix": self.mix,
                "next_latent": self.latent(stage, 0),
            }
            if self.geometry.scaling_space == "pixel":
                ports["posterior_noise"] = self.posterior_noise(stage)
            return ports

        return self._bound((name, stage, turns % 2), buffers)

    def posterior_noise(self, stage: int) -> Buffer:
        """(batch, C, h, w) noise of the VAE's posterior in a transition through pixels.

        The stage's second latent holds it: nobody reads that before the first step has written it.
        """
        return self.latent(stage, 1)

    def encode(self, stage: int, picture: Array) -> Array:
        """(height, width, 3) uint8 picture of a stage's size -> (C, h, w) latent, the mean of the VAE's posterior."""
        size = self.geometry.sizes[stage]
        given = self._filled(picture[None])
        latent = self._floats(1, self._manifest.facts.channels, *size)
        nothing = self._floats(1, self._manifest.facts.channels, *size)
        self._graph("encode").bind({"picture": given, "posterior_noise": nothing, "latent": latent})()
        return latent.read()[0]

    def decode(self, latent: Array) -> Array:
        """(C, h, w) latent of the last stage -> (height, width, 3) uint8 picture."""
        self._one_latent.write(latent[None])
        self._bound(("decode",), lambda: {"latent": self._one_latent, "picture": self._one_picture})()
        return self._one_picture.read()[0]

    def _bound(self, key: tuple[object, ...], buffers: Callable[[], Mapping[str, Buffer]]) -> Binding:
        if key not in self._bindings:
            self._bindings[key] = self._graph(str(key[0])).bind(buffers())
        return self._bindings[key]

    def _step_buffers(self, stage: int, turn: int, branches: Branches) -> dict[str, Buffer]:
        """A buffer for every port of the step graph; families differ in which ports they have."""
        mine = self._stages[stage]
        offered = {
            "latent": mine.latents[turn],
            "next_latent": mine.latents[1 - turn],
            "history": mine.histories[turn],
            "next_history": mine.histories[1 - turn],
            "noise": mine.noise,
            "row": self.row,
            "guidance": self.guidance,
            "guidance_rescale": self.guidance_rescale,
            **self._guidance_buffers(branches),
            **self._size_buffers(stage, branches),
        }
        engine = self._graph("step")
        return {port.name: offered[port.name] for port in (*engine.inputs, *engine.outputs) if port.name in offered}

    def _stage_buffers(self, size: tuple[int, int]) -> _StageBuffers:
        shape = (self.geometry.batch, self._manifest.facts.channels, *size)
        history = (self._manifest.history, *shape)
        return _StageBuffers(
            latents=(self._floats(*shape), self._floats(*shape)),
            histories=(self._floats(*history), self._floats(*history)),
            noise=self._floats(*shape),
        )

    def _guidance_buffers(self, branches: Branches) -> dict[str, Buffer]:
        """Buffers that have a place for every branch; the same in all stages."""
        if branches not in self._by_branches:
            buffers = {
                port: self._floats(len(branches), self.geometry.batch, *shape) for port, shape in self.geometry.text
            }
            buffers["guidance_weights"] = self._floats(len(branches))
            skip = self._manifest.skip_layers
            if skip is not None:
                gates = np.ones((len(branches), skip.num_layers), np.float32)
                for row, branch in enumerate(branches):
                    gates[row, list(skip.layers)] = branch != "skip"
                buffers["layer_gates"] = self._filled(gates)
            self._by_branches[branches] = buffers
        return self._by_branches[branches]

    def _size_buffers(self, stage: int, branches: Branches) -> dict[str, Buffer]:
        height, width = (cells * self._manifest.facts.cell_px for cells in self.geometry.sizes[stage])
        known = self.geometry.told.at(height, width)
        shape = (len(branches), self.geometry.batch, 1)
        return {
            size.port: self._filled(np.tile(np.asarray([known[value] for value in size.values], np.float32), shape))
            for size in self._manifest.size_ports
        }

    def _floats(self, *shape: int) -> Buffer:
        return self._filled(np.zeros(shape, np.float32))

    def _filled(self, value: Array) -> Buffer:
        buffer = self._backend.empty(value.shape, value.dtype)
        buffer.write(value)
        return buffer


def stack_each(arrays: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Conditioning of several pictures, port by port, as one batch."""
    return {port: np.stack([one[port] for one in arrays]) for port in arrays[0]}


def _speaker(branch: str) -> str:
    """Whose text a branch hears: layers are left out of the positive prompt."""
    return "positive" if branch == "skip" else branch
