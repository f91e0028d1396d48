"""A module with weights on demand is the same module."""

from pathlib import Path

import torch
from residual import WIDTH, Residual
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen.export.on_demand import weights_on_demand
from lssgen.export.weights import open_weights
from lssgen.export.writer import weightless


def test_layers_have_weights_only_while_they_compute(tmp_path: Path) -> None:
    real = Residual()
    (tmp_path / "net").mkdir()
    tensors = {name: tensor.clone() for name, tensor in real.state_dict().items()}
    save_file(tensors, tmp_path / "net" / "model.safetensors")
    with weightless(torch.float32):
        hollow = nn.ModuleDict({"net": Residual()})
    seen: list[int] = []
    for layer in hollow["net"].layers:  # pyright: ignore[reportGeneralTypeIssues]
        layer.register_forward_hook(lambda *_: seen.append(sum(not p.is_meta for p in hollow.parameters())))
    x = torch.randn(2, WIDTH)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = hollow["net"]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with weights_on_demand(Outer(), open_weights({"net": tmp_path / "net"})) as module:
        assert torch.equal(module(x), real(x))
    assert seen == [2, 2, 2, 2]  # a weight and a bias
    assert all(parameter.is_meta for parameter in hollow.parameters())
