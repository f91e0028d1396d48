"""The page of numbers is what its script makes of the results that are there."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_numbers_are_those_of_the_results() -> None:
    spec = spec_from_file_location("make_performance", ROOT / "docs" / "make_performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "performance_numbers.md").read_text() == module.page(), "python docs/make_performance.py"
