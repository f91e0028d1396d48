"""The probe: it passes what is right, names what is wrong, and moves what overflows to float32."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lssgen.bundle import Graph, Precision
from lssgen.errors import ProbeError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import Probing
from lssgen.export.probe import probe_graph
from lssgen.export.store import open_store
from lssgen.export.weights import Weights
from lssgen.export.workshop import DTYPES, Workshop
from lssgen.export.writer import write_graph
from lssgen.models.nets.recipe import Recipe
from lssgen.parity.pieces import open_pieces, session
from lssgen.ports import Port

PORTS = (Port("x", "float32", ("batch", 8)),), (Port("y", "float32", ("batch", 8)),)


class Net(nn.Module):
    """Two layers in some precision; `gain` between them overflows float16 from about 1e4 on."""

    def __init__(self, dtype: torch.dtype, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(8, 8).to(dtype) for _ in range(2))
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.to(self.first.weight.dtype)) * self.gain
        return self.second(hidden / self.gain).float()


def probe(tmp_path: Path, precision: Precision, graph: nn.Module, exact: nn.Module) -> Any:
    path = tmp_path / "net.onnx"
    x = torch.randn(3, 8)
    write_graph(graph, {"x": x}, ["y"], {"x": ("batch", 8), "y": ("batch", 8)}, path, Weights())
    samples = [({"batch": 3}, {"x": x})]
    return probe_graph("net", path, exact, samples, PORTS[1], precision)


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 0, 1e-6), ("fp16", 1e-5, 1e-2), ("bf16", 1e-4, 3e-2)]
)
def test_right_graph_passes_with_the_error_of_its_precision(
    tmp_path: Path, precision: Precision, least: float, most: float
) -> None:
    (found,) = probe(tmp_path, precision, Net(DTYPES[precision]), Net(torch.float32))
    assert found.finite
    assert least <= found.error <= most


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_wrong_graph_is_refused_with_its_sizes(tmp_path: Path, precision: Precision) -> None:
    wrong = Net(DTYPES[precision])
    nn.init.zeros_(wrong.second.weight)
    with pytest.raises(ProbeError, match=r"net differs from its torch module by 0\.\d+ \(relative\).* at batch 3"):
        probe(tmp_path, precision, wrong, Net(torch.float32))


def test_overflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="net gives numbers that are not finite at batch 3"):
        probe(tmp_path, "fp16", Net(torch.float16, gain=1e6), Net(torch.float32))


def test_overflow_that_the_cpu_would_not_see_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime computes float16 networks in float32 on the CPU and keeps what a GPU could not."""
    path = tmp_path / "net.onnx"
    x = 10 * torch.randn(3, 8)
    write_graph(Net(torch.float16, 6e4), {"x": x}, ["y"], {"x": ("batch", 8), "y": ("batch", 8)}, path, Weights())
    (direct,) = session(path, 1).run(None, {"x": x.numpy()})
    stepwise = open_pieces(path, threads=1).run({"x": x.numpy()})["y"]
    assert np.isfinite(direct).all()
    assert not np.isfinite(stepwise).all()


@dataclass(frozen=True)
class Trial:
    """A workshop with a net that float16 cannot hold, and what it says."""

    folder: Path
    said: list[str]

    def graph(self, *, probe: Probing = "stages", precision: Precision = "fp16", gain: float = 1e6) -> Graph:
        recipe = Recipe(
            name="net",
            components=(),
            inputs=PORTS[0],
            outputs=PORTS[1],
            build=lambda parts: Net(parts.dtype, gain),  # type: ignore[attr-defined]
        )
        with open_store(self.folder / "bundle") as store:
            workshop = Workshop(
                checkpoint=Checkpoint(self.folder), cell_px=4, resolutions=((64, 64),), branches=1, token_axes={},
                precision=precision, probe=probe, threads=1, store=store, say=self.said.append,
            )  # fmt: skip
            graph = workshop.graph(recipe)
            assert workshop.notes == [graph.why] * bool(graph.why)
        return graph


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path, [])


def test_component_that_overflows_in_fp16_is_kept_in_fp32_and_that_is_said(trial: Trial) -> None:
    graph = trial.graph()
    assert graph.precision == "fp32"
    assert graph.probes[0].finite
    assert "net is kept in fp32: in fp16, net gives numbers that are not finite" in trial.said[0]


def test_what_did_not_hold_up_is_not_tried_again(trial: Trial) -> None:
    first, again = trial.graph(), trial.graph()
    assert again == first
    assert "net is kept in fp32" in trial.said[2]
    assert "was there" in trial.said[3]


def test_small_probe_has_one_size_and_none_says_that_nothing_was_compared(trial: Trial) -> None:
    assert [probe.axes for probe in trial.graph(probe="small", gain=1).probes] == [{"batch": 2}]
    assert trial.graph(probe="none", precision="fp32").probes == ()
    assert "not compared with torch" in trial.said[-1]


def test_probe_that_was_left_out_is_made_up_for(trial: Trial) -> None:
    assert trial.graph(probe="none", precision="fp32").probes == ()
    assert len(trial.graph(probe="stages", precision="fp32").probes) == 1
    assert "was there" in trial.said[-1]


def test_large_graphs_say_what_takes_long(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lssgen.export.workshop.STAGES_BYTES", -1)
    trial.graph(precision="fp32")
    assert trial.said[0].endswith("tracing, and writing 0.0 GB of weights")
    assert trial.said[1].endswith("comparing with torch, reading 0.0 GB of weights layer by layer")
    assert len(trial.said) == 3
