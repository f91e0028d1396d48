"""A graph in pieces is the same graph, with the roundings of its own types if they are asked for."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from residual import WIDTH, Residual
from torch import Tensor, nn

from lssgen.errors import ProbeError
from lssgen.export.weights import Weights
from lssgen.export.writer import write_graph
from lssgen.parity.pieces import open_pieces


def written(folder: Path, module: nn.Module) -> Path:
    path = folder / "net.onnx"
    axes = ("batch", WIDTH)
    write_graph(module, {"x": torch.randn(3, WIDTH)}, ["y"], {"x": axes, "y": axes}, path, Weights())
    return path


@pytest.mark.parametrize(("piece_bytes", "pieces"), [(1, 4), (2 * 4 * WIDTH * WIDTH, 2), (1 << 20, 1)])
def test_pieces_of_any_size_give_what_the_whole_gives(tmp_path: Path, piece_bytes: int, pieces: int) -> None:
    path = written(tmp_path, Residual())
    x = np.random.default_rng(0).standard_normal((5, WIDTH), np.float32)
    graph = open_pieces(path, threads=1, piece_bytes=piece_bytes)
    (whole,) = ort.InferenceSession(path).run(None, {"x": x})
    assert len(graph.pieces) == pieces
    # Rounding of matrix products that are blocked in another way.
    np.testing.assert_allclose(graph.run({"x": x})["y"], whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_after_every_node(tmp_path: Path, dtype: torch.dtype) -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((x.to(dtype) * 3 + 100) / 7).float()

    x = torch.linspace(-5, 5, WIDTH).repeat(2, 1)
    (got,) = open_pieces(written(tmp_path, Chain()), threads=1).run({"x": x.numpy()}).values()
    assert torch.equal(torch.from_numpy(got), Chain()(x))


def test_an_output_in_half_precision_is_rounded_too(tmp_path: Path) -> None:
    """Our own graphs end in float32; others' need not."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.half() * 3 + 100

    x = torch.linspace(-5, 5, WIDTH).repeat(2, 1)
    (got,) = open_pieces(written(tmp_path, Half()), threads=1).run({"x": x.numpy()}).values()
    assert torch.equal(torch.from_numpy(got), Half()(x).float())


def test_graph_whose_types_do_not_fit_is_refused(tmp_path: Path) -> None:
    import onnx

    path = written(tmp_path, Residual().half())
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Add", ["x", model.graph.initializer[0].name], ["odd"]))
    onnx.save(model, path)
    with pytest.raises(ProbeError, match=r"net\.onnx is not a valid graph"):
        open_pieces(path)


def test_without_its_roundings_a_half_precision_graph_computes_in_float32(tmp_path: Path) -> None:
    module = Residual()
    module.layers.half()
    path = written(tmp_path, module)
    x = torch.randn(4, WIDTH)
    with torch.no_grad():
        exact = module.float()(x)  # with the weights that float16 has rounded
    near, rounded = (
        open_pieces(path, threads=1, rounded=choice).run({"x": x.numpy()})["y"] for choice in (False, True)
    )
    torch.testing.assert_close(torch.from_numpy(near), exact, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(torch.from_numpy(rounded), exact, rtol=1e-5, atol=1e-5)
