"""Tokenizers: from a checkpoint's folder to one file that the runtime reads without transformers."""

from pathlib import Path
from typing import Any

import tokenizers
import transformers

from lssgen.bundle import Tokens
from lssgen.errors import ExportError, ModelError
from lssgen.models.nets.recipe import TokenRule

TEXTS = (
    "",
    "a red circle left of a blue square",
    "  Ümläuts, 你好, emoji 🙂 and\ttabs\n(emphasis:1.2) <|endoftext|> </s> don't  ",
    "word " * 700,
)
"""What every exported tokenizer is tried on: it must give the ids that transformers gives."""


def convert_tokenizer(folder: Path, class_name: str, rule: TokenRule, path: Path, name: str) -> Tokens:
    """Write `path`, the tokenizer of a checkpoint as the `tokenizers` library reads it, and the rule that goes with it.

    Cutting off and filling up are left to the rule; special tokens are in the file.

    Args:
        folder: The checkpoint's tokenizer.
        class_name: Its transformers class.
        path: The file to write.
        name: What the manifest calls it.

    Raises:
        ModelError: The folder has no tokenizer of that class.
        ExportError: The written file gives other ids than transformers.
    """
    try:
        original: Any = getattr(transformers, class_name).from_pretrained(folder)
        backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(original.backend_tokenizer.to_str())
    except (OSError, AttributeError, ValueError, TypeError, ImportError) as error:
        raise ModelError(f"{folder} cannot be read as a {class_name} ({error}); is the checkpoint whole?") from error
    if original.pad_token_id is None:
        raise ModelError(f"{folder} has no padding token; is its special_tokens_map.json missing?")
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(path))
    tokens = Tokens(
        port=rule.port,
        mask_port=rule.mask_port,
        file=name,
        length=rule.length,
        pad_id=int(original.pad_token_id),
        pad_to=rule.pad_to,
        pad_side=rule.pad_side,
        pad_multiple=rule.pad_multiple,
    )
    check_tokenizer(original, path, rule.length)
    return tokens


def check_tokenizer(original: Any, path: Path, length: int) -> None:
    """See that the file gives the original's ids, cut to `length`.

    Raises:
        ExportError: Shows the text and both.
    """
    written = tokenizers.Tokenizer.from_file(str(path))
    written.enable_truncation(length)
    for text in TEXTS:
        expected = original(text, truncation=True, max_length=length).input_ids
        came = written.encode(text).ids
        if came != expected:
            raise ExportError(
                f"the exported tokenizer gives other ids than transformers for {text[:40]!r}: "
                f"{came[:12]} instead of {expected[:12]}"
            )
