"""Prompts to conditioning: the bundle's tokenizers, padded as the manifest says, then its text graph."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import ceil

import numpy as np
from tokenizers import Encoding, Tokenizer

from lssgen.bundle import Bundle, Tokens
from lssgen.engines.base import Backend, Buffer, Engine
from lssgen.errors import BundleError, PromptError
from lssgen.ports import Array

Lengths = tuple[int, ...]
"""Tokens that a prompt fills up to, one number a tokenizer."""


SHOWN = 80
"""Characters of a prompt's lost end that a warning repeats."""


class PromptWarning(UserWarning):
    """A prompt that is not heard in full."""


class TextEncoder:
    """Encodes one prompt at a time, so that nothing depends on the company a prompt is encoded in.

    Args:
        bundle: Its tokenizers and its "text" graph are used.
        backend: Where the graph runs.
        graph: Gives the loaded graph of a name.
        remember: Encoded prompts to keep.

    Raises:
        BundleError: A tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, backend: Backend, graph: Callable[[str], Engine], *, remember: int = 64) -> None:
        self._tokenizers = tuple(_PortTokenizer(bundle, tokens) for tokens in bundle.manifest.tokenizers)
        self._manifest = bundle.manifest
        self._backend = backend
        self._graph = graph
        self._remember = remember
        self._known: OrderedDict[tuple[str, Lengths], Mapping[str, Array]] = OrderedDict()
        self._warned: set[str] = set()

    def lengths(self, text: str) -> Lengths:
        """How many tokens the prompt needs in each tokenizer, filling included."""
        return tuple(tokenizer.length(text) for tokenizer in self._tokenizers)

    def encode(self, text: str, lengths: Lengths) -> Mapping[str, Array]:
        """The prompt's conditioning, port by port, without a batch axis.

        Args:
            text: Any text; the empty one too.
            lengths: At least `self.lengths(text)`: what to fill up to.

        Raises:
            BundleError: The text graph does not fit the manifest.
        """
        key = (text, lengths)
        if key not in self._known:
            self._known[key] = self._run(text, lengths)
            if len(self._known) > self._remember:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _run(self, text: str, lengths: Lengths) -> Mapping[str, Array]:
        engine = self._graph("text")
        feed: dict[str, Array] = {}
        for tokenizer, length in zip(self._tokenizers, lengths, strict=True):
            feed |= tokenizer.feed(text, length)
        if text not in self._warned:
            self._warned.add(text)
            self._warn_of_loss(text)
        axes: dict[str, int] = {}
        buffers: dict[str, Buffer] = {}
        for port in engine.inputs:
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

    def _size(self, engine: Engine, axis: str, axes: Mapping[str, int]) -> int:
        """Size of an output's axis: an input's, or the usual one when all of the inputs' are as usual."""
        usual = self._manifest.token_axes
        known = all(size == usual.get(name, size) for name, size in axes.items())
        if axis in axes or (axis in usual and known):
            return {**usual, **axes}[axis]
        raise BundleError(f"{engine.name} has an output axis {axis!r} of unknown size for {axes}; export it again")

    def _warn_of_loss(self, text: str) -> None:
        for tokenizer in self._tokenizers:
            lost = tokenizer.lost(text)
            if len(lost) > SHOWN:
                lost = f"{lost[:SHOWN]}..."
            if lost:
                warnings.warn(
                    f"prompt too long: the encoder behind {tokenizer.rules.port!r} reads {tokenizer.rules.length} "
                    f"tokens and does not hear {lost!r}",
                    PromptWarning,
                    stacklevel=2,
                )


class _PortTokenizer:
    """A tokenizer with the manifest's rules for the port it feeds."""

    def __init__(self, bundle: Bundle, rules: Tokens) -> None:
        path = bundle.path(rules.file)
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"tokenizer {path} cannot be read: {error}; export the model again") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(rules.length)
        self.rules = rules

    def length(self, text: str) -> int:
        """Tokens the port takes for this text, filling included; refuses text that cannot be read."""
        rules, needed = self.rules, max(1, len(self._encode(text).ids))
        return rules.length if rules.pad_to == "length" else ceil(needed / rules.pad_multiple) * rules.pad_multiple

    def feed(self, text: str, length: int) -> dict[str, Array]:
        """(1, length) ids, and mask where the port has one."""
        rules = self.rules
        ids = self._encode(text).ids
        begin = length - len(ids) if rules.pad_side == "left" else 0
        row, mask = np.full((1, length), rules.pad_id, np.int64), np.zeros((1, length), np.int64)
        row[0, begin : begin + len(ids)] = ids
        mask[0, begin : begin + len(ids)] = 1
        return {rules.port: row} | ({rules.mask_port: mask} if rules.mask_port else {})

    def lost(self, text: str) -> str:
        """The end of the text that is cut off."""
        kept = self._encode(text)
        return text[max(end for _, end in kept.offsets) :].strip() if kept.overflowing else ""

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text)
        except (TypeError, UnicodeError) as error:
            raise PromptError(f"prompt {text!r} cannot be read: {error}") from error
