"""An export without torch's exporter, for everything around it."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from torch import Tensor, nn

from lssgen.export import workshop as graphs
from lssgen.export.config import ExportConfig
from lssgen.export.weights import Weights
from lssgen.export.writer import Written
from lssgen.manifest import Probe
from lssgen.ports import Port


@pytest.fixture
def config(sd3: Path, tmp_path: Path) -> ExportConfig:
    """An order for the tiny checkpoint; change it with `replace`."""
    return ExportConfig(model=str(sd3), output=tmp_path / "bundle", resolutions=((64, 64), (128, 128)))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs become a few bytes that depend on what they are made of; returns the names of those written so far."""
    names: list[str] = []

    def write(
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        axes: Mapping[str, tuple[int | str, ...]],
        path: Path,
        weights: Weights,
    ) -> Written:
        del module, weights
        path.write_bytes(f"graph {path.stem} {axes}".encode())
        data = path.with_suffix(".data")
        data.write_bytes(b"weights" * 100)
        names.append(path.name.split("-")[0])
        sha256 = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, data)}
        ports = [Port(port, str(value.dtype).removeprefix("torch."), axes[port]) for port, value in inputs.items()]
        made = [Port(port, "float32", axes[port]) for port in outputs]
        return Written(inputs=tuple(ports), outputs=tuple(made), files=(path, data), sha256=sha256, transposed=())

    monkeypatch.setattr(graphs, "write_graph", write)
    monkeypatch.setattr(graphs.Workshop, "_probes", _believe)
    return names


def _believe(
    self: graphs.Workshop, recipe: object, precision: object, path: object, axes: Sequence[Mapping[str, int]]
) -> tuple[Probe, ...]:
    del self, recipe, precision, path
    return tuple(Probe(axes=sizes, error=0.0, bound=1.0, finite=True, peak=1.0) for sizes in axes)
