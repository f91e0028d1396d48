"""Whether the machine kept its pace while something was measured: clocks, and a piece of arithmetic timed now and then.

A virtual machine's kernel often shows one clock for ever, so the clock alone proves nothing: the same arithmetic is
timed too, and says so where the processor became slower or was taken away.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import numpy as np

from lssgen.bench.environment import cpu_megahertz, gpu_megahertz

LEAST_SHARE = 0.9
"""Share of the clock at the beginning below which a device has throttled."""

SLOWEST = 1.25
"""Times that the same arithmetic may take at the end as at the beginning."""

Reading = Callable[[], float | None]


@dataclass(slots=True)
class Pace:
    """Readings of the machine's pace, taken between measurements and never during one.

    Attributes:
        clocks: Functions that read a clock in MHz, by device.
        work: Seconds that a fixed piece of arithmetic takes.
        readings: Clocks that were read, by device.
        spells: Times of the arithmetic.
    """

    clocks: dict[str, Reading] = field(default_factory=lambda: {"CPU": cpu_megahertz, "GPU": gpu_megahertz})
    work: Callable[[], float] = field(default_factory=lambda: arithmetic)
    readings: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    spells: list[float] = field(default_factory=list[float])

    def look(self) -> None:
        """Take a reading of each; a clock that cannot be read is not asked again."""
        for device, read in list(self.clocks.items()):
            value = read()
            if value is None:
                del self.clocks[device]
            else:
                self.readings.setdefault(device, []).append(value)
        self.spells.append(self.work())

    def complaints(self) -> tuple[str, ...]:
        """Sentences about what was not steady; empty if all was."""
        found = [
            f"the {device}'s clock fell from {first:.0f} to {last:.0f} MHz during the run: it throttles, and these "
            "numbers are those of a hot device"
            for device, values in self.readings.items()
            for first, last in [_ends(values)]
            if last < LEAST_SHARE * first
        ]
        first, last = _ends(self.spells)
        if last > SLOWEST * first:
            found.append(
                f"the same arithmetic took {last / first:.2f} times as long at the end as at the beginning: the "
                "processor became slower, or other work took it"
            )
        return tuple(found)


def arithmetic() -> float:
    """Best of three times, in seconds, of a fixed product of matrices on one core's cache."""
    matrix = np.ones((128, 128), np.float32)
    times: list[float] = []
    for _ in range(3):
        began = perf_counter()
        for _ in range(8):
            np.matmul(matrix, matrix)
        times.append(perf_counter() - began)
    return min(times)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Medians of the first and of the last third; both 1 where nothing was read."""
    if not values:
        return 1.0, 1.0
    part = max(len(values) // 3, 1)
    return median(values[:part]), median(values[-part:])
