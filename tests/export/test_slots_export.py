"""Graphs with slots for LoRAs pass their probes, in half precision too, and their keys tell slots from none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from factory_families import tiny_flux, tiny_sd
from safetensors.torch import save_file
from torch import nn

from lssgen.export.config import ExportConfig
from lssgen.export.export import export
from lssgen.export.weights import open_weights
from lssgen.export.writer import write_graph
from lssgen.manifest import Precision
from lssgen.models.nets.slots import FACTORS


@pytest.mark.slow  # exports of ten seconds each
@pytest.mark.parametrize(("family", "precision"), [(tiny_sd, "fp16"), (tiny_flux, "bf16")])
def test_half_precision_is_compared_with_factors_in_the_slots(
    family: Callable[[Path], Path], precision: Precision, tmp_path: Path
) -> None:
    said: list[str] = []
    bundle = export(
        ExportConfig(
            model=str(family(tmp_path / "checkpoint")),
            output=tmp_path / "bundle",
            resolutions=((64, 64),),
            precision=precision,
            transitions=("latent",),
            lora_slots=2,
            lora_rank=4,
            lora_layers="all",
            probe="small",
            threads=1,
        ),
        said.append,
    )
    for name in ("step", "text"):
        graph = bundle.manifest.graphs[name]
        assert (graph.precision, graph.why, len(graph.probes)) == (precision, "", 1), said
        nodes = onnx.load(bundle.path(graph.file), load_external_data=False).graph.node
        (split,) = (node for node in nodes if node.op_type == "Split" and len(node.output) > 20)
        (cast,) = (node for node in nodes if FACTORS in node.input)
        assert (cast.op_type, list(cast.output)) == ("Cast", [split.input[0]]), "cast once, and cut once"


def test_slots_make_other_graphs_of_the_same_checkpoint(config: ExportConfig, written: list[str]) -> None:
    plain = export(config).manifest.graphs
    slotted = export(replace(config, lora_slots=1)).manifest.graphs
    more = export(replace(config, lora_slots=2)).manifest.graphs
    for name in ("step", "text"):
        assert len({graphs[name].key for graphs in (plain, slotted, more)}) == 3
    assert plain["decode"].key == more["decode"].key
    assert {name: written.count(name) for name in ("step", "text", "decode")} == {"step": 3, "text": 3, "decode": 1}


def test_a_split_into_many_parts_has_its_sizes_inside_the_graph(tmp_path: Path) -> None:
    """ONNX Runtime cannot load it otherwise: it infers shapes before it opens the file of weights."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = x.split([1 + part % 3 for part in range(300)], 1)
            return torch.stack([part.sum(1) for part in parts]).sum(0)[:, None] + self.net(x[:, :1]) * 0

    save_file({"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    written = write_graph(
        Cut(),
        {"x": torch.ones(2, 600)},
        ["y"],
        {"x": ("batch", 600), "y": ("batch", 1)},
        tmp_path / "cut.onnx",
        open_weights({"net": tmp_path}),
    )
    (got,) = onnxruntime.InferenceSession(written.files[0]).run(None, {"x": np.ones((1, 600), np.float32)})
    assert float(np.asarray(got).item()) == 600
