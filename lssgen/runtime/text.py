"""Prompts to conditioning: the bundle's tokenizers, padded as the manifest says, then its text graph."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count, takewhile
from math import ceil
from typing import cast

import numpy as np
from tokenizers import Encoding, Tokenizer

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend, Buffer, Engine
from lssgen.errors import BundleError, PromptError
from lssgen.manifest import LoraFactors, LoraWeights, Tokens
from lssgen.ports import Array, Port
from lssgen.runtime.loras import NO_LORAS, TextLoras
from lssgen.runtime.weighting import Part, Weighted, Weighting, moved, multiplied, token_weights, weighted

Lengths = tuple[int, ...]
"""Tokens that a prompt fills up to, one number a tokenizer."""


SHOWN = 80
"""Characters of a prompt's lost end that a warning repeats."""

MOST_CHARACTERS = 20_000
"""Length of the longest prompt. No encoder hears more than some thousands; reading five million takes 40 s and 1.5 GB.
"""


class PromptWarning(UserWarning):
    """A prompt that is not heard in full."""


class TextEncoder:
    """Encodes one prompt at a time, so that nothing depends on the company a prompt is encoded in.

    Args:
        bundle: Its tokenizers and its "text" graph are used.
        backend: Place where the graph runs.
        remember: Bytes of encoded prompts to keep; those that were not asked for longest go first.
        tell: Given a sentence about every prompt that is not heard in full; None: `warn`.

    Raises:
        BundleError: A tokenizer cannot be read.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        remember: int = 128 * 2**20,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._tokenizers = tuple(_PortTokenizer(bundle, tokens) for tokens in bundle.manifest.tokenizers)
        self._manifest = bundle.manifest
        self._backend = backend
        self._remember = remember
        self._tell = tell or warn
        self._known: OrderedDict[tuple[str, Lengths, Weighting, Hashable], Mapping[str, Array]] = OrderedDict()
        self._bytes = 0

    def lengths(self, text: str, weighting: Weighting = "none") -> Lengths:
        """How many tokens the prompt needs in each tokenizer, filling included.

        Raises:
            PromptError: The prompt cannot be read, or has impossible weights.
        """
        said = weighted(see_prompt(text), weighting)
        return tuple(tokenizer.length(said.text) for tokenizer in self._tokenizers)

    def tokens(self, text: str) -> int:
        """Tokens of a text in the first tokenizer, filling left out.

        Raises:
            PromptError: It cannot be read.
        """
        return self._tokenizers[0].count(see_prompt(text))

    def encode(
        self,
        engine: Engine,
        text: str,
        lengths: Lengths,
        weighting: Weighting = "none",
        loras: TextLoras = NO_LORAS,
    ) -> Mapping[str, Array]:
        """The prompt's conditioning, port by port, without a batch axis.

        Args:
            engine: The loaded "text" graph.
            text: Any text; the empty one too.
            lengths: At least `self.lengths(text, weighting)`: what to fill up to.
            weighting: Rules by which marks in the text weigh its words.
            loras: LoRAs that it is encoded with, where the graph has slots for them.

        Raises:
            BundleError: The text graph does not fit the manifest.
            PromptError: Weights leave nothing of the prompt.
        """
        key = (text, lengths, weighting, loras.key)
        if key not in self._known:
            plain = weighting == "none"
            run = self._run if plain else partial(self._weighed, weighting=weighting)
            made = run(engine, text, lengths, loras=loras)
            self._known[key] = made
            self._bytes += _bytes(made)
            self._forget()
        self._known.move_to_end(key)
        return self._known[key]

    @property
    def remembered(self) -> int:
        """Bytes of the encoded prompts that are kept."""
        return self._bytes

    def _forget(self) -> None:
        """Let go of prompts until the rest fits; the newest stays, since it is needed now."""
        while len(self._known) > 1 and self._bytes > self._remember:
            self._bytes -= _bytes(self._known.popitem(last=False)[1])

    def _weighed(
        self, engine: Engine, text: str, lengths: Lengths, *, weighting: Weighting, loras: TextLoras
    ) -> Mapping[str, Array]:
        said = weighted(text, weighting)
        plain = self.encode(engine, said.text, lengths, loras=loras)
        if said.is_plain:
            return plain
        empty = self.encode(engine, "", lengths, loras=loras) if weighting == "comfyui" else {}
        states = {port: array.copy() for port, array in plain.items()}
        for tokenizer, length in zip(self._tokenizers, lengths, strict=True):
            part = tokenizer.part(said, length)
            if part is None:
                continue
            output = part.heard.output
            if weighting == "comfyui":
                moved(states[output], empty[output], part)
            else:
                multiplied(states[output], part)
        return states

    def _run(self, engine: Engine, text: str, lengths: Lengths, *, loras: TextLoras) -> Mapping[str, Array]:
        feed: dict[str, Array] = {}
        axes: dict[str, int] = {}
        for tokenizer, length in zip(self._tokenizers, lengths, strict=True):
            feed |= tokenizer.feed(text, length)
            if (axis := tokenizer.rules.shortened(engine.outputs)) is not None:
                axes[axis] = length - tokenizer.rules.drop
        for said in self.losses(text):
            self._tell(said)
        buffers: dict[str, Buffer] = {}
        feeds = self._manifest.graphs["text"].feeds
        for port in engine.inputs:
            if isinstance(feeds.get(port.name), LoraFactors):
                buffers[port.name] = self._factors(port, loras)
                continue
            if isinstance(feeds.get(port.name), LoraWeights):
                feed[port.name] = self._strengths(port, loras)
            if port.name not in feed:
                raise BundleError(f"{engine.name} wants {port}, for which the manifest names no tokenizer")
            value = feed[port.name]
            axes |= {name: size for name, size in zip(port.shape, value.shape, strict=True) if isinstance(name, str)}
            buffers[port.name] = self._backend.empty(value.shape, np.dtype(port.dtype))
            buffers[port.name].write(value.astype(port.dtype))
        for port in engine.outputs:
            shape = [size if isinstance(size, int) else self._size(engine, size, axes) for size in port.shape]
            buffers[port.name] = self._backend.empty(shape, np.dtype(port.dtype))
        engine.bind(buffers)()
        return {port.name: buffers[port.name].read()[0] for port in engine.outputs}

    def _factors(self, port: Port, loras: TextLoras) -> Buffer:
        """Low-rank pairs on the device; zeros where nobody has a bank of them."""
        if loras.factors is not None:
            return loras.factors()
        buffer = self._backend.empty(_whole(port.shape), np.dtype(port.dtype))
        buffer.write(np.zeros(buffer.shape, buffer.dtype))
        return buffer

    def _strengths(self, port: Port, loras: TextLoras) -> Array:
        """(1, ranks): prompts are encoded one at a time."""
        return np.zeros(_whole(port.shape), port.dtype) if loras.weights is None else loras.weights[None]

    def _size(self, engine: Engine, axis: str, axes: Mapping[str, int]) -> int:
        """Size of an output's axis: an input's, or the usual one when all of the inputs' are as usual."""
        usual = self._manifest.token_axes
        known = all(size == usual.get(name, size) for name, size in axes.items())
        if axis in axes or (axis in usual and known):
            return {**usual, **axes}[axis]
        raise BundleError(f"{engine.name} has an output axis {axis!r} of unknown size for {axes}; export it again")

    def losses(self, text: str) -> list[str]:
        """A sentence for every encoder that does not hear the whole text.

        Raises:
            PromptError: It cannot be read.
        """
        said: list[str] = []
        for tokenizer in self._tokenizers:
            lost = tokenizer.lost(text)
            if len(lost) > SHOWN:
                lost = f"{lost[:SHOWN]}..."
            if lost:
                said.append(
                    f"prompt too long: the encoder behind {tokenizer.rules.port!r} reads {tokenizer.rules.length} "
                    f"tokens and does not hear {lost!r}"
                )
        return said


def _whole(shape: Sequence[int | str]) -> tuple[int, ...]:
    """A shape whose named axes are those of one prompt."""
    return tuple(size if isinstance(size, int) else 1 for size in shape)


def _bytes(encoded: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in encoded.values())


def warn(message: str) -> None:
    """Warn of a prompt. Unlike `warnings.warn` it keeps no list of what was said: a server sees millions of prompts."""
    warnings.warn_explicit(message, PromptWarning, "lssgen", 0, registry=None)


def see_prompt(prompt: object) -> str:
    """A prompt, if it is one.

    Raises:
        PromptError: It is not text, or longer than `MOST_CHARACTERS`.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt is a text; a {type(prompt).__name__} came: {str(prompt)[:SHOWN]}")
    if len(prompt) > MOST_CHARACTERS:
        raise PromptError(
            f"a prompt of {len(prompt):,} characters came ({prompt[:20]!r}...); up to {MOST_CHARACTERS:,} are read, of "
            "which an encoder hears those that fit its 77 to some thousand tokens: shorten it"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # bytes of a terminal in another encoding, or half of a JSON pair
        raise PromptError(
            f"the prompt {prompt[:SHOWN]!a} is not text: character {error.start + 1} is none; write it as UTF-8"
        ) from error
    return prompt


def prompts_of(prompt: object) -> list[str]:
    """The prompts of a run: one, or several in a list.

    Raises:
        PromptError: There is none, or something else than a text.
    """
    # bytes are iterable, but as numbers: they are one prompt of a wrong kind, and refused as that.
    if isinstance(prompt, str | bytes) or not isinstance(prompt, Iterable):
        return [see_prompt(prompt)]
    prompts = [see_prompt(one) for one in cast(Iterable[object], prompt)]
    if not prompts:
        raise PromptError("no prompt was given; give at least one, which may be empty")
    return prompts


class _PortTokenizer:
    """A tokenizer with the manifest's rules for the port it feeds."""

    def __init__(self, bundle: Bundle, rules: Tokens) -> None:
        path = bundle.path(rules.file)
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"tokenizer {path} cannot be read: {error}; export the model again") from error
        # A tokenizer.json may bring its own padding and truncation, of whoever used it last; the manifest's rules
        # count.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(rules.length)
        self._several = _several_vectors(self._tokenizer)
        self.rules = rules

    def length(self, text: str) -> int:
        """Tokens the port takes for this text, filling included; refuses text that cannot be read."""
        rules, needed = self.rules, max(1, self.count(text))  # an axis of no tokens fits no graph
        return rules.length if rules.pad_to == "length" else ceil(needed / rules.pad_multiple) * rules.pad_multiple

    def count(self, text: str) -> int:
        """Tokens that are heard of a text, filling left out."""
        return len(self._encode(text).ids)

    def feed(self, text: str, length: int) -> dict[str, Array]:
        """(1, length) ids, and mask where the port has one."""
        rules = self.rules
        ids = self._encode(text).ids
        begin = length - len(ids) if rules.pad_side == "left" else 0
        row, mask = np.full((1, length), rules.pad_id, np.int64), np.zeros((1, length), np.int64)
        row[0, begin : begin + len(ids)] = ids
        mask[0, begin : begin + len(ids)] = 1
        return {rules.port: row} | ({rules.mask_port: mask} if rules.mask_port else {})

    def part(self, said: Weighted, length: int) -> Part | None:
        """The weights of a prompt's tokens where they are heard; None: nowhere."""
        rules = self.rules
        if rules.heard is None:
            return None
        own = self.length(said.text)
        for word in rules.removes:
            said = said.with_words(word, "")
        for word, words in self._several_in(said.text):
            said = said.with_words(word, words)
        kept = self._encode(said.text)
        found = token_weights(said, kept.offsets, kept.special_tokens_mask, len(rules.prefix))
        weights, left = np.ones(own), rules.pad_side == "left"
        begin = own - len(found) if left else 0
        weights[begin : begin + len(found)] = found
        return Part(rules.heard, length - own if left else 0, weights[rules.drop :])

    def lost(self, text: str) -> str:
        """The end of the text that is cut off."""
        text = self._with_several(text)
        kept = self._encode(text)
        if not kept.overflowing:
            return ""
        # The largest and not the last: special tokens at the end have the offset 0.
        heard = max(end for _, end in kept.offsets) - len(self.rules.prefix)
        return text[max(0, heard) :].strip()

    def _with_several(self, text: str) -> str:
        """A text without the words that are removed, in which every word that stands for several vectors is followed by
        those of the others.

        Equal to diffusers' maybe_convert_prompt; once done, doing it again changes nothing.
        """
        for word in self.rules.removes:
            text = text.replace(word, "")
        for word, words in self._several_in(text):
            text = text.replace(word, words)
        return text

    def _several_in(self, text: str) -> list[tuple[str, str]]:
        # Most tokenizers have no such words, and tokenizing a second time only to look for them would cost as much
        # again.
        if not self._several:
            return []
        met = set(self._encode_as_it_is(text).tokens)
        return [(word, words) for word, words in self._several.items() if word in met and words not in text]

    def _encode(self, text: str) -> Encoding:
        return self._encode_as_it_is(self._with_several(text))

    def _encode_as_it_is(self, text: str) -> Encoding:
        try:
            said = f"{self.rules.prefix}{text or self.rules.empty}{self.rules.suffix}"
            return self._tokenizer.encode(said, add_special_tokens=self.rules.special)
        except (TypeError, UnicodeError) as error:
            raise PromptError(f"prompt {text!r} cannot be read: {error}") from error


def _several_vectors(tokenizer: Tokenizer) -> dict[str, str]:
    """Words of embeddings with several vectors, "<cat>", and the words that they stand for, "<cat> <cat>_1 <cat>_2"."""
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    found: dict[str, str] = {}
    for word in added:
        further = list(takewhile(added.__contains__, (f"{word}_{number}" for number in count(1))))
        if further:
            found[word] = " ".join([word, *further])
    return found
