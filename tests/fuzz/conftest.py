"""Fuzz targets print what became of their inputs."""

from collections.abc import Generator

import pytest
from hostile import Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Generator[Tally]:
    """Counts of a target, which are printed at its end whatever pytest captures."""
    counts = Tally(request.node.name.removeprefix("test_").replace("_", " "))
    yield counts
    with capsys.disabled():
        print(f"\n{counts}")
