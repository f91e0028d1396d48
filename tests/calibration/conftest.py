"""The demo model with its ranges: measured once, by real runs."""

from pathlib import Path

import pytest
from calibrating import ranges_job

from lssgen.bundle import Bundle
from lssgen.calibration.ranges import measure_ranges
from lssgen.calibration.statistics import Statistics, read_statistics


@pytest.fixture(scope="session")
def ranges(demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's statistics file."""
    path = tmp_path_factory.mktemp("ranges") / "demo.ranges.safetensors"
    measure_ranges(ranges_job(demo, path))
    return path


@pytest.fixture
def statistics(ranges: Path) -> Statistics:
    """What is in that file; a test's own."""
    return read_statistics(ranges)
