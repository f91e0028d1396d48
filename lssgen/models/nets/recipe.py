"""What a family tells the exporter: which graphs its checkpoint becomes, and how each is made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, get_args

from torch import nn

from lssgen.manifest import Feed, Heard, Quantity, References, Runs
from lssgen.ports import Port


class Components(Protocol):
    """The parts of a checkpoint, by the names of their folders ("transformer", "text_encoder_2", ...)."""

    @property
    def index(self) -> Mapping[str, Any]:
        """The checkpoint's model_index.json."""
        ...

    def has(self, name: str) -> bool: ...

    def config(self, name: str) -> Mapping[str, Any]:
        """The part's config.json.

        Raises:
            ModelError: The checkpoint has no such part.
        """
        ...

    def chat_tokens(self, name: str, chat: Sequence[tuple[str, str]]) -> int:
        """Number of tokens that a tokenizer's own chat template makes of messages, given as (role, text).

        Raises:
            ModelError: It has no chat template, or none that can be filled.
        """
        ...

    def module(self, name: str) -> nn.Module:
        """The part as diffusers or transformers build it, ready to be called."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What is settled about the graphs of any family before they are designed.

    Attributes:
        channels: Number of channels of a latent, as the family's record has it.
        skip_layers: Give the step graph a gate per layer, for skip-layer guidance.
        skipped: Layers that this guidance leaves out.
        t5: Keep the T5 encoder, where the family can do without.
        clip_skip: Layers that CLIP leaves out at its end, beyond those that the family does.
        max_sequence_length: Tokens of the long text encoder.
        history: Earlier estimates that the step graph carries, at least 1.
        cell_px: Pixels along one side of a latent cell.
        reference_tokens: Usual number of tokens of reference pictures; 0: the step sees none.
    """

    channels: int
    skip_layers: bool = False
    skipped: tuple[int, ...] = ()
    t5: bool = True
    clip_skip: int = 0
    max_sequence_length: int = 256
    history: int = 1
    cell_px: int = 8
    reference_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one graph is made.

    Attributes:
        name: Name of the graph, as in the manifest.
        components: Parts of the checkpoint whose weights it holds.
        inputs, outputs: Ports of the graph, in the order of the module's arguments and results.
        build: The module. Its parameters are called <part>.<name in the part's checkpoint file>.
        runs, feeds: Occasion and sources of its inputs, as in `lssgen.manifest.Graph`.
        vocabulary: Number of ids that the integer inputs may choose from.
        choices: Numbers that samples of a floating-point input are drawn from; normal numbers where it is not listed.
            Of a step's row they are the last columns.
        settings: Whatever else decides what the graph computes, for its key.
        precise: Stays float32 whatever precision is asked for.
        overflows: Stays float32 where float16 is asked for: its numbers are known to grow beyond that.
    """

    name: str
    components: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    build: Callable[[Components], nn.Module]
    runs: Runs
    feeds: Mapping[str, Feed] = field(default_factory=dict[str, Feed])
    vocabulary: Mapping[str, int] = field(default_factory=dict[str, int])
    choices: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    precise: bool = False
    overflows: bool = False

    @property
    def axes(self) -> Mapping[str, Quantity]:
        """`lssgen.manifest.Graph.axes`: an axis counts what it is called, and every other name counts tokens."""
        named = {axis for port in (*self.inputs, *self.outputs) for axis in port.shape if isinstance(axis, str)}
        # Prompts are encoded, and pictures coded, one at a time: then nothing depends on the company.
        alone = {"batch": "one"} if self.runs in ("prompt", "end", "start") else {}
        return {
            axis: cast(Quantity, alone.get(axis, axis if axis in QUANTITIES else "tokens")) for axis in sorted(named)
        }


QUANTITIES = get_args(Quantity)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """A tokenizer of the checkpoint, and how it fills a port of the "text" graph; see `lssgen.bundle.Tokens`.

    Attributes:
        component: The tokenizer's folder in the checkpoint.
        chat: Messages that a chat template is filled with, as (role, text); the text `PROMPT` stands for the prompt.
            Empty: the prompt alone, without a template.
        chat_options: Further arguments of the template, such as enable_thinking; add_generation_prompt is on if they do
            not say otherwise.
        in_pieces: The template takes a message as a list of texts and pictures, as models have it that see; special
            tokens at the beginning are then the template's own, and the tokenizer adds none.
        around: Text with `PROMPT` in it, where the published pipeline has its own in place of a chat template.
        empty: Text that is read in the place of an empty prompt.
        pad_side: Side of the filling; "own": that of the checkpoint's tokenizer.
        removes: Words that are taken out of prompts.
        heard: Rows that its tokens have in an output of the "text" graph; None: there are none.
        drop: Number of tokens at the beginning that the "text" graph leaves out; see `lssgen.manifest.Tokens`.
    """

    component: str
    port: str
    length: int
    mask_port: str | None = None
    pad_to: Literal["length", "longest"] = "length"
    pad_side: Literal["left", "right", "own"] = "right"
    pad_multiple: int = 1
    chat: tuple[tuple[str, str], ...] = ()
    chat_options: Mapping[str, object] = field(default_factory=dict[str, object])
    in_pieces: bool = False
    removes: tuple[str, ...] = ()
    around: str = ""
    empty: str = ""
    heard: Heard | None = None
    drop: int = 0


PROMPT = "{prompt}"
"""Stands for the prompt in the messages of a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """Everything the exporter makes of a checkpoint, apart from transitions that need no family.

    Attributes:
        recipes: The graphs.
        tokens: The tokenizers.
        token_axes: A usual size of every axis that counts tokens.
        layers: Gates of the step graph; 0 without `Wishes.skip_layers`.
        references: Rules for reference pictures; None without `Wishes.reference_tokens`, or where the family has none.
        notes: Sentences that the user should read.
    """

    recipes: tuple[Recipe, ...]
    tokens: tuple[TokenRule, ...]
    token_axes: Mapping[str, int]
    empty_negative: Literal["encode", "zeros"] = "encode"
    layers: int = 0
    references: References | None = None
    notes: tuple[str, ...] = ()
