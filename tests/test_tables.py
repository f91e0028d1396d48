"""Pages that are made from records, results and docstrings say what those say."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    ("page", "script"),
    [
        ("families.md", "make_tables.py"),
        ("full_size.md", "make_full_size.py"),
        ("api.md", "make_api.py"),
        ("schedulers.md", "make_schedulers.py"),
        ("upsampler_numbers.md", "make_upsamplers.py"),
    ],
)
def test_the_page_is_current(page: str, script: str) -> None:
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == runpy.run_path(str(DOCS / script))["page"](), f"run: python docs/{script}"
