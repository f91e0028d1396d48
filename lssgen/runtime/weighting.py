"""Marks in a prompt that weigh its words, as two well-known programs read them, and what the weights do.

    a1111     (red) 1.1, (red:1.3) 1.3, [red] 1 / 1.1; nested ones multiply, \\( is a bracket; one that is not closed
              counts to the end. Every token's row is multiplied, then all rows, so that their mean is what it was.
    comfyui   (red) 1.1 times what is around it, (red:1.3) 1.3 whatever is around it, \\( is a bracket. Every token's
              row moves along the line from the empty prompt's: empty + weight * (row - empty).

Rows are those of the text graph's output that the manifest says a tokenizer's tokens are heard in (`Tokens.heard`);
summaries of the whole prompt stay as they are. The prompt without its marks is tokenized as a whole, so that a prompt
whose weights are all 1 is heard as the same text without marks; both programs tokenize what is between two marks by
itself, which differs where a mark stands within a word. A token across a mark has the mean weight of its letters.

Source: AUTOMATIC1111/stable-diffusion-webui, modules/prompt_parser.py and modules/sd_emphasis.py; ComfyUI,
comfy/sd1_clip.py.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lssgen.errors import PromptError
from lssgen.manifest import Heard
from lssgen.ports import Array

Weighting = Literal["none", "a1111", "comfyui"]
"""Rules by which marks in a prompt weigh its words; "none" reads them as any other text."""

STRONGER = 1.1
"""Weight of a bracket without a number."""

LARGEST = 1000.0
"""Weight, or its opposite, above which no picture is left."""

DEEPEST = 100
"""Brackets within each other."""


@dataclass(frozen=True, slots=True)
class Weighted:
    """A prompt without its marks.

    Attributes:
        text: Prompt as the tokenizers get it.
        weights: (characters,), one a character.
    """

    text: str
    weights: NDArray[np.float64]

    @property
    def is_plain(self) -> bool:
        """Whether nothing has another weight than 1."""
        return bool((self.weights == 1).all())

    def with_words(self, word: str, words: str) -> "Weighted":
        """The same with a word wherever it stands replaced, the weight being that of its first character."""
        texts: list[str] = []
        weights: list[NDArray[np.float64]] = []
        begin = 0
        while (found := self.text.find(word, begin)) >= 0:
            texts += [self.text[begin:found], words]
            weights += [self.weights[begin:found], np.full(len(words), self.weights[found])]
            begin = found + len(word)
        return Weighted("".join([*texts, self.text[begin:]]), np.concatenate([*weights, self.weights[begin:]]))


def weighted(prompt: str, weighting: Weighting) -> Weighted:
    """Read a prompt's marks.

    Raises:
        PromptError: A weight is not a number, or no picture would be left of it; or brackets are nested too deeply.
    """
    if weighting == "none":
        return Weighted(prompt, np.ones(len(prompt)))
    found = _a1111(prompt) if weighting == "a1111" else _comfyui(prompt)
    if not (np.abs(found.weights) <= LARGEST).all():
        raise PromptError(f"prompt {prompt[:80]!r} has a weight beyond {LARGEST:g}; usual ones lie in 0 to 2")
    return found


# Alternatives in this order: an escaped bracket before a lone backslash, and ":1.3)" before ")" and ":".
_A1111 = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:")


def _a1111(prompt: str) -> Weighted:
    pieces: list[str] = []
    length = 0
    begun: dict[str, list[int]] = {"(": [], "[": []}
    spans: list[tuple[int, int | None, float]] = []
    for match in _A1111.finditer(prompt):
        mark, number, written = match[0], match[1], ""
        if mark in begun:
            begun[mark].append(length)
        elif begun["("] and number is not None:
            spans.append((begun["("].pop(), length, _number(number, prompt)))
        elif begun["("] and mark == ")":
            spans.append((begun["("].pop(), length, STRONGER))
        elif begun["["] and mark == "]":
            spans.append((begun["["].pop(), length, 1 / STRONGER))
        else:
            # A closing mark that nothing was opened for is text, as in the webui.
            written = mark.removeprefix("\\")
        pieces.append(written)
        length += len(written)
    spans += [(begin, None, factor) for mark, factor in (("(", STRONGER), ("[", 1 / STRONGER)) for begin in begun[mark]]
    weights = np.ones(length)
    with np.errstate(over="ignore"):  # what grows beyond all bounds is refused
        for begin, end, factor in spans:
            weights[begin:end] *= factor
    return Weighted("".join(pieces), weights)


_BRACKETS = {"\\(": "\ue000", "\\)": "\ue001"}
"""Characters of no meaning that stand for brackets which are not marks."""


def _comfyui(prompt: str) -> Weighted:
    text = prompt
    for written, hidden in _BRACKETS.items():
        text = text.replace(written, hidden)
    parts = list(_comfyui_parts(text, 1.0, prompt, 0))
    plain = "".join(part for part, _ in parts)
    for written, hidden in _BRACKETS.items():
        plain = plain.replace(hidden, written[1])
    weights = [np.full(len(part), weight) for part, weight in parts]
    return Weighted(plain, np.concatenate([np.ones(0), *weights]))


def _comfyui_parts(text: str, weight: float, prompt: str, depth: int) -> Iterable[tuple[str, float]]:
    if depth > DEEPEST:
        raise PromptError(f"prompt {prompt[:80]!r} has brackets nested more than {DEEPEST} deep")
    for part in _groups(text):
        # A bracket that is not closed is text to ComfyUI, which the webui counts to the end.
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            yield part, weight
            continue
        inner, inner_weight = part[1:-1], weight * STRONGER
        colon = inner.rfind(":")
        # As ComfyUI: what begins with a colon, or has none, has no weight of its own.
        if colon > 0 and _is_number(inner[colon + 1 :]):
            inner, inner_weight = inner[:colon], _number(inner[colon + 1 :], prompt)
        yield from _comfyui_parts(inner, inner_weight, prompt, depth + 1)


def _groups(text: str) -> Iterable[str]:
    """The text cut where outer brackets begin and end."""
    begin = depth = 0
    for place, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and place > begin:
                yield text[begin:place]
                begin = place
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[begin : place + 1]
                begin = place + 1
    if begin < len(text):
        yield text[begin:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, prompt: str) -> float:
    if not _is_number(text) or not isfinite(float(text)):
        raise PromptError(f"weight {text.strip()!r} in prompt {prompt[:80]!r} is not a number; write (red:1.3)")
    return float(text)


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens of one tokenizer.

    Attributes:
        heard: Place in an output of the text graph where they are heard.
        first: Row of the first of them there, of those that fill up too.
        weights: (tokens,) of the prompt's own length, filling included: others' filling has no say.
    """

    heard: Heard
    first: int
    weights: NDArray[np.float64]

    def of(self, states: Array) -> Array:
        """The rows and columns of an output, without a batch axis, that are these tokens'; a view."""
        begin = self.heard.row + self.first
        first, last = self.heard.columns or (0, states.shape[1])
        return states[begin : begin + len(self.weights), first:last]


def token_weights(
    text: Weighted, offsets: Sequence[tuple[int, int]], special: Sequence[int], skipped: int
) -> NDArray[np.float64]:
    """(tokens,) weights of a prompt's tokens: the mean of their letters'.

    Args:
        text: The prompt.
        offsets: Begin and end of every token in characters.
        special: 1 for tokens that no text stands for, which have the weight 1.
        skipped: Characters before the prompt: those of a chat template.
    """
    weights = np.ones(len(offsets))
    # Tokens of words often hold the space before them, which may lie on the other side of a mark: it has no say.
    solid = np.asarray([not letter.isspace() for letter in text.text], bool)
    for token, ((begin, end), is_special) in enumerate(zip(offsets, special, strict=True)):
        first, last = max(begin - skipped, 0), max(end - skipped, 0)
        letters = text.weights[first:last][solid[first:last]]
        if not is_special and letters.size:
            weights[token] = letters.mean()
    return weights


def multiplied(states: Array, part: Part) -> None:
    """A1111's rule, in place, for the (rows, columns) of an output.

    Raises:
        PromptError: The weights leave nothing whose mean could be restored.
    """
    rows = part.of(states)
    # In float64: means near zero, of numbers of both signs, would lose their digits in a float32 sum.
    before = rows.mean(dtype=np.float64)
    rows *= part.weights[:, None].astype(rows.dtype)
    after = rows.mean(dtype=np.float64)
    if after == 0 or not isfinite(scale := before / after):
        raise PromptError("the prompt's weights leave nothing of it; use usual ones, in 0 to 2")
    rows *= rows.dtype.type(scale)


def moved(states: Array, empty: Array, part: Part) -> None:
    """ComfyUI's rule, in place, for the (rows, columns) of an output and the same of the empty prompt."""
    rows, none = part.of(states), part.of(empty)
    # Rows of weight 1 stay as they are to the last bit, which empty + (row - empty) is not.
    change = part.weights != 1
    rows[change] = none[change] + part.weights[change, None].astype(rows.dtype) * (rows[change] - none[change])


_WEIGHTS = "prompt_weighting ('a1111' or 'comfyui') weighs words"
_LORA = "lssgen export --lora merges a LoRA in"
_EMBEDDING = "lssgen export --embedding takes an embedding in, whose word then stands by itself"
_NONE = "parts of a prompt, alternatives and schedules are not offered"

_ROUND = re.compile(r"\([^()]*:\s*[+-]?[.\d]+\s*\)|\(\([^()]+\)\)")
_SQUARE = re.compile(r"\[[^\[\]]+\]")
_SCHEDULE = re.compile(r"\[[^\[\]]*[:|][^\[\]]*\]")
# A bare word needs two letters and two signs to be Compel's: C++, or a dash at a word's end, is text.
_COMPEL = re.compile(r"\([^()]*\)(?:\+{1,9}|-{1,9}|\d?\.\d+)(?![\w.])|\b\w{2,}(?:\+{2,9}|-{2,9})(?=[\s,.)]|$)")
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>", re.IGNORECASE)
_WORD = re.compile(r"\bembedding:[\w.-]+", re.IGNORECASE)
_PARTS = re.compile(r"\bBREAK\b|\{[^{}|]*\|[^{}]*\}")
_AND = re.compile(r"\bAND\b")

_READ: dict[Weighting, tuple[re.Pattern[str], ...]] = {
    "none": (),
    "a1111": (_ROUND, _SQUARE),
    "comfyui": (_ROUND, _SQUARE, _SCHEDULE),  # square brackets are text to ComfyUI too
}


def read_literally(prompts: Iterable[str], weighting: Weighting) -> str:
    """A sentence about the marks of other programs that are read as text here; empty if there are none."""
    found: dict[str, str] = {}
    for prompt in prompts:
        for pattern, advice in _marks(prompt, weighting):
            for match in pattern.finditer(prompt):
                found.setdefault(match[0], advice)
    if not found:
        return ""
    shown = ", ".join(repr(mark[:40]) for mark in list(found)[:5]) + (", ..." if len(found) > 5 else "")
    return f"read as plain text: {shown}; {'; '.join(dict.fromkeys(found.values()))}"


def _marks(prompt: str, weighting: Weighting) -> Iterable[tuple[re.Pattern[str], str]]:
    marks = [(_ROUND, _WEIGHTS), (_SQUARE, _WEIGHTS), (_COMPEL, _WEIGHTS), (_TAG, _LORA), (_WORD, _EMBEDDING)]
    marks += [(_PARTS, _NONE)]
    if weighting == "a1111":
        marks.append((_SCHEDULE, _NONE))
    if prompt != prompt.upper():  # in capitals, AND is a word like any other
        marks.append((_AND, _NONE))
    return [(pattern, advice) for pattern, advice in marks if pattern not in _READ[weighting]]
