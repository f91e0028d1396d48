"""The manifest of a bundle: everything a runtime must know about its graphs, as records.

Format 2. By two rules a new conditioning input, state or graph is a record here and no change of the runtime:

    axes    every dynamic axis of a graph says which quantity of a run it counts
    feeds   every input of a step or a transition says where its value comes from
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import msgspec

from lssgen.plan.facts import ModelFacts
from lssgen.plan.transitions import MixValue
from lssgen.ports import Port

FORMAT = 2
"""Changes when an old runtime would misread a new bundle, or a new one an old bundle."""

Precision = Literal["fp32", "fp16", "bf16"]
"""Number format that a network computes in."""

SlotLayers = Literal["linear", "all"]
"""Kind of layers that have room for LoRAs: matrix products and convolutions of one pixel, or larger ones too."""

Quantity = Literal[
    "one",
    "batch",
    "branches",
    "height",
    "width",
    "next_height",
    "next_width",
    "picture_height",
    "picture_width",
    "tokens",
]
"""Thing that an axis counts: nothing (it is always one), pictures painted together, guidance branches of a step, rows
and columns of the stage's latent in cells, those of the next stage's, rows and columns of the stage's picture in
pixels, tokens of a prompt."""

Runs = Literal["prompt", "stage", "transition", "end", "start"]
"""Occasion on which a graph runs: for every prompt; in every stage; between two stages; where pictures end, and where a
stage's picture is shown; at every stage of a run that starts from a picture."""

SizeValue = Literal[
    "height_px",
    "width_px",
    "original_height",
    "original_width",
    "target_height",
    "target_width",
    "crop_top",
    "crop_left",
]


class State(msgspec.Struct, frozen=True, kw_only=True, tag="state"):
    """A tensor that a step hands to the next step of its stage.

    Attributes:
        output: Name of the step's output that is its next value; shaped like the input.
        start: Value at a stage's first step: the "latent" that enters the stage, or "zeros".
    """

    output: str
    start: Literal["latent", "zeros"] = "zeros"


class Latent(msgspec.Struct, frozen=True, kw_only=True, tag="latent"):
    """What the stage before ends with, (batch, C, height, width): a clean latent, or the noisy state that is kept."""


class Noise(msgspec.Struct, frozen=True, kw_only=True, tag="noise"):
    """Standard normal numbers, drawn from every picture's own stream.

    Attributes:
        of: "latent": what a transition mixes in, or a solver adds in a step. "posterior": for drawing from a VAE's
            posterior; drawn after the latent's.
    """

    of: Literal["latent", "posterior"] = "latent"


class Row(msgspec.Struct, frozen=True, kw_only=True, tag="row"):
    """The numbers of a step, (batch, 7 + history): columns as `lssgen.plan.table.ROW`, a row for every picture.

    With a ControlNet, `lssgen.plan.table.Step.control` follows.
    """


class Mix(msgspec.Struct, frozen=True, kw_only=True, tag="mix"):
    """Weights of a transition, (batch, len(values)).

    Attributes:
        values: Names of its entries, see `lssgen.plan.table.Stage`: "image", of the enlarged clean latent, and "noise";
            where a noisy state is kept "gain", of the enlarged state, "noise", of the noise in new frequencies, and
            "low_noise", of fresh noise in those that the state has.
    """

    values: tuple[MixValue, ...] = ("image", "noise")


class GuidanceWeights(msgspec.Struct, frozen=True, kw_only=True, tag="guidance_weights"):
    """Weight of every branch's output, (branches, batch)."""


class GuidanceScale(msgspec.Struct, frozen=True, kw_only=True, tag="guidance_scale"):
    """The guidance scale itself, (batch,), for networks that take it as an input."""


class GuidanceRescale(msgspec.Struct, frozen=True, kw_only=True, tag="guidance_rescale"):
    """Share of rescaled guidance in [0, 1], (batch,)."""


class Text(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """Conditioning by the prompt, (branches, batch, ...).

    Attributes:
        output: Name of the output of the "text" graph, stacked branch by branch.
    """

    output: str


class Sizes(msgspec.Struct, frozen=True, kw_only=True, tag="sizes"):
    """What a network that is conditioned on sizes is told, in pixels; (branches, batch, len(values)).

    Attributes:
        values: Names of its entries: the stage's own "height_px" and "width_px"; "original_height" and
            "original_width", "target_height" and "target_width", which are the same unless the user gives others; and
            "crop_top" and "crop_left", 0 unless the user gives others.
    """

    values: tuple[SizeValue, ...]


class Gates(msgspec.Struct, frozen=True, kw_only=True, tag="gates"):
    """One number a layer, (branches, layers): 1 where it runs, 0 where skip-layer guidance leaves it out.

    Attributes:
        skipped: Layers that the "skip" branch leaves out.
    """

    skipped: tuple[int, ...]


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag="picture"):
    """A picture that the caller gives, scaled to every stage's size; the same for all branches.

    Attributes:
        name: Key under which the caller gives it: "control", "mask", ...
        read_as: "latent": encoded by the "encode" graph, (batch, C, height, width). "pixels": (batch, 3,
            picture_height, picture_width), -1 to 1. "mask": (batch, 1, height, width), the share of every cell that is
            white. "cells": -1 to 1, (batch, 3 * cell_px ** 2, height, width), every cell's pixels as channels, in the
            order of torch's pixel_unshuffle. "cell_mask": the same of a mask, (batch, cell_px ** 2, height, width), 1
            where a pixel is to be painted, else 0. "kept": as "latent", of the picture to start from with the pixels
            that are to be painted at the middle grey, 0 of -1 to 1.
    """

    name: str
    read_as: Literal["latent", "pixels", "mask", "cells", "cell_mask", "kept"] = "latent"


class Reference(msgspec.Struct, frozen=True, kw_only=True, tag="reference"):
    """Reference pictures, as tokens one after the other; the same for all branches and stages. A run may have none.

    Attributes:
        what: "tokens": (batch, tokens, C * patch * patch) squares of encoded cells, channel by channel. "places":
            (tokens, 3): number of the picture, from 1, and row and column of the token in it.
    """

    what: Literal["tokens", "places"]


class LoraFactors(msgspec.Struct, frozen=True, kw_only=True, tag="lora_factors"):
    """Low-rank pairs of LoRAs, (ranks, columns). A row holds one rank of all layers: for every layer a row of its first
    factor, and behind it a column of its second.

    Attributes:
        layers: Shape of the weight of every layer that has room for such a change, by the weight's name in the
            checkpoint.
    """

    layers: Mapping[str, tuple[int, ...]]

    @property
    def places(self) -> Mapping[str, tuple[int, int, int]]:
        """Where each layer lies: the first column of its first factor, that of its second, and the one behind it."""
        found: dict[str, tuple[int, int, int]] = {}
        at = 0
        for name in sorted(self.layers):  # not as they come: files may have been sorted by whoever wrote them anew
            out, *inside = self.layers[name]
            found[name] = (at, at + prod(inside), at + prod(inside) + out)
            at = found[name][2]
        return found

    @property
    def columns(self) -> int:
        """Number of columns."""
        return sum(shape[0] + prod(shape[1:]) for shape in self.layers.values())


class LoraWeights(msgspec.Struct, frozen=True, kw_only=True, tag="lora_weights"):
    """Strength of every rank in every picture, (batch, ranks); 0 where the picture is painted without it."""


Feed = (
    State
    | Latent
    | Noise
    | Row
    | Mix
    | GuidanceWeights
    | GuidanceScale
    | GuidanceRescale
    | Text
    | Sizes
    | Reference
    | Gates
    | Picture
    | LoraFactors
    | LoraWeights
)
"""Source of the value of a graph's input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One comparison of a graph with its torch module, on seeded inputs.

    Attributes:
        axes: Size of every dynamic axis.
        error: Largest over the outputs of |graph - torch| in the L2 norm, relative to |torch|.
        bound: Largest `error` that was allowed.
        finite: True if every output was finite.
        peak: Largest magnitude of any output.
    """

    axes: Mapping[str, int]
    error: float
    bound: float
    finite: bool
    peak: float


NumberFormat = Literal["int8", "fp8", "nvfp4", "int8-weights"]
"""Number format of quantised products: what goes in and the weights, or the weights alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How a quantised graph compares with the one that it was made from.

    Attributes:
        psnr_db: Peak signal to noise of the latents of seeded runs, after every stage, in dB; the worst of the runs.
        cosine: Cosine of the same latents.
        bound_db, bound_cosine: Bounds that were asked for.
        speedup: Time of the one that it was made from, divided by its own, at every resolution on `engine`, by
            "width x height" in pixels; empty: not measured.
        engine: Engine that was timed, and on what.
        slower: True where it was not faster, or not clearly, and was made all the same.
    """

    psnr_db: tuple[float, ...] = ()
    cosine: tuple[float, ...] = ()
    bound_db: float = 0.0
    bound_cosine: float = 0.0
    speedup: Mapping[str, float] = field(default_factory=dict[str, float])
    engine: str = ""
    slower: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """What of a graph is computed in few bits.

    Attributes:
        format: Number format.
        engine: Engine that the graph was made for.
        products: Number of products in that format.
        kept: Names of products that could be, and stay in the graph's precision.
        attention: Number of attentions whose products are in it, softmax included.
        smoothing: Strength of SmoothQuant; 0: none.
        by: Tool that made it; "lssgen", or the one whose graph was adopted.
        statistics: Hash of the statistics file; empty: weights only, or unknown.
        measured: Comparison with the graph that it was made from; None: not compared.
    """

    format: NumberFormat
    engine: str
    products: int
    kept: tuple[str, ...] = ()
    attention: int = 0
    smoothing: float = 0.0
    by: str = "lssgen"
    statistics: str = ""
    measured: Measured | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One ONNX graph of the bundle.

    Attributes:
        file: ONNX file, relative to the bundle.
        data: Files with its weights, relative to the bundle.
        sha256: Hash of every file above, by name.
        key: Hash of everything the graph was made from; two graphs with one key are the same.
        precision: Type of the network inside: "fp32", "fp16" or "bf16". Inputs and outputs keep their own types.
        inputs, outputs: Ports of the graph.
        runs: Occasion at which it runs.
        axes: Quantity that every dynamic axis of its ports counts, by the axis's name.
        feeds: Source of every input's value, by port, for graphs that run in a stage or between two.
        probes: Comparisons with torch, at every size where that was tried.
        stands_for: Key of the graph in the precision asked for, which did not hold up; empty: it did.
        why: Reason why it did not; a sentence.
        quantisation: Products of it that are computed in few bits; None: none are.
    """

    file: str
    data: tuple[str, ...] = ()
    sha256: Mapping[str, str]
    key: str
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    runs: Runs
    axes: Mapping[str, Quantity]
    feeds: Mapping[str, Feed] = field(default_factory=dict[str, Feed])
    probes: tuple[Probe, ...] = ()
    stands_for: str = ""
    why: str = ""
    quantisation: Quantisation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Where a tokenizer's tokens are heard one by one, a row each, in their order.

    Attributes:
        output: Name of an output of the "text" graph, (batch, rows, columns).
        row: Row of its first token, that fills up or not.
        columns: First column of its encoder, and the one after the last; None: all.
    """

    output: str
    row: int = 0
    columns: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How a prompt becomes the token ids of one port of the "text" graph.

    Attributes:
        port: Name of the (batch, tokens) int64 input.
        mask_port: Name of the attention mask input of the same shape, if the encoder takes one.
        file: A tokenizer of the `tokenizers` library (tokenizer.json), special tokens included.
        sha256: Hash of that file.
        length: Longest sequence; more is cut off, with a warning.
        pad_id: Token that fills up.
        pad_to: Fill up to the "length", or to the "longest" prompt of the batch.
        pad_side: Side of the filling.
        pad_multiple: Number that "longest" rounds up to a multiple of.
        prefix, suffix: Text before and after the prompt: the chat template of a language model, with the prompt in it.
        special: Permission for the tokenizer to add its special tokens; False where the template has them already.
        removes: Words that are taken out of prompts.
        empty: Text that is read in the place of an empty prompt.
        heard: Rows that its tokens have in what the "text" graph says; None: it says nothing of single tokens. Weights
            of words work on these.
        drop: Number of tokens at the beginning, of the prefix, that the "text" graph reads and leaves out of what it
            says: the axis of rows in `heard.output` is shorter by so many. `heard.row` is the first that is left.
    """

    port: str
    mask_port: str | None = None
    file: str
    sha256: str = ""
    length: int
    pad_id: int
    pad_to: Literal["length", "longest"] = "length"
    pad_side: Literal["left", "right"] = "right"
    pad_multiple: int = 1
    prefix: str = ""
    suffix: str = ""
    special: bool = True
    removes: tuple[str, ...] = ()
    empty: str = ""
    heard: Heard | None = None
    drop: int = 0

    def shortened(self, outputs: Iterable[Port]) -> str | None:
        """The axis of the text graph's outputs that is shorter by `drop` than that of `port`; None: there is none."""
        if not self.drop or self.heard is None:
            return None
        return next((str(port.shape[1]) for port in outputs if port.name == self.heard.output), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upsampler:
    """The latent upsampler inside the "transition_resnet" graph.

    Attributes:
        source: Folder that it came from.
        sha256: Hash of its weight file.
        licence: Licence that its folder states.
        config: Its config.json.
        converted_to: Normalisation that the graph converts latents to before the upsampler, and back from after it, in
            the fields of a VAE's config.json; None: the upsampler gets the model's latents as they are.
    """

    source: str
    sha256: str
    licence: str
    config: Mapping[str, object]
    converted_to: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """How reference pictures become tokens of the step.

    Attributes:
        patch: Cells along one side of a token.
        unit_px: Number of pixels that the sides of a picture are cut down to a multiple of, around its middle.
        most_px: Area above which a picture is made smaller first.
        least_side_px: Shortest side that a picture may have.
        most_aspect: Longest side over the shortest.
        most: Number of pictures.
    """

    patch: int
    unit_px: int
    most_px: int = 1024 * 1024
    least_side_px: int = 64
    most_aspect: float = 8.0
    most: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights came from.

    Attributes:
        model: Hub id, folder or file.
        revision: Commit on the hub.
        licence: Licence of the checkpoint.
        sha256: Hash of every weight file, by <part>/<file>.
    """

    model: str
    revision: str | None = None
    licence: str = "unknown"
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a runtime must know about a bundle.

    Graphs, by name, and the ports they have beyond what `docs/bundle.md` lists for every bundle:

        text               (batch, tokens) ids            -> one output per text-conditioning input of "step"
        step               inputs as its feeds say        -> the outputs that its states name
        transition_<space> inputs as its feeds say        -> next_latent   (space: resnet, latent, ...)
        decode             latent                         -> picture (batch, height, width, 3) uint8
        encode             picture, posterior_noise       -> latent   (no noise: an autoencoder without a posterior;
                                                                       kept beside them: see below)

    `kept`, (batch, picture_height, picture_width, 1) of "encode", is 0 where the picture is the middle grey instead; it
    is there where a step is fed with a picture that is read as "kept".

    Attributes:
        format: `FORMAT` of the lssgen that wrote it.
        lssgen: Version of that lssgen.
        family: Record the export used; for people, the runtime does not look at it.
        facts: Facts that the plan must know.
        resolutions: Stage sizes in pixels, (height, width), smallest first: the ones probed, and built for by
            backends with static profiles.
        history: Estimates that the step graph carries from step to step, at least 1.
        graphs: Graphs by name, see above.
        tokenizers: One per token input of the "text" graph.
        token_axes: Usual size of every dynamic axis that counts tokens. Where the tokenizers fill up to a "length", the
            only one.
        empty_negative: Stand-in for a negative prompt that was not given: the "encode"d empty text, or "zeros".
        upsampler: None where the bundle has no "transition_resnet".
        references: Rules for reference pictures; None: the model sees none.
        notes: Sentences that the user should read.
        small_step: Name of a graph with the ports of "step" that runs in its place in small stages; empty: there is
            none. One stage may be quantised while another is not.
        small_cells: Number of cells of a latent up to which a stage is small.
    """

    format: int = FORMAT
    lssgen: str
    family: str
    facts: ModelFacts
    source: Source
    resolutions: tuple[tuple[int, int], ...]
    history: int
    graphs: Mapping[str, Graph]
    tokenizers: tuple[Tokens, ...]
    token_axes: Mapping[str, int] = field(default_factory=dict)
    empty_negative: Literal["encode", "zeros"] = "encode"
    upsampler: Upsampler | None = None
    references: References | None = None
    notes: tuple[str, ...] = ()
    small_step: str = ""
    small_cells: int = 0

    def step_at(self, height: int, width: int) -> str:
        """Name of the step's graph in a stage of that size in cells."""
        return self.small_step if self.small_step and height * width <= self.small_cells else "step"

    def feeds(self, kind: type[Feed]) -> tuple[Feed, ...]:
        """The step's feeds of one kind: whether a network has skip-layer gates, is told sizes, takes a picture, ..."""
        return tuple(feed for feed in self.graphs["step"].feeds.values() if isinstance(feed, kind))
