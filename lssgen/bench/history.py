"""Numbers over time: a line of JSON a measurement, a curve, and where its level has changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lssgen.bench.environment import Environment
from lssgen.bench.results import BenchResult
from lssgen.errors import BenchError
from lssgen.jsons import JsonError, decode_json, read_bytes

LEAST_POINTS = 8
"""Points that a curve needs before anything is said about it."""

LEAST_CHANGE = 0.02
"""Change of level, as a share, below which a step is not told."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one case.

    Attributes:
        written: Time in UTC.
        version: Version of lssgen.
        label: Name of the state of the code, such as a commit.
        bundle, engine, case: Things that were measured.
        machine: Processor or GPU. Curves of different machines are different curves.
        image_latency_ms: Median for one picture.
        image_throughput: Pictures a second.
    """

    written: str
    version: str
    label: str = ""
    bundle: str
    engine: str
    case: str
    machine: str
    image_latency_ms: float
    image_throughput: float

    @property
    def curve(self) -> tuple[str, str, str, str]:
        """What must be equal for two points to lie on one curve."""
        return self.bundle, self.engine, self.case, self.machine


@dataclass(frozen=True, slots=True)
class Change:
    """A step in a curve.

    Attributes:
        at: First point of the new level.
        before, after: Medians of the levels, in milliseconds.
    """

    at: Point
    before: float
    after: float

    def __str__(self) -> str:
        where = self.at.label or self.at.version
        share = 100 * (self.after / self.before - 1)
        return f"{share:+.1f} % from {self.before:.3g} to {self.after:.3g} ms at {self.at.written} ({where})"


def points_of(result: BenchResult, label: str = "") -> list[Point]:
    """The points that a measurement adds."""
    facts = result.environment
    return [
        Point(
            written=facts.written,
            version=facts.software.get("lssgen", "unknown"),
            label=label,
            bundle=result.bundle["name"],
            engine=result.engine,
            case=case.name,
            machine=machine_of(facts),
            image_latency_ms=case.image_latency_ms.p50,
            image_throughput=case.image_throughput.p50,
        )
        for case in result.cases
    ]


def machine_of(facts: Environment) -> str:
    """What a curve belongs to: the GPU, or else the processor and its cores."""
    return facts.machine.get("gpu.uuid") or f"{facts.machine['cpu']} x {facts.machine['cores']}"


def append(points: Sequence[Point], path: Path) -> None:
    """Add points to a history; one write, so that two writers do not mix their lines.

    Raises:
        BenchError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"".join(msgspec.json.encode(point) + b"\n" for point in points))
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def read_history(path: Path) -> list[Point]:
    """All points, in the order in which they were added. A last line that was cut off is left out.

    Raises:
        BenchError: The file cannot be read, or a line in its middle is damaged; says which.
    """
    try:
        lines = read_bytes(path).split(b"\n")
    except JsonError as error:
        raise BenchError(f"{path} {error}; make one with lssgen bench BUNDLE --history {path.name}") from error
    found: list[Point] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                found.append(decode_json(line, Point))
        except JsonError as error:
            if number == len(lines):  # no newline after it: its writer was killed
                continue
            raise BenchError(f"line {number} of {path} is damaged: it {error}; remove that line") from error
    return found


def curves(points: Sequence[Point]) -> dict[tuple[str, str, str, str], list[Point]]:
    """Points by curve, in order."""
    found: dict[tuple[str, str, str, str], list[Point]] = {}
    for point in points:
        found.setdefault(point.curve, []).append(point)
    return found


def changes(points: Sequence[Point]) -> list[Change]:
    """Where the level of one curve has changed: PELT on log latencies, with a penalty from their own noise.

    Raises:
        BenchError: Too few points, or ruptures is not installed.

    Source: Killick, Fearnhead and Eckley 2012, as in ruptures.
    """
    if len(points) < LEAST_POINTS:
        raise BenchError(f"{len(points)} points say nothing about changes; measure {LEAST_POINTS} times or more")
    try:
        import ruptures
    except ImportError as error:
        raise BenchError('change points need ruptures: pip install "lssgen[bench]"') from error
    logs = np.asarray([log(point.image_latency_ms) for point in points])
    # Of neighbours, whose difference a step hardly touches; 1e-6: equal numbers have no noise.
    variance = max(float(np.median(np.diff(logs) ** 2)) / (2 * 0.455), 1e-6)
    model: Any = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(logs[:, None])
    ends = [0, *model.predict(pen=3 * variance * log(len(logs)))]
    levels = [float(np.exp(np.median(logs[begin:end]))) for begin, end in pairwise(ends)]
    found = [Change(points[end], *ms) for end, ms in zip(ends[1:-1], pairwise(levels), strict=True)]
    return [change for change in found if abs(change.after / change.before - 1) >= LEAST_CHANGE]


def plot_history(points: Sequence[Point], path: Path) -> None:
    """One curve with its changes.

    Raises:
        BenchError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise BenchError('plots need matplotlib: pip install "lssgen[bench]"') from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(range(len(points)), [point.image_latency_ms for point in points], "o-", markersize=3)
    for change in changes(points) if len(points) >= LEAST_POINTS else []:
        axes.axvline(points.index(change.at) - 0.5, color="C3", linestyle=":")
    axes.set(xlabel="measurement", ylabel="median milliseconds", title=" / ".join(points[0].curve[:3]))
    figure.savefig(path, dpi=150)
    plt.close(figure)
