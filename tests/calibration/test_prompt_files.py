"""Prompts of a calibration."""

from pathlib import Path

import pytest

from lssgen.calibration.prompts import SHIPPED, read_prompts
from lssgen.errors import PromptError


def test_ours_are_many_and_all_different() -> None:
    prompts = read_prompts(SHIPPED)
    assert len(prompts) == len(set(prompts)) == 64
    assert read_prompts(most=3) == prompts[:3]


def test_a_text_has_one_a_line_and_jsonl_is_that_of_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa fox\n\n  two owls \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a fox"}\n')
    assert read_prompts(tmp_path / "a.txt") == ("a fox", "two owls")
    assert read_prompts(tmp_path / "a.jsonl") == ("a fox",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"\n \n", "hold no prompt; give a file with one prompt a line"),
        ("latin.txt", b"caf\xe9\n", "are not text in UTF-8 .byte 3.; give a file"),
        ("long.txt", b"x" * 200_000, "prompt 1 of .*long.txt: a prompt of 200,000 characters"),
        ("empty.jsonl", b"", "holds no prompts"),
        ("bad.jsonl", b'{"text": "a fox"}\n', 'line 1 of .* it has no "prompt"'),
        ("bad2.jsonl", b"a fox\n", "line 1 of .* is not a JSON object"),
    ],
)
def test_an_empty_or_malformed_file_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=said):
        read_prompts(tmp_path / name)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for name in ("none.txt", "none.jsonl"):
        with pytest.raises(PromptError, match="cannot be read"):
            read_prompts(tmp_path / name)
