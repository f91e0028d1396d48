"""The race of two steps: who is faster, how surely, and when to stop."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from lssgen.bundle import Bundle
from lssgen.calibration import speed as module
from lssgen.calibration.speed import MOST_ROUNDS, ROUNDS, SAME, WARM_UP, Speed, speed_of, step_speedups
from lssgen.engines.registry import open_backend


def test_the_interval_holds_the_median_of_what_the_ratios_come_from() -> None:
    """In at least 95 of 100 draws; of 2000, a share of 0.95 is known to one percent at two standard errors."""
    rng = np.random.default_rng(0)
    for size in (ROUNDS, 30, MOST_ROUNDS):
        found = [speed_of(np.exp(rng.standard_normal(size) ** 3).tolist()) for _ in range(2000)]
        assert np.mean([speed.least <= 1 <= speed.most for speed in found]) > 0.94


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float], Iterator[float]], list[str]]:
    """Races on a clock that goes by what is said, and not by time; who ran, in order."""

    def set_(before: Iterator[float], after: Iterator[float]) -> list[str]:
        ran: list[str] = []

        def timed(name: str) -> float:
            ran.append(name)
            return next(before if name == "before" else after)

        monkeypatch.setattr(module, "_call", lambda bundle, *_: bundle.folder.name)
        monkeypatch.setattr(module, "_timed", timed)
        return ran

    return set_


def pair(demo: Bundle, tmp_path: Path) -> tuple[Bundle, Bundle]:
    step = replace(demo.manifest.graphs["step"], sha256={"step.onnx": "other"})
    other = replace(demo.manifest, graphs={**demo.manifest.graphs, "step": step}, resolutions=((128, 128),))
    return Bundle(tmp_path / "before", replace(demo.manifest, resolutions=((128, 128),))), Bundle(
        tmp_path / "after", other
    )


def test_it_ends_when_it_is_clear_and_each_goes_first_in_turn(
    demo: Bundle, tmp_path: Path, clock: Callable[[Iterator[float], Iterator[float]], list[str]]
) -> None:
    ran = clock(cycle((3.0, 3.3)), cycle((2.0,)))
    found = step_speedups(*pair(demo, tmp_path), open_backend("onnxruntime", threads=1))
    assert list(found) == ["128x128"]
    assert found["128x128"].is_clear
    assert found["128x128"].least >= 1.5
    assert len(ran) == 2 * (WARM_UP + ROUNDS)
    assert ran[:4] == ["before", "after", "after", "before"]


def test_where_it_is_not_clear_there_are_more_rounds_and_it_says_so(
    demo: Bundle, tmp_path: Path, clock: Callable[[Iterator[float], Iterator[float]], list[str]]
) -> None:
    ran = clock(cycle((1.0, 2.0, 1.5)), cycle((1.4, 1.5)))
    found = step_speedups(*pair(demo, tmp_path), open_backend("onnxruntime", threads=1))["128x128"]
    assert not found.is_clear
    assert len(ran) == 2 * (WARM_UP + MOST_ROUNDS)


def test_a_graph_is_as_fast_as_itself(demo: Bundle) -> None:
    """Nothing is timed: the small step of a bundle in few bits may be what it was."""
    assert set(step_speedups(demo, demo, open_backend("onnxruntime", threads=1)).values()) == {SAME}
    assert Speed(1.0, 1.0, 1.0) == SAME
