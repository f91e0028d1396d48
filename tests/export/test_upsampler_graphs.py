"""The graph of a transition by this package's kind of upsampler: torch's numbers at every size, in plain nodes."""

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from lssgen.export.weights import open_weights
from lssgen.export.writer import Axes, write_graph
from lssgen.models.nets.local_upsampler import LocalLatentUpSampler, LocalUpSamplerConfig
from lssgen.models.nets.transition import ResnetTransition

CONFIG = LocalUpSamplerConfig(in_channels=4, out_channels=4, width=16, low_blocks=2, high_blocks=2)
LARGE = ("batch", 4, "next_height", "next_width")
AXES: Axes = {
    "latent": ("batch", 4, "height", "width"), "noise": LARGE, "mix": ("batch", 2), "next_latent": LARGE,
}  # fmt: skip
PLAIN = {
    "Add", "Conv", "DepthToSpace", "Mul", "Pow", "Reciprocal", "ReduceMean", "Resize", "Slice", "Split", "Sqrt",
    "Squeeze", "Unsqueeze",
}  # fmt: skip


def sample(batch: int, height: int, width: int) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(height)
    return {
        "latent": torch.randn(batch, 4, height, width, generator=generator),
        "noise": torch.randn(batch, 4, 2 * height, 2 * width, generator=generator),
        "mix": torch.rand(batch, 2, generator=generator),
    }


def transition() -> ResnetTransition:
    """With weights of which none is zero, as those of the last convolutions are before a training."""
    torch.manual_seed(0)
    network = LocalLatentUpSampler(CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return ResnetTransition(network)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "transition.onnx"
    write_graph(transition(), sample(3, 8, 12), ["next_latent"], AXES, path, open_weights({}))
    return path


@pytest.mark.parametrize("sizes", [(1, 8, 8), (2, 5, 13), (1, 24, 16)])
def test_the_graph_equals_torch_at_every_size(graph: Path, sizes: tuple[int, int, int]) -> None:
    inputs = sample(*sizes)
    session = onnxruntime.InferenceSession(graph)
    (got,) = session.run(None, {key: value.numpy() for key, value in inputs.items()})
    wanted = transition()(**inputs)
    # float32 through some twenty layers, in other orders of summation; measured below 1e-6 of the largest value.
    assert (torch.from_numpy(got) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_graph_is_convolutions_and_arithmetic(graph: Path) -> None:
    """No loops, no index arithmetic beyond sizes, nothing whose numbers differ from engine to engine."""
    kinds = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    assert kinds == PLAIN
