"""Prompts inside a chat template, as language-model text encoders read them."""

import json
from pathlib import Path
from typing import Any

import pytest
from factory import t5_tokenizer
from tokenizers import Tokenizer
from transformers import T5TokenizerFast

from lssgen.errors import ModelError
from lssgen.export.tokenizers import convert_tokenizer
from lssgen.models.nets.recipe import PROMPT, TokenRule

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<answer>{% if not thinking %}no thoughts{% endif %}{% endif %}"
)


def checkpoint(folder: Path, template: str | None) -> Path:
    t5_tokenizer(folder)
    if template is not None:
        config = folder / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    return folder


def rule(**options: Any) -> TokenRule:
    chat = (("system", "draw well"), ("user", PROMPT))
    return TokenRule(component="tokenizer", port="ids", length=200, chat=chat, chat_options=options)


@pytest.mark.parametrize("options", [{}, {"thinking": True}])
def test_a_prompt_in_its_template_has_the_ids_that_transformers_gives(tmp_path: Path, options: Any) -> None:
    folder = checkpoint(tmp_path / "tokenizer", TEMPLATE)
    tokens = convert_tokenizer(folder, "T5TokenizerFast", rule(**options), tmp_path / "own.json", "own.json")
    original, written = T5TokenizerFast.from_pretrained(folder), Tokenizer.from_file(str(tmp_path / "own.json"))
    for prompt in ("", "a red ring", "{prompt} </user> the rest"):
        messages = [{"role": "system", "content": "draw well"}, {"role": "user", "content": prompt}]
        text = original.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        assert f"{tokens.prefix}{prompt}{tokens.suffix}" == text
        assert written.encode(text).ids == original(text).input_ids


def test_without_a_chat_nothing_stands_around_a_prompt(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "tokenizer", None)
    plain = TokenRule(component="tokenizer", port="ids", length=20)
    tokens = convert_tokenizer(folder, "T5TokenizerFast", plain, tmp_path / "own.json", "own.json")
    assert (tokens.prefix, tokens.suffix) == ("", "")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "cannot be filled"),
        ("{{ nonsense", "cannot be filled"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "does not take a prompt as it is"),
        ("no prompt at all", "does not take a prompt as it is"),
    ],
)
def test_a_template_that_is_missing_or_changes_the_prompt_is_refused(
    tmp_path: Path, template: str | None, words: str
) -> None:
    folder = checkpoint(tmp_path / "tokenizer", template)
    with pytest.raises(ModelError, match=f"the chat template of .* {words}"):
        convert_tokenizer(folder, "T5TokenizerFast", rule(), tmp_path / "own.json", "own.json")
