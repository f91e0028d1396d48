"""What a calibration says of its stages: a table, and a plot that names the network's blocks."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from lssgen.calibration.report import SHOWN, markdown, write_plot
from lssgen.calibration.statistics import Statistics


def test_the_table_begins_with_what_differs_most_and_counts_it(statistics: Statistics) -> None:
    (tap, *_) = statistics.about.taps
    for (tensor, stage, _), seen in statistics.seen.items():
        if tensor == tap.tensor and stage == 0:
            seen.high[:] = 1000.0
    lines = markdown(statistics, 8).splitlines()
    assert lines[0] == "| input of | largest at 128x128 | largest at 256x256 | ratio |"
    assert lines[2].startswith(f"| {tap.label} | 1e+03 | ")
    assert len(lines) == 2 + SHOWN + 2
    steps = " + ".join(map(str, statistics.about.steps))
    assert lines[-1].startswith(f"37 tensors, 2 prompts in {steps} steps. In 1 of the tensors one stage is more than 2")


def test_the_plot_names_every_block_where_it_begins(
    statistics: Statistics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    write_plot(statistics, 8, tmp_path / "plot.png")
    monkeypatch.undo()
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"transformer_blocks.{n}" for n in range(5)]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["128 x 128 px", "256 x 256 px"]
    assert [np.size(line.get_xdata()) for line in axes.get_lines()] == [37, 37]
    pyplot.close(drawn[0])
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
