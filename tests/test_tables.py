"""Pages that are made from records and results say what those say."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(("page", "script"), [("families.md", "make_tables.py"), ("full_size.md", "make_full_size.py")])
def test_the_page_is_current(page: str, script: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == runpy.run_path(str(DOCS / script))["page"](), f"run: python docs/{script}"
