"""docs/python.md: its examples run in order as they stand, and what it says of progress is so."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lssgen.bundle import Bundle
from lssgen.runtime import Options, Progress

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run_in_order(demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(demo.folder, tmp_path / "home" / "bundles" / "demo")
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"example {number} of python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "[100, 101, 102, 103]" in said
    assert "stopped in the second stage" in said
    assert re.search(r"multiples? of 16", said)
    written = {path.name for path in tmp_path.glob("*.png")}
    assert written >= {"star.png", "marked.png", "star-3.png", "preview-0-stage1.png"}
    assert len(names["pictures"]) == 2


def test_every_field_of_progress_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    told = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
    assert told >= {field.name for field in dataclasses.fields(Progress)}


def test_the_words_of_the_examples_exist() -> None:
    used = set(re.findall(r"\b(num_\w+|start_\w+|negative_\w+)=", PAGE))
    assert used
    assert used <= set(Options.__annotations__)
