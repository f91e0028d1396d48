"""docs/serving.md: its examples run in order as they stand, and its tables name what there is."""

import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest

from lssgen.bundle import Bundle
from lssgen.serving import ServerOptions
from lssgen.serving.api import RefusalCode
from lssgen.serving.options import Rank
from lssgen.serving.status import Phase

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = PAGE.partition("## How work is done")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)


def test_the_examples_run_in_order(demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(demo.folder, tmp_path / "home" / "bundles" / "demo")
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"example {number} of serving.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"^done \d+$", said, re.MULTILINE)
    for line in ("invalid_value size", "[9, 7]", "['small', 'other']"):
        assert line in said
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "star.png", "small-0.png", "small-1.png", "square-0.png", "square-1.png",
    }  # fmt: skip


def test_every_code_rule_and_phase_is_on_the_page() -> None:
    for word in (*get_args(RefusalCode), *get_args(Rank), *get_args(Phase)):
        assert f"`{word}`" in PAGE, word


def test_the_limits_on_the_page_are_those_of_the_options() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]*) \| ", PAGE.partition("| limit | default |")[2], re.MULTILINE)
    assert rows[0][0].startswith("`most_requests`")
    options = ServerOptions()
    for words, values in rows[:5]:
        for word, value in zip(re.findall(r"`(\w+)`", words), values.split(", "), strict=True):
            base, _, power = value.partition("^")
            if base.isdecimal():
                assert getattr(options, word) == int(base) ** int(power or 1), word
            else:
                assert word in ServerOptions.__dataclass_fields__


def test_the_tests_that_the_page_names_are_there() -> None:
    for name in re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py)`", PAGE):
        assert (ROOT / name).exists() or (ROOT / "tests" / "serving" / name).exists(), name
