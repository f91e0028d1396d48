"""A super-resolution network of the user's within the graph between two stages."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lssgen.errors import ExportError
from lssgen.export.super_resolution import read_network
from lssgen.export.weights import open_weights
from lssgen.export.writer import write_graph
from lssgen.models.nets.transition import SuperResolutionTransition

FREE = ("batch", 3, "height", "width")


def network(
    path: Path,
    *,
    channels: int = 3,
    factor: int = 2,
    opset: int = 17,
    shape: tuple[int | str, ...] = FREE,
    domain: str = "",
) -> Path:
    """A convolution and a shuffle of its channels, the ESPCN of one layer; returns its path."""
    rng = np.random.default_rng(0)
    kernels = 0.05 * rng.standard_normal((channels * factor**2, channels, 3, 3)).astype(np.float32)
    for channel in range(channels):
        kernels[channel * factor**2 : (channel + 1) * factor**2, channel, 1, 1] += 1
    large = ("batch", channels, "large_height", "large_width")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernels"], ["many"], pads=[1, 1, 1, 1], domain=domain),
            helper.make_node("DepthToSpace", ["many"], ["large"], blocksize=factor, mode="CRD"),
        ],
        "sr",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("large", TensorProto.FLOAT, large)],
        [numpy_helper.from_array(kernels, "kernels")],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


class Autoencoder(nn.Module):
    """Cells of two pixels: its latents are means, its pictures copies."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"scaling_factor": 2.0}
        self.gain = nn.Parameter(torch.tensor(1.0))

    def decode(self, latent: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        return (self.gain * nn.functional.interpolate(latent, scale_factor=2.0),)

    def encode(self, picture: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        return (nn.functional.avg_pool2d(picture, 2),)


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_the_graph_holds_the_networks_own_nodes_and_computes_what_torch_does(tmp_path: Path, opset: int) -> None:
    enlarge = read_network(network(tmp_path / "sr.onnx", opset=opset)).enlarge
    module = SuperResolutionTransition(Autoencoder(), enlarge)
    rng = torch.Generator().manual_seed(0)
    given = {
        "latent": torch.randn(3, 3, 16, 24, generator=rng),
        "noise": torch.randn(3, 3, 32, 48, generator=rng),
        "mix": torch.tensor([[0.9, 0.1]] * 3),
    }
    large = ("batch", 3, "next_height", "next_width")
    axes = {"latent": FREE, "noise": large, "mix": ("batch", 2), "next_latent": large}
    path = tmp_path / "transition_sr.onnx"
    write_graph(module, given, ["next_latent"], axes, path, open_weights({}))
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert {node.domain for node in model.graph.node} == {""}
    assert "DepthToSpace" in {node.op_type for node in model.graph.node}
    small = {name: value[:1, ..., :12, :20].contiguous() for name, value in given.items() if name == "latent"}
    small |= {"noise": given["noise"][:1, :, :24, :40].contiguous(), "mix": given["mix"][:1]}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {name: value.numpy() for name, value in small.items()})
    # Both are float32; a sum of 27 products is rounded in another order.
    torch.testing.assert_close(torch.from_numpy(made), module(**small), rtol=1e-5, atol=1e-5)


def test_the_networks_picture_is_what_the_decoder_paints_in_0_to_1_and_the_encoder_reads_what_it_makes() -> None:
    seen: list[Tensor] = []

    def enlarge(picture: Tensor) -> Tensor:
        seen.append(picture)
        return nn.functional.interpolate(picture, scale_factor=2.0)

    latent, noise = torch.tensor([-3.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)
    made = SuperResolutionTransition(Autoencoder(), enlarge)(latent, noise, torch.tensor([[1.0, 0.0]]))
    # Model space is twice the decoder's: pictures are -1.5 (clamped to -1), -0.5, 0 and 0.5.
    assert seen[0][0, 0, ::2, ::2].flatten().tolist() == [0.0, 0.25, 0.5, 0.75]
    assert made[0, 0, ::2, ::2].flatten().tolist() == [-2.0, -1.0, 0.0, 1.0]


def test_the_same_weights_have_the_same_hash_and_others_another(tmp_path: Path) -> None:
    one, same = (read_network(network(tmp_path / name)).sha256 for name in ("one.onnx", "same.onnx"))
    assert one == same
    assert read_network(network(tmp_path / "other.onnx", opset=18)).sha256 != one


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"channels": 1, "shape": ("batch", 1, "height", "width")}, r"takes \(batch, 1, height, width\)"),
        ({"factor": 4}, r"makes \(1, 3, 256, 384\) of \(1, 3, 64, 96\)"),
        ({"factor": 1}, r"makes \(1, 3, 64, 96\) of \(1, 3, 64, 96\)"),
        ({"shape": ("batch", 3, 64, 64)}, "takes pictures of one size or number only"),
        ({"shape": ("batch", "channels", "height", "width"), "channels": 4}, "fails on"),
        ({"domain": "com.microsoft"}, "uses operators of com.microsoft, which not every backend has"),
    ],
)
def test_a_network_with_other_channels_or_factor_is_refused_and_what_fits_is_said(
    tmp_path: Path, words: dict[str, object], said: str
) -> None:
    path = network(tmp_path / "sr.onnx", **words)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ExportError, match=said):
        read_network(path)


@pytest.mark.parametrize("content", [b"", b"not a graph", None])
def test_what_is_no_network_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sr.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"sr\.onnx"):
        read_network(path)
