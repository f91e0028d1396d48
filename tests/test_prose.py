"""What prose in the code promises: attributes are named by nouns, and refusals say what a thing is not."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lssgen"
MODULES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}

# fmt: off
NO_NOUNS = frozenset((
    "As", "At", "By", "For", "From", "How", "If", "In", "Is", "Of", "On", "That", "Those", "To", "Up", "What", "When",
    "Where", "Whether", "Which", "With",
))
# fmt: on
"""First words that make half a sentence of an attribute's text: "Of the picture" of what?"""

IS_NO = re.compile(r"\b(is|are) no (?!longer|more|larger|smaller|reason)")
THERE = re.compile(r"\b[Tt]here (is|are) no ")


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts below "Attributes:"."""
    inside = False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            inside = line == "Attributes:"
        elif inside and (entry := re.match(r" {4}(\S[^:]*): (.+)", line)):
            yield entry[1], entry[2]


def _constants(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Names of values that have a docstring of their own, and these."""
    for value, text in pairwise(body):
        match value, text:
            case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(words))):
                yield ast.unparse(value).split(" ")[0].rstrip(":"), words
            case _:
                pass


def _described(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.Module):
            yield from _attributes(ast.get_docstring(node) or "")
            yield from _constants(node.body)


@pytest.mark.parametrize("name", MODULES)
def test_what_describes_a_value_begins_with_a_noun(name: str) -> None:
    halves = [f"{value}: {text}" for value, text in _described(MODULES[name]) if re.split(r"\W", text)[0] in NO_NOUNS]
    assert not halves, "\n".join(halves)


@pytest.mark.parametrize("name", MODULES)
def test_a_thing_is_said_not_to_be_another_rather_than_to_be_none(name: str) -> None:
    lines = MODULES[name].read_text().splitlines()
    found = [line for line in lines if IS_NO.search(THERE.sub("", line))]
    assert not found, "\n".join(found)
