"""Estimates are asked for by many threads while one measures."""

from typing import Any

from lssgen.plan import NetworkCost
from lssgen.serving.times import Call, StepTimes


class Forgetful(dict[Any, Any]):
    """A dictionary that somebody else clears at the worst of moments."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self.clear()


def test_a_guess_survives_a_measurement_that_comes_meanwhile() -> None:
    times = StepTimes(NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0))
    times._guessed = Forgetful()
    times.note(Call("step", 8, 8), 0.1)
    assert times.seconds(Call("step", 16, 16)) == 0.4
