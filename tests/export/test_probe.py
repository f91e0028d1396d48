"""The probe: it passes what is right, names what is wrong, and moves what overflows to float32."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen.errors import ExportError, ProbeError
from lssgen.export.checkpoint import Checkpoint
from lssgen.export.config import Probing
from lssgen.export.memory import working_bytes
from lssgen.export.probe import probe_graph
from lssgen.export.store import open_store
from lssgen.export.weights import Weights, open_weights
from lssgen.export.workshop import DTYPES, Workshop
from lssgen.export.writer import weightless, write_graph
from lssgen.manifest import Graph, Precision
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
            runs="stage",
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


def test_weight_that_float16_cannot_hold_is_noticed_without_a_probe(tmp_path: Path) -> None:
    save_file({"weight": torch.full((8, 8), 1e6)}, tmp_path / "model.safetensors")

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with weightless(torch.float16):
                self.net = nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.half()).float()

    axes = {"x": ("batch", 8), "y": ("batch", 8)}
    with pytest.raises(ProbeError, match=r"net\.weight holds numbers that are too large for float16"):
        write_graph(
            Halved(), {"x": torch.randn(3, 8)}, ["y"], axes, tmp_path / "n.onnx", open_weights({"net": tmp_path})
        )
    assert not (tmp_path / "n.data").exists()


class Attends(nn.Module):
    """Cells that attend to each other: eight bytes for every pair, scores and shares."""

    def forward(self, latent: Tensor) -> Tensor:
        cells = latent.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(cells, cells, cells)[:, 0].transpose(1, 2).view_as(latent)


LATENT = Port("latent", "float32", ("batch", 4, "height", "width"))


def test_memory_is_known_before_anything_is_computed() -> None:
    cells = 512 * 512
    found = working_bytes(Attends(), (LATENT,), {"batch": 1, "height": 512, "width": 512})
    assert 4 * cells * cells <= found <= 3.1 * 4 * cells * cells


def test_memory_that_is_given_back_is_not_counted_twice() -> None:
    class Chain(nn.Module):
        def forward(self, latent: Tensor) -> Tensor:
            for _ in range(10):
                latent = latent * 2
            return latent

    one = 4 * 4 * 64 * 64
    assert working_bytes(Chain(), (LATENT,), {"batch": 1, "height": 64, "width": 64}) <= 1.5 * 3 * one


def probed_sizes(
    tmp_path: Path, resolutions: tuple[tuple[int, int], ...], said: list[str], *, grows: bool = False
) -> list[dict[str, int]]:
    large = Port("next_latent", "float32", ("batch", 4, "next_height", "next_width"))
    recipe = Recipe(
        name="decode",
        components=(),
        inputs=(LATENT, large) if grows else (LATENT,),
        outputs=(LATENT,),
        build=lambda _: Attends(),
        runs="end",
    )
    with open_store(tmp_path / "bundle") as store:
        workshop = Workshop(
            checkpoint=Checkpoint(tmp_path), cell_px=8, resolutions=resolutions, branches=1, token_axes={},
            precision="fp32", probe="stages", threads=1, store=store, say=said.append,
        )  # fmt: skip
        return [{"height": axes["height"], "width": axes["width"]} for axes in workshop.probe_axes(recipe)]


def test_probe_for_which_there_is_no_memory_steps_down_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("lssgen.export.workshop.free_memory", lambda: 8_000_000_000)
    found = probed_sizes(tmp_path, ((512, 512), (2048, 1024)), said)
    assert found == [{"height": 64, "width": 64}, {"height": 128, "width": 64}]
    (line,) = said
    assert line.startswith("decode is compared with torch at 512 x 1024 px instead of 1024 x 2048 px")
    assert line.endswith("12.9 GB of memory, and 8.0 GB are free.")


def test_probe_for_which_there_is_memory_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free in (None, 100_000_000_000):
        monkeypatch.setattr("lssgen.export.workshop.free_memory", lambda free=free: free)
        assert probed_sizes(tmp_path, ((2048, 1024),), []) == [{"height": 256, "width": 128}]


def test_transitions_are_not_probed_beyond_the_largest_resolution(tmp_path: Path) -> None:
    assert probed_sizes(tmp_path, ((512, 512),), [], grows=True) == [{"height": 32, "width": 32}]
    assert probed_sizes(tmp_path, ((256, 256), (512, 512)), [], grows=True) == [{"height": 32, "width": 32}]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory"), Exception("std::bad_alloc")])
def test_memory_that_runs_out_all_the_same_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lssgen.export.probe.run_torch", fail)
    with pytest.raises(ExportError, match=r"not enough memory to compare net with torch at batch 3; .*--probe small"):
        probe(tmp_path, "fp32", Net(torch.float32), Net(torch.float32))
