"""Numbers over time: a line of JSON a measurement, a curve, and where its level has changed."""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from lssgen.bench.environment import Environment
from lssgen.bench.plots import see_plotting
from lssgen.bench.results import BenchResult
from lssgen.bench.summary import Measure
from lssgen.errors import BenchError
from lssgen.jsons import JsonError, decode_json, read_bytes
from lssgen.measured import how_of

LEAST_POINTS = 8
"""Points that a curve needs before anything is said about it."""

MOST_TICKS = 20
"""Points of a plot that are named below it."""

LEAST_CHANGE = 0.02
"""Change of level, as a share, below which a step is not told."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement of one case.

    Attributes:
        written: Time in UTC.
        version: Version of lssgen.
        label: Name of the state of the code, such as a commit.
        bundle, engine, case: Things that were measured; with the engine, those of its options that change its speed.
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
    image_latency_ms: Annotated[float, msgspec.Meta(gt=0)]
    image_throughput: Measure

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
            engine=_engine_of(case.backend, result.engine),
            case=case.name,
            machine=machine_of(facts),
            image_latency_ms=case.image_latency_ms.p50,
            image_throughput=case.image_throughput.p50,
        )
        for case in result.cases
    ]


def _engine_of(backend: Mapping[str, str], otherwise: str) -> str:
    """The engine as it told of itself, with what makes it faster or slower than by itself: other numbers of threads
    are another curve."""
    threads = backend.get("threads", "0")
    return backend.get("backend", otherwise) + (f", threads {threads}" if threads != "0" else "") + how_of(backend)


def machine_of(facts: Environment) -> str:
    """What a curve belongs to: the GPU, or else the processor and its cores."""
    return facts.machine.get("gpu.uuid") or f"{facts.machine['cpu']} x {facts.machine['cores']}"


def append(points: Sequence[Point], path: Path) -> None:
    """Add points to a history; one write, so that two writers do not mix their lines.

    A last line without its end, as an editor or a killed writer leaves it, gets one: it must not become one with the
    first of these.

    Raises:
        BenchError: The file cannot be written.
    """
    lines = b"".join(msgspec.json.encode(point) + b"\n" for point in points)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                lines = b"\n" + lines
            file.write(lines)
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}; choose another file") from error


def read_history(path: Path) -> list[Point]:
    """All points, in the order in which they were added. A line that was cut off is left out.

    Raises:
        BenchError: The file cannot be read, or a line is damaged otherwise; says which.
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
            if _is_cut_off(line, last=number == len(lines)):
                continue
            raise BenchError(f"line {number} of {path} is damaged: it {error}; remove that line") from error
    return found


def _is_cut_off(line: bytes, *, last: bool) -> bool:
    """Whether a line is the beginning of a point, whose writer was killed. (The next one has then ended it.)"""
    return last or (line.startswith(b'{"written":') and not line.rstrip().endswith(b"}"))


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
    see_ruptures()
    import ruptures

    logs = np.asarray([log(point.image_latency_ms) for point in points])
    # Of neighbours, whose difference a step hardly touches; 1e-6: equal numbers have no noise.
    variance = max(float(np.median(np.diff(logs) ** 2)) / (2 * 0.455), 1e-6)
    model: Any = ruptures.Pelt(model="l2", min_size=3, jump=1).fit(logs[:, None])
    ends = [0, *model.predict(pen=3 * variance * log(len(logs)))]
    levels = [float(np.exp(np.median(logs[begin:end]))) for begin, end in pairwise(ends)]
    found = [Change(points[end], *ms) for end, ms in zip(ends[1:-1], pairwise(levels), strict=True)]
    return [change for change in found if abs(change.after / change.before - 1) >= LEAST_CHANGE]


def see_ruptures() -> None:
    """See that changes can be looked for.

    Raises:
        BenchError: ruptures is not installed.
    """
    if find_spec("ruptures") is None:
        raise BenchError('change points need ruptures: pip install "lssgen[bench]"')


def plot_name(point: Point) -> str:
    """Name of the file for the plot of a point's curve: in words, and with a mark that no other curve has, since
    another machine's may have the same words."""
    words = re.sub(r"[^\w.-]+", "-", "-".join(point.curve[:3]))[:100]
    return f"{words}-{hashlib.sha256(repr(point.curve).encode()).hexdigest()[:6]}.png"


def plot_history(points: Sequence[Point], path: Path) -> None:
    """One curve with its changes.

    Raises:
        BenchError: matplotlib is not installed.
    """
    see_plotting()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(range(len(points)), [point.image_latency_ms for point in points], "o-", markersize=3)
    for change in changes(points) if len(points) >= LEAST_POINTS else []:
        at = points.index(change.at) - 0.5
        axes.axvline(at, color="C3", linestyle=":")
        share = f" {100 * (change.after / change.before - 1):+.1f} %"
        axes.text(at, 1, share, transform=axes.get_xaxis_transform(), va="top", color="C3", fontsize=8)
    shown = range(0, len(points), -(-len(points) // MOST_TICKS))
    names = [points[index].label[:12] or points[index].written[:16] for index in shown]
    axes.set_xticks(shown, names, rotation=45, ha="right", fontsize=7)
    axes.set(ylabel="median milliseconds a picture")
    axes.set_title("\n".join((", ".join(points[0].curve[:3]), points[0].machine)), fontsize=9)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
