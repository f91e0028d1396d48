"""docs/families.md says what the records say."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_families_is_current() -> None:
    written = (DOCS / "families.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(DOCS / "make_tables.py"))["page"]()
    assert written == made, "run: python docs/make_tables.py"
