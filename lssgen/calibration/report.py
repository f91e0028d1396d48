"""What a calibration found, for people: where stages differ, as a table and a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lssgen.calibration.statistics import Statistics
from lssgen.durable import whole_file
from lssgen.models.quantisation import sensitivity_of

SHOWN = 12
"""Tensors of the table: those whose stages differ most."""

BLOCKS = 16
"""Blocks that are named along the plot, at most."""

APART = 2.0
"""Ratio of two stages' ranges from which on one graph for both wastes a bit of eight in one of them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor.

    Attributes:
        name: Name of the first product that reads it.
        peaks: Largest magnitude in every stage.
    """

    name: str
    peaks: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times wider the widest stage is than the narrowest."""
        return max(self.peaks) / max(min(self.peaks), 1e-12)


def rows_of(statistics: Statistics) -> list[Row]:
    """Every tensor that products read, those first whose stages differ most."""
    stages = range(len(statistics.about.stages))
    rows = [
        Row(tap.label, tuple(statistics.of_stage(tap, stage).peak for stage in stages))
        for tap in statistics.about.taps
        if tap.products
    ]
    return sorted(rows, key=lambda row: -row.ratio)


def markdown(statistics: Statistics, cell_px: int) -> str:
    """The table, and what follows from it."""
    about, rows = statistics.about, rows_of(statistics)
    sizes = [f"{width * cell_px}x{height * cell_px}" for height, width in about.stages]
    head = f"| input of | {' | '.join(f'largest at {size}' for size in sizes)} | ratio |"
    lines = [head, "|---" * (len(sizes) + 2) + "|"]
    lines += [
        f"| {row.name} | {' | '.join(f'{peak:.3g}' for peak in row.peaks)} | {row.ratio:.2f} |" for row in rows[:SHOWN]
    ]
    apart = sum(row.ratio > APART for row in rows)
    runs = f"{about.done} prompt{'s' * (about.done != 1)} in {' + '.join(map(str, about.steps))} steps"
    said = (
        f"{len(rows)} tensors, {runs}. In {apart} of the tensors one stage is more than {APART:g} times as wide as "
        "another"
        + ("; a graph for every stage would serve them better (--from-size)." if apart > len(rows) / 4 else ".")
    )
    return "\n".join([*lines, "", said])


def write_plot(statistics: Statistics, cell_px: int, path: Path) -> None:
    """Largest magnitudes of every tensor, in the order of the network: a line a stage, a band over the noise buckets.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: It cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    about = statistics.about
    taps = [tap for tap in about.taps if tap.products]
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for stage, (height, width) in enumerate(about.stages):
        each = [_peaks(statistics, stage, bucket) for bucket in range(about.buckets)]
        each = [peaks for peaks in each if any(peaks)]
        high = [max(column) for column in zip(*each, strict=True)]
        low = [min(column) for column in zip(*each, strict=True)]
        (line,) = axes.plot(high, label=f"{width * cell_px} x {height * cell_px} px", linewidth=1)
        axes.fill_between(range(len(taps)), low, high, color=line.get_color(), alpha=0.2)
    axes.set(yscale="log", xlabel="what products read, in the order of the network", ylabel="largest magnitude")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xticks(*_blocks(statistics), rotation=30, ha="right", fontsize=7)
    axes.set_title(
        "Ranges by stage: a line is the widest quarter of the noise, a band reaches down to the narrowest", fontsize=10
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=150, format=path.suffix.lstrip("."))
    pyplot.close(figure)


def _blocks(statistics: Statistics) -> tuple[list[int], list[str]]:
    """Where blocks begin along a plot, and their names; some of them, where there are many."""
    block = sensitivity_of(statistics.about.family).block
    first: dict[str, int] = {}
    for place, tap in enumerate(tap for tap in statistics.about.taps if tap.products):
        if found := block.match(tap.label):
            first.setdefault(found[0], place)
    shown = list(first)[:: -(-len(first) // BLOCKS)]
    return [first[name] for name in shown], [name.partition(".")[2] for name in shown]


def _peaks(statistics: Statistics, stage: int, bucket: int) -> Sequence[float]:
    seen = [statistics.at(tap, stage, bucket) for tap in statistics.about.taps if tap.products]
    return [one.peak if one.calls else 0.0 for one in seen]
