"""docs/troubleshooting.md quotes what lssgen says, in its words."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)


def _said() -> str:
    """Every text in the source, one a line; where something is put into one, it ends and another begins."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "lssgen").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


SAID = _said()


@pytest.mark.parametrize("message", QUOTED)
def test_the_message_is_said_somewhere(message: str) -> None:
    pieces = [piece.strip() for piece in message.split("…")]
    missing = [piece for piece in pieces if piece and piece not in SAID]
    assert not missing, f"lssgen does not say {missing}; bring docs/troubleshooting.md up to date"


def test_most_rows_quote_a_message() -> None:
    assert len(QUOTED) > 30
