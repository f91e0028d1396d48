"""Tokenizers: from a checkpoint's folder to one file that the runtime reads without transformers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from tokenizers import normalizers

from lssgen.bundle import sha256_of
from lssgen.errors import ExportError, ModelError
from lssgen.export.embeddings import Word
from lssgen.manifest import Tokens
from lssgen.models.nets.recipe import PROMPT, TokenRule

TEXTS = (
    "",
    "a red circle left of a blue square",
    "  Ümläuts, 你好, emoji 🙂 and\ttabs\n(emphasis:1.2) <|endoftext|> </s> don't  ",
    "word " * 700,
)
"""Texts that every exported tokenizer is tried on: it must give the ids that transformers gives."""


def open_tokenizer(folder: Path, class_name: str) -> Any:
    """A checkpoint's tokenizer as transformers has it.

    Args:
        folder: Its folder.
        class_name: Its class, or that of a processor, whose tokenizer lies beside what it prepares pictures with.

    Raises:
        ModelError: The folder has no tokenizer of that class.
    """
    # The processor itself has something for pictures beside it, which may want further libraries.
    name = "AutoTokenizer" if class_name.endswith("Processor") else class_name
    try:
        return getattr(transformers, name).from_pretrained(folder)
    except (OSError, AttributeError, ValueError, TypeError, ImportError) as error:
        raise ModelError(f"{folder} cannot be read as a {class_name} ({error}); is the checkpoint whole?") from error


def convert_tokenizer(
    folder: Path, class_name: str, rule: TokenRule, path: Path, name: str, words: Sequence[Word] = ()
) -> Tokens:
    """Write `path`, the tokenizer of a checkpoint as the `tokenizers` library reads it, and the rule that goes with it.

    Cutting off and filling up are left to the rule; special tokens are in the file.

    Args:
        folder: The checkpoint's tokenizer.
        class_name: Its transformers class.
        path: The file to write.
        name: What the manifest calls it.
        words: Words that its text encoder has learned, in the order of their ids.

    Raises:
        ModelError: The folder has no tokenizer of that class.
        ExportError: The written file gives other ids than transformers.
    """
    original = open_tokenizer(folder, class_name)
    backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(original.backend_tokenizer.to_str())
    if original.pad_token_id is None:
        raise ModelError(f"{folder} has no padding token; is its special_tokens_map.json missing?")
    # Settings of whoever used it last, which the file may hold.
    backend.no_padding()
    backend.no_truncation()
    teach_tokenizer(backend, words)
    backend.save(str(path))
    prefix, suffix = chat_affixes(original, rule, folder)
    tokens = Tokens(
        port=rule.port,
        mask_port=rule.mask_port,
        file=name,
        sha256=sha256_of(path),
        length=rule.length,
        pad_id=int(original.pad_token_id),
        pad_to=rule.pad_to,
        pad_side=original.padding_side if rule.pad_side == "own" else rule.pad_side,
        pad_multiple=rule.pad_multiple,
        prefix=prefix,
        suffix=suffix,
        # As processors do it: a template that begins with the first special token has them all.
        special=not (rule.in_pieces and original.bos_token and prefix.startswith(original.bos_token)),
        removes=rule.removes,
        empty=rule.empty,
        heard=rule.heard,
        drop=rule.drop,
    )
    for word in words:
        original.add_tokens(list(word.pieces))
    check_tokenizer(original, path, rule.length, words)
    return tokens


def teach_tokenizer(backend: tokenizers.Tokenizer, words: Sequence[Word]) -> None:
    """Give new ids to words; one with several vectors becomes as many tokens, wherever a prompt has it.

    diffusers writes such a word out before it tokenizes. Here the tokenizer's normalisation does, after all else, so
    that the file is enough.
    """
    writing_out: list[normalizers.Normalizer] = [] if backend.normalizer is None else [backend.normalizer]
    for word in words:
        count = len(word.vectors)
        pieces = [word.text] if count == 1 else [f"{word.text}_{number}" for number in range(count)]
        # normalized: found in the text as CLIP sees it, in small letters.
        backend.add_tokens([tokenizers.AddedToken(piece, normalized=True) for piece in pieces])
        if count > 1:
            text, *normal = [_normal(backend, piece) for piece in (word.text, *pieces)]
            # Its pieces begin with the word and are not to be written out again.
            writing_out.append(normalizers.Replace(tokenizers.Regex(rf"{re.escape(text)}(?!_\d)"), " ".join(normal)))
    if any(len(word.vectors) > 1 for word in words):
        backend.normalizer = normalizers.Sequence(writing_out)


def _normal(backend: tokenizers.Tokenizer, text: str) -> str:
    return text if backend.normalizer is None else backend.normalizer.normalize_str(text)


def chat_affixes(original: Any, rule: TokenRule, folder: Path) -> tuple[str, str]:
    """What a chat template puts before and after the prompt.

    The template is filled once, at the export: everything but the prompt is the same for every prompt.

    Raises:
        ModelError: There is no template, it cannot be filled, or it does not leave the prompt as it is.
    """
    if not rule.chat:
        prefix, _, suffix = rule.around.partition(PROMPT)
        return prefix, suffix
    messages = [
        {"role": role, "content": [{"type": "text", "text": content}] if rule.in_pieces else content}
        for role, content in rule.chat
    ]
    try:
        text: str = original.apply_chat_template(
            messages, **{"tokenize": False, "add_generation_prompt": True, **rule.chat_options}
        )
    except Exception as error:  # templates are programs, with errors of their own
        raise ModelError(
            f"the chat template of {folder} cannot be filled: {error}; is the checkpoint whole?"
        ) from error
    # A template that trims, escapes or repeats what it is given cannot be cut in two.
    if text.count(PROMPT) != 1:
        raise ModelError(f"the chat template of {folder} does not take a prompt as it is; it makes {text!r}")
    prefix, _, suffix = text.partition(PROMPT)
    return prefix, suffix


def chat_length(original: Any, chat: Sequence[tuple[str, str]], folder: Path) -> int:
    """Number of tokens that a tokenizer's chat template makes of messages, given as (role, text).

    Raises:
        ModelError: There is no template, or it cannot be filled.
    """
    messages = [{"role": role, "content": [{"type": "text", "text": content}]} for role, content in chat]
    try:
        return len(original.apply_chat_template(messages, tokenize=True, return_dict=False))
    except Exception as error:  # templates are programs, with errors of their own
        raise ModelError(
            f"the chat template of {folder} cannot be filled: {error}; is the checkpoint whole?"
        ) from error


def check_tokenizer(original: Any, path: Path, length: int, words: Sequence[Word] = ()) -> None:
    """See that the file gives the original's ids, cut to `length`, for new words as diffusers writes them out.

    Raises:
        ExportError: Shows the text and both.
    """
    written = tokenizers.Tokenizer.from_file(str(path))
    written.enable_truncation(length)
    said = [f"A {word.text}, and {word.text}{word.text} by (the {word.text})" for word in words]
    written_out = [TextualInversionLoaderMixin().maybe_convert_prompt(text, original) for text in said]
    for text, full in zip((*TEXTS, *said), (*TEXTS, *written_out), strict=True):
        expected = original(full, truncation=True, max_length=length).input_ids
        came = written.encode(text).ids
        if came != expected:
            raise ExportError(
                f"the exported tokenizer gives other ids than transformers for {text[:40]!r}: "
                f"{came[:12]} instead of {expected[:12]}"
            )
