import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen.bundle import sha256_of
from lssgen.errors import ExportError, ModelError
from lssgen.export.changes import Delta
from lssgen.export.weights import Weights, open_weights
from lssgen.export.writer import Axes, Written, weightless, write_graph
from lssgen.ports import Port

WIDTH = 32
AXES: Axes = {
    "latent": ("batch", 4, "height", "width"),
    "text": ("branches", "batch", "tokens", WIDTH),
    "grown": ("batch", 4, "next_height", "next_width"),
    "words": ("batch", WIDTH),
}
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Part(nn.Module):
    """What diffusion networks are made of, small: patches, positions, attention to text, norms, a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, WIDTH, 2, stride=2)
        self.norm = nn.GroupNorm(4, WIDTH)
        self.q, self.k = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
        self.tied.weight = self.k.weight
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.out = nn.Linear(WIDTH, 4 * 16)
        self.unused = nn.Linear(WIDTH, 3)
        self.register_buffer("positions", torch.linspace(0, 1, 400 * WIDTH).reshape(400, WIDTH), persistent=False)


class Net(nn.Module):
    """(batch, 4, height, width) and text to a picture twice as large, in patches of two cells."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Part()

    def forward(self, latent: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.net.out.weight.dtype
        grid = self.net.norm(self.net.patch(latent.to(dtype)))
        rows, columns = grid.shape[2:]
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = tokens + self.net.positions[: tokens.shape[1]].to(dtype)
        words = text.to(dtype).mean(0)
        q, k, v = (
            layer.unflatten(2, (2, -1)).transpose(1, 2)
            for layer in (self.net.q(tokens), self.net.k(words), self.net.tied(words))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * self.net.scale
        patches = self.net.out(mixed).unflatten(2, (4, 4, 4)).unflatten(1, (rows, columns))
        grown = torch.einsum("nhwpqc->nchpwq", patches).flatten(4, 5).flatten(2, 3)
        return grown.float(), words.float().mean(1)


def sample(batch: int, height: int, width: int, tokens: int, branches: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "latent": torch.randn(batch, 4, height, width, generator=generator),
        "text": torch.randn(branches, batch, tokens, WIDTH, generator=generator),
    }


def net(dtype: torch.dtype) -> Net:
    with weightless(dtype):
        return Net().eval()


def export(path: Path, weights: Weights, dtype: torch.dtype = torch.float32, axes: Axes = AXES) -> Written:
    return write_graph(net(dtype), sample(3, 8, 12, 5, 2), ["grown", "words"], axes, path, weights)


def initialisers(written: Written) -> Mapping[str, np.ndarray]:
    model = onnx.load(written.files[0])
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def structure(path: Path) -> str:
    """Everything but the place of the weights."""
    return str(onnx.load(path, load_external_data=False).graph.node)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    values = {name: 0.2 * torch.randn_like(value) for name, value in Part().state_dict().items()}
    del values["tied.weight"]
    save_file(values, folder / "model.safetensors")
    return open_weights({"net": folder})


@pytest.fixture(scope="module")
def written(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Written]:
    folder = tmp_path_factory.mktemp("graphs")
    return {name: export(folder / f"{name}.onnx", weights, dtype) for name, dtype in TYPES.items()}


# A handful of float32 operations in another order; a float16 has eleven bits, and about ten roundings accumulate.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("fp16", 4e-3)])
@pytest.mark.parametrize("sizes", [(3, 8, 12, 5, 2), (1, 6, 4, 1, 1), (2, 20, 16, 9, 3)])
def test_the_graph_equals_torch_at_every_size(
    written: Mapping[str, Written], weights: Weights, precision: str, tolerance: float, sizes: tuple[int, ...]
) -> None:
    module = net(TYPES[precision])
    weights.load_into(module)
    inputs = sample(*sizes)
    with torch.no_grad():
        expected = module(**inputs)
    session = onnxruntime.InferenceSession(written[precision].files[0])
    made = session.run(["grown", "words"], {name: value.numpy() for name, value in inputs.items()})
    for array, tensor in zip(made, expected, strict=True):
        assert array.shape == tensor.shape
        assert np.linalg.norm(array - tensor.numpy()) <= tolerance * np.linalg.norm(tensor.numpy())


def test_onnx_runtime_has_nothing_to_warn_of(written: Mapping[str, Written], capfd: pytest.CaptureFixture[str]) -> None:
    session = onnxruntime.InferenceSession(written["fp32"].files[0])
    session.run(None, {name: value.numpy() for name, value in sample(1, 6, 4, 1, 1).items()})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("precision", TYPES)
def test_the_graph_is_valid_onnx_in_every_precision(written: Mapping[str, Written], precision: str) -> None:
    onnx.checker.check_model(written[precision].files[0], full_check=True)


def test_ports_have_the_names_and_axes_that_were_asked_for(written: Mapping[str, Written]) -> None:
    assert written["fp16"].inputs == tuple(Port(name, "float32", AXES[name]) for name in ("latent", "text"))
    assert written["fp16"].outputs == tuple(Port(name, "float32", AXES[name]) for name in ("grown", "words"))
    graph = onnx.load(written["fp16"].files[0], load_external_data=False).graph
    sizes = [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim]
    assert sizes == list(AXES["grown"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_initialisers_are_the_checkpoints_tensors_by_name(
    written: Mapping[str, Written], weights: Weights, precision: str
) -> None:
    made = written[precision]
    found = initialisers(made)
    named = {name for name in found if name in weights}
    assert named == {name for name in weights if not name.startswith("net.unused")}
    for name in named:
        tensor = weights.tensor(name, TYPES[precision])
        assert np.array_equal(found[name], (tensor.T if name in made.transposed else tensor).numpy())
    assert json.loads(_metadata(made)["lssgen.transposed"]) == list(made.transposed)
    assert "net.out.weight" in made.transposed


def _metadata(made: Written) -> dict[str, str]:
    model = onnx.load(made.files[0], load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def test_large_values_lie_in_the_data_file_and_hashes_are_of_what_was_written(written: Mapping[str, Written]) -> None:
    made = written["fp32"]
    assert [path.name for path in made.files] == ["fp32.onnx", "fp32.data"]
    assert made.sha256 == {path.name: sha256_of(path) for path in made.files}
    assert made.files[0].stat().st_size < made.files[1].stat().st_size


def test_nodes_are_named_after_modules_and_carry_no_local_paths(written: Mapping[str, Written]) -> None:
    graph = onnx.load(written["fp32"].files[0], load_external_data=False).graph
    names = [node.name for node in graph.node]
    assert {"net.patch/Conv", "net.norm/GroupNormalization", "net.out/MatMul"} <= set(names)
    assert len(set(names)) == len(names)
    assert "Attention" in {node.op_type for node in graph.node}
    assert b".py" not in written["fp32"].files[0].read_bytes()


def test_two_exports_of_one_checkpoint_are_the_same_bytes(
    written: Mapping[str, Written], weights: Weights, tmp_path: Path
) -> None:
    again = export(tmp_path / "fp32.onnx", weights)
    assert again.sha256 == written["fp32"].sha256


def test_the_graph_does_not_depend_on_the_values_of_weights(written: Mapping[str, Written], tmp_path: Path) -> None:
    values = {name: torch.zeros_like(value) for name, value in Part().state_dict().items()}
    save_file({name: value.clone() for name, value in values.items()}, tmp_path / "model.safetensors")
    zeros = export(tmp_path / "zeros.onnx", open_weights({"net": tmp_path}))
    assert structure(zeros.files[0]) == structure(written["fp32"].files[0])
    assert zeros.transposed == written["fp32"].transposed


def test_low_rank_changes_are_merged_into_the_data(weights: Weights, tmp_path: Path) -> None:
    down, up = torch.randn(2, WIDTH), torch.randn(4 * 16, 2)
    made = export(tmp_path / "lora.onnx", weights.with_delta({"net.out.weight": Delta(down, up, 0.5)}))
    expected = weights.tensor("net.out.weight") + 0.5 * up @ down
    np.testing.assert_allclose(initialisers(made)["net.out.weight"], expected.T.numpy(), rtol=1e-5, atol=1e-6)


def test_a_module_with_real_weights_is_written_with_those(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(WIDTH, 40), nn.SiLU(), nn.Linear(40, WIDTH)).eval()
    x = torch.randn(3, 5, WIDTH)
    axes: Axes = {"x": ("batch", "tokens", WIDTH), "y": ("batch", "tokens", WIDTH)}
    made = write_graph(module, {"x": x}, ["y"], axes, tmp_path / "real.onnx", Weights())
    (y,) = onnxruntime.InferenceSession(made.files[0]).run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(y, module(x).numpy(), atol=1e-5)  # float32 sums in another order
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= set(initialisers(made))


def test_weightless_modules_have_no_parameters_in_memory_and_keep_their_buffers() -> None:
    module = net(torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype is torch.bfloat16 for parameter in module.parameters())
    assert module.net.positions[-1, -1] == 1
    assert module.net.tied.weight is module.net.k.weight
    assert not nn.Linear(2, 2).weight.is_meta


def test_the_module_is_as_weightless_after_the_export_as_before(weights: Weights, tmp_path: Path) -> None:
    module = net(torch.float32)
    write_graph(module, sample(3, 8, 12, 5, 2), ["grown", "words"], AXES, tmp_path / "net.onnx", weights)
    assert all(type(parameter) is nn.Parameter and parameter.is_meta for parameter in module.parameters())


def test_an_export_that_fails_while_it_writes_leaves_nothing(weights: Weights, tmp_path: Path) -> None:
    folder, out = tmp_path / "short", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    whole = next(iter(weights.stored.values())).file
    (folder / "model.safetensors").write_bytes(whole.read_bytes())
    short = open_weights({"net": folder})
    (folder / "model.safetensors").write_bytes(whole.read_bytes()[:-4000])
    with pytest.raises(ModelError, match="is cut off"):
        export(out / "net.onnx", short)
    assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_export_error(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"net\.onnx cannot be written: No such file or directory; make room"):
        export(tmp_path / "missing" / "net.onnx", weights)


def test_a_port_that_does_not_have_its_shape_is_refused(weights: Weights, tmp_path: Path) -> None:
    wrong = {**AXES, "words": ("batch", WIDTH, 2)}
    with pytest.raises(ExportError, match=r"words has shape .*, which does not fit \['batch', 32, 2\]"):
        export(tmp_path / "net.onnx", weights, axes=wrong)


class Choosy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_module_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"choosy cannot be exported: .*data-dependent"):
        write_graph(Choosy(), {"x": torch.ones(3)}, ["y"], {"x": (3,), "y": (3,)}, tmp_path / "choosy.onnx", Weights())
    assert list(tmp_path.iterdir()) == []


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x.half(), x), 1)


def test_a_concatenation_of_two_types_is_cast_as_torch_promotes(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    made = write_graph(
        Mixed(), {"x": x}, ["y"], {"x": ("batch", 3), "y": ("batch", 6)}, tmp_path / "mixed.onnx", Weights()
    )
    (y,) = onnxruntime.InferenceSession(made.files[0]).run(None, {"x": x.numpy()})
    assert np.array_equal(y, torch.cat((x.half(), x), 1).numpy())


def test_an_einsum_that_moves_axes_is_a_transpose(written: Mapping[str, Written]) -> None:
    graph = onnx.load(written["bf16"].files[0], load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert "Einsum" not in kinds
    orders = [list(node.attribute[0].ints) for node in graph.node if node.op_type == "Transpose"]
    assert [0, 5, 1, 3, 2, 4] in orders
