"""Embeddings (textual inversion): words whose vectors somebody has trained, added to a checkpoint's text encoders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.config import Embedding
from lssgen.export.stored import PLAIN, Stored, read_header

BY_KEY: Mapping[str, str] = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Encoder that a tensor is for, by its name in files for several."""

T5_KEYS = frozenset(("t5xxl", "t5"))

NAMELESS = frozenset((*BY_KEY, *T5_KEYS, "emb_params", "*", "string_to_param.*"))
"""Keys that are not words; any other is diffusers', which saves the word as the key."""

TABLE = "token_embedding.weight"
"""End of the key of CLIP's table of embeddings."""

PICKLED = (".pt", ".bin", ".pth", ".ckpt")

MOST = 75
"""Vectors of a word: as many as a prompt has room for."""

LONGEST = 100
"""Characters of a word."""

OTHERWISE = "call it otherwise, with --embedding FILE:WORD"


@dataclass(frozen=True, slots=True)
class Word:
    """A word that a text encoder learns.

    Attributes:
        text: Letters that one writes in a prompt.
        vectors: (count, width) float32, its embeddings, read one after the other.
    """

    text: str
    vectors: Tensor

    @property
    def pieces(self) -> tuple[str, ...]:
        """Tokens that it becomes, in diffusers' names: the word itself, then with numbers."""
        return (self.text, *(f"{self.text}_{number}" for number in range(1, len(self.vectors))))


@dataclass(frozen=True, slots=True)
class Taught:
    """What a text encoder has learned.

    Attributes:
        words: Words in the order of their ids.
        first: Id of the first of their tokens.
    """

    words: tuple[Word, ...]
    first: int

    @property
    def end(self) -> int:
        """Smallest number of ids that has room for all of them."""
        return self.first + sum(len(word.vectors) for word in self.words)

    def table_in(self, part: str, stored: Mapping[str, Stored]) -> Mapping[str, Stored]:
        """The encoder's table of embeddings with the new rows, by its name.

        Raises:
            ModelError: There is none.
        """
        keys = [key for key in stored if key.startswith(f"{part}.") and key.endswith(TABLE)]
        if len(keys) != 1:
            raise ModelError(f"{part} has no {TABLE} among its weights, so it cannot learn a word")
        rows = torch.cat([word.vectors for word in self.words])
        return {keys[0]: extended(stored[keys[0]], self.first, rows)}


@dataclass(frozen=True, slots=True)
class Extended(Stored):
    """A table of embeddings with rows that are not in its file, float32.

    Attributes:
        table: Place of the table as it is in the file.
        at: First of the new rows, at most at the table's end.
        rows: (count, width) float32.
    """

    table: Stored
    at: int
    rows: Tensor

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        stop = prod(self.shape) if stop is None else stop
        found = torch.zeros(stop - start)
        # In pieces, as `Weights.slabs` reads: each may lie in the old rows, in the new ones, or across.
        old = min(stop, prod(self.table.shape))
        if start < old:
            found[: old - start] = self.table.read(start, old).float()
        values, first = self.rows.flatten(), self.at * self.shape[1]
        begin, end = max(start, first), min(stop, first + values.numel())
        if begin < end:
            found[begin - start : end - start] = values[begin - first : end - first]
        return found


def extended(table: Stored, at: int, rows: Tensor) -> Extended:
    """The table with rows from `at` on, longer where that is needed."""
    shape = (max(table.shape[0], at + len(rows)), table.shape[1])
    return Extended(table.file, table.offset, 4 * prod(shape), torch.float32, shape, table, at, rows)


def read_embedding(embedding: Embedding, widths: Mapping[str, int]) -> Mapping[str, tuple[Word, ...]]:
    """The words of a file, by text encoder.

    Args:
        embedding: The file, and what its words are to be called.
        widths: Numbers in a vector of each of the checkpoint's text encoders that can learn words.

    Raises:
        ModelError: The file is missing, damaged or pickled, holds something else, or is for other encoders.
    """
    path = _file(embedding.path)
    tensors = _tensors(path)
    if T5_KEYS & tensors.keys():
        raise ModelError(f"{path} has vectors for T5, which learns no words here; save it with the CLIP encoders' only")
    # clip_l and clip_g are one word for two encoders; other keys are words, each for the encoder of its width.
    pairs = BY_KEY.keys() & tensors.keys()
    if pairs and len(pairs) < len(tensors):
        keys = ", ".join(sorted(tensors))[:200]
        raise ModelError(f"{path} has {keys}; expected words alone, or clip_l and clip_g alone")
    found: dict[str, list[Word]] = {}
    for key, vectors in tensors.items():
        part = BY_KEY[key] if key in BY_KEY else _encoder(path, vectors.shape[1], widths)
        if part not in widths:
            raise ModelError(f"{path} is for {key} and its like; this checkpoint has no {part} that learns words")
        if vectors.shape[1] != widths[part]:
            raise ModelError(
                f"{path} has vectors of {vectors.shape[1]} numbers in {key}; the {part} of this checkpoint has "
                f"{widths[part]}. Is it for another model?"
            )
        found.setdefault(part, []).extend(_words(path, key, vectors, embedding.words, len(tensors) > 1 and not pairs))
    return {part: tuple(words) for part, words in found.items()}


def teach(part: str, words: Iterable[Word], vocabulary: Mapping[str, int]) -> Taught:
    """The words behind the last one that a text encoder knows.

    Raises:
        ModelError: It knows one of them already, or could not tell two of them apart.
    """
    known: list[Word] = []
    for word in words:
        again = [piece for piece in word.pieces if piece in vocabulary]
        if again:
            raise ModelError(f"{part} knows the word {again[0]!r} already; {OTHERWISE}")
        for other in known:
            _tell_apart(part, word, other)
        known.append(word)
    # The tokenizer gives new words the ids from its length on.
    return Taught(tuple(known), len(vocabulary))


def notes_on(embedding: Embedding, found: Mapping[str, tuple[Word, ...]], parts: Sequence[str]) -> list[str]:
    """What the user should know about the words of a file.

    Args:
        embedding: What was asked for.
        found: Its words, by text encoder.
        parts: All text encoders that learn words.
    """
    words = {word.text: len(word.vectors) for one in found.values() for word in one}
    notes = [
        f"Embedding {embedding.path.name}: {text!r} in a prompt takes {count} token{'s' if count > 1 else ''}."
        for text, count in words.items()
    ]
    without = [part for part in parts if part not in found]
    if without:
        notes.append(
            f"Embedding {embedding.path.name} has nothing for {' and '.join(without)}: it reads the word as plain text."
        )
    plain = [text for text in words if text.isalnum()]
    if plain:
        notes.append(
            f"{plain[0]!r} is heard inside longer words too, as in diffusers; --embedding FILE:<{plain[0]}> calls it "
            "something that no word has in it."
        )
    return notes


def _tell_apart(part: str, one: Word, other: Word) -> None:
    """See that two words are not mistaken for each other.

    Raises:
        ModelError: They are the same, or one of several vectors is part of the other.
    """
    short, long = sorted((one, other), key=lambda word: len(word.text))
    # CLIP's tokenizers write everything in small letters.
    if {piece.lower() for piece in short.pieces} & {piece.lower() for piece in long.pieces}:
        raise ModelError(f"{part} would learn {one.text!r} twice; {OTHERWISE}")
    # A word of several vectors is written out wherever it stands (`tokenizers.teach_tokenizer`), within the longer one
    # too.
    if len(short.vectors) > 1 and short.text.lower() in long.text.lower():
        raise ModelError(f"{part} could not tell {short.text!r} from the one in {long.text!r}; {OTHERWISE}")


def _file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        usual = [file for file in found if file.name == "learned_embeds.safetensors"]
        if len(usual or found) != 1:
            raise ModelError(f"{path} has {len(found)} safetensors files; name the embedding that is meant")
        return (usual or found)[0]
    if path.suffix in PICKLED:
        raise ModelError(f"{path} is pickled, and reading a pickle can run code; give it as a safetensors file")
    if not path.is_file():
        raise ModelError(f"there is no embedding {path}; give a safetensors file, a folder with one, or a hub id")
    return path


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """The vectors of a file, (count, width) float32, by key."""
    try:
        stored, _ = read_header(path)
    except ModelError as error:
        raise ModelError(f"{path} cannot be read as an embedding: {error}") from error
    if not stored:
        raise ModelError(f"{path} is empty; give an embedding as a safetensors file")
    found: dict[str, Tensor] = {}
    for key, one in stored.items():
        if one.dtype not in PLAIN or len(one.shape) not in (1, 2) or 0 in one.shape:
            kind = str(one.dtype).removeprefix("torch.")
            raise ModelError(
                f"{path} is not an embedding: {key[:80]} is {kind} of shape {list(one.shape)}; expected one vector or "
                "several. A LoRA goes with --lora, a checkpoint with --model"
            )
        vectors = one.read().float().reshape(-1, one.shape[-1])
        if len(vectors) > MOST:
            raise ModelError(f"{path} has {len(vectors)} vectors in {key[:80]}; a prompt has room for {MOST}")
        if not torch.isfinite(vectors).all():
            raise ModelError(f"{path} is damaged: {key[:80]} holds NaN or infinity")
        found[key] = vectors
    return found


def _encoder(path: Path, width: int, widths: Mapping[str, int]) -> str:
    """The text encoder that vectors of a width are for, where nothing else says it."""
    found = [part for part, own in widths.items() if own == width]
    if not found:
        have = ", ".join(f"{part} {own}" for part, own in widths.items()) or "none that learns words"
        raise ModelError(
            f"{path} has vectors of {width} numbers; the text encoders of this checkpoint have other ones ({have}). "
            "Is it for another model?"
        )
    return found[0]


def _words(path: Path, key: str, vectors: Tensor, asked: tuple[str, ...], several: bool) -> list[Word]:
    """The words that the vectors of a key are, by the names asked for, or the file's own."""
    if asked and several:
        raise ModelError(f"{path} has several words of its own; give no others")
    if len(asked) > 1 and len(asked) != len(vectors):
        raise ModelError(
            f"{path} has {len(vectors)} vectors, and {len(asked)} words are asked for; one word takes them all"
        )
    if len(asked) > 1:
        return [Word(_checked(path, text), row[None]) for text, row in zip(asked, vectors, strict=True)]
    # A1111's files do not say their word; there it is the file's name.
    text = asked[0] if asked else path.stem if key in NAMELESS else key
    return [Word(_checked(path, text), vectors)]


def _checked(path: Path, text: str) -> str:
    if not text or len(text) > LONGEST or text != text.strip() or not text.isprintable():
        raise ModelError(
            f"{path} would be called {text[:40]!r} in a prompt; give a word of 1 to {LONGEST} characters, FILE:WORD"
        )
    return text
