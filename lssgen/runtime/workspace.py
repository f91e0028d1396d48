"""Everything on the device that a run touches: buffers with fixed addresses, and the graphs bound to them.

A workspace belongs to one geometry: stage sizes, pictures at a time, text shapes. It is made once and serves every
run of that geometry. Every input of the step gets its buffer from what the manifest says it is fed with: nothing here
knows a port by its name. A carried state has two buffers, and steps go from one to the other and back, so nothing is
ever copied; a graph is bound when its first call comes.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from types import MappingProxyType
from typing import assert_never

import numpy as np

from lssgen.engines.base import Backend, Binding, Buffer, Engine, Engines, Mark
from lssgen.engines.demand import stage_quantities
from lssgen.errors import BundleError
from lssgen.manifest import (
    Feed,
    Gates,
    Graph,
    GuidanceRescale,
    GuidanceScale,
    GuidanceWeights,
    Latent,
    LoraFactors,
    LoraWeights,
    Manifest,
    Mix,
    Noise,
    Picture,
    Precision,
    Reference,
    Row,
    Sizes,
    SizeValue,
    State,
    Text,
)
from lssgen.plan.table import Stage
from lssgen.ports import Array, Port

Lent = Mapping[type[Feed], Callable[[], Buffer]]
"""Buffers that are not a workspace's own, made when they are asked for first."""

Branches = tuple[str, ...]
"""Guidance branches in batch order: "negative", "positive", "skip"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldSizes:
    """What a network that is conditioned on sizes is told, in pixels; (height, width) and (top, left).

    Attributes:
        original, target: Sizes that are told in every stage; None: the stage's own, as published.
        crop: Corner of the crop in the original picture.
    """

    original: tuple[int, int] | None = None
    target: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)

    def at(self, height: int, width: int) -> Mapping[SizeValue, int]:
        """The values that a feed of `Sizes` may name, at a stage of this size."""
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
        batch: Number of pictures at a time.
        text: Shape of every output of the text graph, for one picture and one branch.
        scaling_space: Name of the transition.
        told: Sizes for networks that are conditioned on them.
        references: Number of tokens of reference pictures.
        apart: Words that keep runs apart that go on at the same time; () where runs take turns.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: int
    text: tuple[tuple[str, tuple[int, ...]], ...]
    scaling_space: str
    told: ToldSizes = ToldSizes()
    references: int = 0
    apart: tuple[str, ...] = ()


class Workspace:
    """Buffers and bindings of one geometry.

    Args:
        manifest: Manifest of the bundle.
        backend: Place where the buffers live.
        engines: Engines of the bundle.
        geometry: What to make room for.
        lent: Buffers that several workspaces share, by the kind of feed that they are for.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        engines: Engines,
        geometry: Geometry,
        lent: Lent = MappingProxyType({}),
    ) -> None:
        self.geometry = geometry
        self._lent = lent
        self._manifest = manifest
        self._backend = backend
        self._engines = engines
        self._step = manifest.graphs["step"]
        self._transition = manifest.graphs.get(f"transition_{geometry.scaling_space}")
        self._tokens = _token_sizes(self._step, dict(geometry.text)) | _reference_axes(self._step, geometry.references)
        self._buffers: dict[Hashable, Buffer] = {}
        self._bindings: dict[Hashable, tuple[Engine, Binding]] = {}
        (self._latent,) = (port for port in self._step.inputs if _carries_latent(self._step.feeds.get(port.name)))

    @property
    def bytes(self) -> int:
        """Memory of the buffers."""
        return sum(prod(buffer.shape) * buffer.dtype.itemsize for buffer in self._buffers.values())

    @property
    def picture_feeds(self) -> tuple[Picture, ...]:
        """Pictures that the step takes as inputs, each once."""
        return tuple(dict.fromkeys(feed for feed in self._step.feeds.values() if isinstance(feed, Picture)))

    @property
    def inpaints(self) -> bool:
        """Whether the step is told what of a picture stays."""
        return any(feed.read_as == "kept" for feed in self.picture_feeds)

    @property
    def precision(self) -> Precision:
        """What the step computes in."""
        return self._step.precision

    def mark(self) -> Mark:
        """A mark behind all work so far."""
        return self._backend.mark()

    def latent(self, stage: int, turn: int) -> Buffer:
        """(batch, C, h, w) latent that the stage's step number `turn` reads, and step `turn - 1` has written."""
        return self._state(self._latent, stage, turn % 2, ())

    def noise(self, stage: int, of: str = "latent") -> Buffer:
        """(batch, C, h, w) noise of the transition into a stage and of its steps, or of a VAE's posterior."""
        return self._made(("noise", of, stage), self._latent, stage, ())

    @property
    def draws_posterior(self) -> bool:
        """Whether a transition draws from a VAE's posterior."""
        return self._transition is not None and Noise(of="posterior") in self._transition.feeds.values()

    def mix(self, stage: Stage) -> tuple[float, ...]:
        """Weights of the transition into a stage, as its graph takes them."""
        (feed,) = (feed for feed in self._way.feeds.values() if isinstance(feed, Mix))
        return stage.mix(feed.values)

    def begin_stage(self, stage: int, branches: Branches) -> None:
        """Clear what the stage's first step must not find: weights of its history are 0 there, but 0 * NaN is NaN."""
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            if isinstance(feed, State) and feed.start == "zeros":
                state = self._state(port, stage, 0, branches)
                state.write(np.zeros(state.shape, state.dtype))

    def take_states(self, stage: int, turn: int, branches: Branches, row: int) -> dict[str, Array]:
        """Host copies of one picture's part of every state that the stage's step number `turn` reads, by port."""
        return {
            port.name: _taken(self._state(port, stage, turn % 2, branches), axis, row) for port, axis in self._states()
        }

    def put_states(self, stage: int, turn: int, branches: Branches, row: int, states: Mapping[str, Array]) -> None:
        """Give one picture's part of every state a value, as `take_states` gave it."""
        for port, axis in self._states():
            _put(self._state(port, stage, turn % 2, branches), axis, row, states[port.name])

    def put_text(self, branches: Branches, row: int, text: Mapping[str, Mapping[str, Array]]) -> None:
        """Give one picture its text conditioning; `text` has arrays without a batch axis, by branch and output."""
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            if isinstance(feed, Text):
                said = np.stack([text[_speaker(branch)][feed.output] for branch in branches])
                _put(self._fed(port, feed, 0, 0, branches), 1, row, said)

    def put_picture(self, stage: int, feed: Picture, row: int, value: Array) -> None:
        """Give one picture the picture that conditions it, as it is at a stage, without a batch axis."""
        for port in self._step.inputs:
            if self._step.feeds[port.name] == feed:
                _put(self._fed(port, feed, stage, 0, ()), 0, row, value)

    def put_noise(self, stage: int, row: int, value: Array) -> None:
        """(C, h, w) noise of one picture; see `noise`."""
        _put(self.noise(stage), 0, row, value)

    def take_latent(self, stage: int, turn: int, row: int) -> Array:
        """(C, h, w) host copy of one picture's latent; see `latent`."""
        return _taken(self.latent(stage, turn), 0, row)

    def put_latent(self, stage: int, turn: int, row: int, value: Array) -> None:
        """(C, h, w) latent of one picture; see `latent`."""
        _put(self.latent(stage, turn), 0, row, value)

    def states_from(self, latent: Array, branches: Branches) -> dict[str, Array]:
        """What `read_states` would give for one picture at its stage's first step, without the batch axis.

        Args:
            latent: (C, h, w) that enters the stage, which is the geometry's first.
            branches: Those of that step.
        """
        found: dict[str, Array] = {}
        for port, axis in self._states():
            feed = self._step.feeds[port.name]
            shape = self._shape(self._step, port, 0, branches)
            zeros = np.zeros((*shape[:axis], *shape[axis + 1 :]), port.dtype)
            found[port.name] = latent if isinstance(feed, State) and feed.start == "latent" else zeros
        return found

    def _states(self) -> list[tuple[Port, int]]:
        """Every port that is fed with a state, and which of its axes counts pictures."""
        counted = [axis for axis, what in self._step.axes.items() if what == "batch"]
        return [
            (port, next(place for place, axis in enumerate(port.shape) if axis in counted))
            for port in self._step.inputs
            if isinstance(self._step.feeds[port.name], State)
        ]

    def write_row(self, rows: Array) -> None:
        """(batch, 7 + K): the step of every picture."""
        self._write(Row, rows, ())

    def write_weights(self, branches: Branches, weights: Array) -> None:
        """(branches, batch): the guidance of every picture."""
        self._write(GuidanceWeights, weights, branches)

    def write_guidance(self, scales: Array, rescales: Array) -> None:
        """(batch,) guidance scales and shares of rescaled guidance, for networks that take them."""
        self._write(GuidanceScale, scales, ())
        self._write(GuidanceRescale, rescales, ())

    def write_loras(self, weights: Array) -> None:
        """(batch, ranks) strengths of what is in the slots for LoRAs, for networks that have them."""
        self._write(LoraWeights, weights, ())

    def write_text(self, branches: Branches, text: Mapping[str, Mapping[str, Array]]) -> None:
        """Stack the text conditioning branch by branch; `text` has (batch, ...) arrays by branch and output."""
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            if isinstance(feed, Text):
                # Text does not change with a stage, so it goes into one buffer for all of them, before the first step.
                said = np.stack([text[_speaker(branch)][feed.output] for branch in branches])
                self._fed(port, feed, 0, 0, branches).write(said)

    def write_picture(self, stage: int, feed: Picture, value: Array) -> None:
        """A picture that the caller gives, as it is at a stage; its batch axis may be 1."""
        for port in self._step.inputs:
            if self._step.feeds[port.name] == feed:
                buffer = self._fed(port, feed, stage, 0, ())
                buffer.write(np.broadcast_to(value, buffer.shape))

    def write_references(self, tokens: Array, places: Array) -> None:
        """Reference pictures: (n, C * patch * patch) tokens, the same for the whole batch, and their (n, 3) places."""
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            if isinstance(feed, Reference):
                buffer = self._fed(port, feed, 0, 0, ())
                value = tokens if feed.what == "tokens" else places
                buffer.write(np.ascontiguousarray(np.broadcast_to(value, buffer.shape)).astype(buffer.dtype))

    def step(self, stage: int, turn: int, branches: Branches) -> Binding:
        """The step graph, from `latent(stage, turn)` to `latent(stage, turn + 1)`."""
        place = (stage, turn % 2, branches)
        graph = self._manifest.step_at(*self.geometry.sizes[stage])
        return self._bound(graph, place, lambda: self._step_buffers(stage, turn % 2, branches))

    def transition(self, stage: int, turns: int, mix: Array) -> Binding:
        """From the last latent of the stage before, which took `turns` steps, to this stage's first.

        Args:
            mix: (batch, n) weights, for every picture those of `mix`.
        """
        graph = self._way
        (port,) = (port for port in graph.inputs if isinstance(graph.feeds[port.name], Mix))
        # Before the binding is asked for, which finds this buffer by its key.
        self._made(("mix",), port, stage, ()).write(mix)
        return self._bound(
            f"transition_{self.geometry.scaling_space}",
            (stage, turns % 2),
            lambda: self._transition_buffers(graph, stage, turns),
        )

    def encode(self, stage: int, picture: Array, kept: Array | None = None) -> Array:
        """(height, width, 3) uint8 picture of a stage's size -> (C, h, w) latent, the mean of the VAE's posterior.

        Args:
            stage: Index of the stage.
            picture: Of its size.
            kept: (height, width) False where the picture is grey instead, for networks that inpaint; None: all stays.
        """
        buffers = self._alone("encode", stage)
        buffers["picture"].write(picture[None])
        if "kept" in buffers:
            every = np.ones(buffers["kept"].shape, np.float32)
            buffers["kept"].write(every if kept is None else kept[None, :, :, None].astype(np.float32))
        # Zeros make mean + std * noise the mean: a run that starts from a picture does not depend on chance.
        if noise := buffers.get("posterior_noise"):  # tiny autoencoders have no posterior
            noise.write(np.zeros(noise.shape, np.float32))
        self._bound("encode", (stage,), lambda: buffers)()
        return buffers["latent"].read()[0]

    def encode_alone(self, picture: Array) -> Array:
        """(height, width, 3) uint8 picture of any size -> (C, h, w) latent, as `encode`; its buffers are not kept."""
        entry, cell = self._manifest.graphs["encode"], self._manifest.facts.cell_px
        sizes = stage_quantities(cell, (picture.shape[0] // cell, picture.shape[1] // cell))
        buffers: dict[str, Buffer] = {}
        for port in (*entry.inputs, *entry.outputs):
            shape = tuple(sizes[entry.axes[axis]] if isinstance(axis, str) else axis for axis in port.shape)
            buffers[port.name] = self._backend.empty(shape, np.dtype(port.dtype))
            buffers[port.name].write(np.zeros(shape, port.dtype) if port.name != "picture" else picture[None])
        self._engines["encode"].bind(buffers)()
        return buffers["latent"].read()[0]

    def decode(self, stage: int, latent: Array) -> Array:
        """(C, h, w) latent of a stage -> (height, width, 3) uint8 picture."""
        buffers = self._alone("decode", stage)
        buffers["latent"].write(latent[None])
        self._bound("decode", (stage,), lambda: buffers)()
        return buffers["picture"].read()[0]

    def _bound(self, graph: str, place: tuple[object, ...], buffers: Callable[[], Mapping[str, Buffer]]) -> Binding:
        """A binding that was made before, or a new one; engines may have been replaced meanwhile."""
        engine = self._engines[graph]
        known = self._bindings.get((graph, place))
        if known is None or known[0] is not engine:
            known = self._bindings[graph, place] = (engine, engine.bind(buffers()))
        return known[1]

    @property
    def _way(self) -> Graph:
        """The transition's graph."""
        if self._transition is None:
            raise BundleError(f"the bundle has no graph transition_{self.geometry.scaling_space}; export it again")
        return self._transition

    def _step_buffers(self, stage: int, turn: int, branches: Branches) -> dict[str, Buffer]:
        found: dict[str, Buffer] = {}
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            found[port.name] = self._fed(port, feed, stage, turn, branches)
            if isinstance(feed, State):
                found[feed.output] = self._state(port, stage, 1 - turn, branches)
        return found

    def _transition_buffers(self, graph: Graph, stage: int, turns: int) -> dict[str, Buffer]:
        found = {"next_latent": self.latent(stage, 0)}
        for port in graph.inputs:
            match graph.feeds[port.name]:
                case Latent():
                    found[port.name] = self.latent(stage - 1, turns)
                case Noise(of=of):
                    found[port.name] = self.noise(stage, of)
                case Mix():
                    found[port.name] = self._buffers["mix",]
                case feed:
                    raise BundleError(f"a transition cannot be fed with {feed}; export the model again")
        return found

    def _fed(self, port: Port, feed: Feed, stage: int, turn: int, branches: Branches) -> Buffer:
        """The buffer that holds what a step's input is fed with. Inputs that do not change with a stage share one."""
        match feed:
            case State():
                return self._state(port, stage, turn, branches)
            case Noise(of=of):
                return self.noise(stage, of)
            case Sizes(values=values):
                told = partial(self._told, values, stage)
                return self._made((port.name, stage, branches), port, stage, branches, told)
            case Gates(skipped=skipped):
                gates = partial(_gates, port, skipped, branches)
                return self._made((port.name, branches), port, stage, branches, gates)
            case Text() | GuidanceWeights():
                return self._made((port.name, branches), port, stage, branches)
            case LoraFactors():
                lent = self._lent.get(LoraFactors)
                return lent() if lent is not None else self._made((port.name,), port, stage, branches)
            case Row() | GuidanceScale() | GuidanceRescale() | Reference() | LoraWeights():
                return self._made((port.name,), port, stage, branches)
            case Picture():
                return self._made((port.name, stage), port, stage, branches)
            case Latent() | Mix():
                raise BundleError(f"a step cannot be fed with {feed} (port {port.name}); export the model again")
            case _:
                assert_never(feed)

    def _state(self, port: Port, stage: int, turn: int, branches: Branches) -> Buffer:
        """One of a state's two buffers. A state that has a branch axis begins anew where the branches change."""
        # The latent has no branch axis: it goes on where the branches change.
        own = branches if "branches" in port.shape else ()
        return self._made((port.name, stage, turn, own), port, stage, branches)

    def _write(self, kind: type[Feed], value: Array, branches: Branches) -> None:
        for port in self._step.inputs:
            feed = self._step.feeds[port.name]
            if isinstance(feed, kind):
                self._fed(port, feed, 0, 0, branches).write(value)

    def _told(self, values: Sequence[SizeValue], stage: int) -> Array:
        height, width = (cells * self._manifest.facts.cell_px for cells in self.geometry.sizes[stage])
        known = self.geometry.told.at(height, width)
        return np.asarray([known[value] for value in values], np.float32)

    def _alone(self, graph: str, stage: int) -> dict[str, Buffer]:
        """Buffers of a graph that pictures pass one at a time."""
        entry = self._manifest.graphs[graph]
        ports = (*entry.inputs, *entry.outputs)
        return {port.name: self._made((graph, port.name, stage), port, stage, (), graph=entry) for port in ports}

    def _made(
        self,
        key: Hashable,
        port: Port,
        stage: int,
        branches: Branches,
        value: Callable[[], Array] | None = None,
        graph: Graph | None = None,
    ) -> Buffer:
        """A buffer for a port; made, and filled with zeros or with a constant value, when it is asked for first."""
        if key not in self._buffers:
            shape = self._shape(graph or self._step, port, stage, branches)
            filling = np.zeros(shape, port.dtype) if value is None else np.broadcast_to(value(), shape)
            buffer = self._backend.empty(shape, np.dtype(port.dtype))
            buffer.write(filling.astype(port.dtype))
            self._buffers[key] = buffer
        return self._buffers[key]

    def _shape(self, graph: Graph, port: Port, stage: int, branches: Branches) -> tuple[int, ...]:
        sizes = {
            **stage_quantities(self._manifest.facts.cell_px, self.geometry.sizes[stage]),
            "batch": self.geometry.batch,
            "branches": len(branches),
        }
        known = {axis: sizes[what] for axis, what in graph.axes.items() if what in sizes} | self._tokens
        known = {"batch": self.geometry.batch, **known}  # a transition's own axes may leave it out
        return tuple(known[axis] if isinstance(axis, str) else axis for axis in port.shape)


def _put(buffer: Buffer, axis: int, row: int, value: Array) -> None:
    """Write one picture's part of a buffer whose axis number `axis` counts pictures; the other parts stay.

    Args:
        value: Shaped like the buffer without that axis.
    """
    outer, inner = prod(buffer.shape[:axis]), prod(buffer.shape[axis + 1 :])
    runs = np.ascontiguousarray(value, buffer.dtype).reshape(outer, inner)
    for number, run in enumerate(runs):
        buffer.write_part((number * buffer.shape[axis] + row) * inner, run)


def _taken(buffer: Buffer, axis: int, row: int) -> Array:
    """A host copy of one picture's part of a buffer, without the axis that counts pictures."""
    outer, inner = prod(buffer.shape[:axis]), prod(buffer.shape[axis + 1 :])
    runs = [buffer.read_part((number * buffer.shape[axis] + row) * inner, inner) for number in range(outer)]
    return np.stack(runs).reshape(*buffer.shape[:axis], *buffer.shape[axis + 1 :])


def stack_each(arrays: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Conditioning of several pictures, port by port, as one batch."""
    return {port: np.stack([one[port] for one in arrays]) for port in arrays[0]}


def _carries_latent(feed: Feed | None) -> bool:
    return isinstance(feed, State) and feed.start == "latent"


def _token_sizes(step: Graph, text: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of the axes that count tokens, from the shapes of what the text graph gave for one picture."""
    found: dict[str, int] = {}
    for port in step.inputs:
        feed = step.feeds.get(port.name)
        if isinstance(feed, Text):
            own = port.shape[2:]  # after branches and batch
            found |= {axis: size for axis, size in zip(own, text[feed.output], strict=True) if isinstance(axis, str)}
    return found


def _reference_axes(step: Graph, tokens: int) -> dict[str, int]:
    """Sizes of the axes that count the tokens of reference pictures."""
    shapes = [port.shape for port in step.inputs if step.feeds.get(port.name) == Reference(what="places")]
    return {axis: tokens for shape in shapes for axis in shape if isinstance(axis, str)}


def _gates(port: Port, skipped: Sequence[int], branches: Branches) -> Array:
    """(branches, layers): 0 for the layers that the "skip" branch leaves out."""
    gates = np.ones((len(branches), int(port.shape[1])), np.float32)
    for row, branch in enumerate(branches):
        gates[row, list(skipped)] = branch != "skip"
    return gates


def _speaker(branch: str) -> str:
    """Whose text a branch hears: layers are left out of the positive prompt."""
    return "positive" if branch == "skip" else branch
