"""Half precision inside one network."""

from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor, nn

from lssgen.export.weights import Weights
from lssgen.export.writer import write_graph


class MixedNorm(nn.Module):
    """A norm as T5 has it in float16: the stream is float32, the scale float16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, 8).half())

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.weight * normal.half()).float()


def test_norm_with_a_scale_of_another_type_runs(tmp_path: Path) -> None:
    path = tmp_path / "norm.onnx"
    net, x = MixedNorm(), torch.randn(3, 8)
    write_graph(net, {"x": x}, ["y"], {"x": ("batch", 8), "y": ("batch", 8)}, path, Weights())
    assert "RMSNormalization" in {node.op_type for node in ir.load(path).graph}
    (got,) = ort.InferenceSession(path).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=2e-3, atol=2e-3)
