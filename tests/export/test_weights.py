import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen.errors import ModelError
from lssgen.export.changes import Delta
from lssgen.export.weights import Weights, open_weights
from lssgen.export.writer import weightless


class Net(nn.Module):
    """One component, "unet": a linear layer, a convolution, and a table that it computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = nn.ModuleDict({"to_q": nn.Linear(4, 3), "conv": nn.Conv2d(3, 2, 1)})
        self.unet.register_buffer("table", torch.arange(5.0), persistent=False)


def tensors() -> dict[str, Tensor]:
    return {
        "to_q.weight": torch.randn(3, 4),
        "to_q.bias": torch.randn(3),
        "conv.weight": torch.randn(2, 3, 1, 1),
        "conv.bias": torch.randn(2),
    }


def checkpoint(folder: Path, values: dict[str, Tensor], file: str = "diffusion_pytorch_model.safetensors") -> Weights:
    folder.mkdir(exist_ok=True)
    save_file(values, folder / file)
    return open_weights({"unet": folder})


def test_a_component_is_read_tensor_by_tensor_as_it_was_written(tmp_path: Path) -> None:
    values = tensors()
    weights = checkpoint(tmp_path, values)
    assert set(weights) == {f"unet.{name}" for name in values}
    assert all(torch.equal(weights.tensor(f"unet.{name}"), value) for name, value in values.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_slabs_put_together_are_the_tensor_in_the_type_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.randn(7, 11)
    weights = checkpoint(tmp_path, {"w": value})
    slabs = list(weights.slabs("unet.w", dtype, elements=10))
    assert len(slabs) == 8
    assert torch.equal(torch.cat(slabs).reshape(7, 11), value.to(dtype))


def test_shards_of_an_index_are_one_component(tmp_path: Path) -> None:
    values = tensors()
    names = {name: f"model-{at % 2 + 1:05}-of-00002.safetensors" for at, name in enumerate(values)}
    for file in set(names.values()):
        save_file({name: values[name] for name in values if names[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    weights = open_weights({"unet": tmp_path})
    assert all(torch.equal(weights.tensor(f"unet.{name}"), value) for name, value in values.items())


def test_the_fp16_variant_is_taken_where_there_is_no_other(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"w": torch.zeros(2).half()}, "diffusion_pytorch_model.fp16.safetensors")
    assert open_weights({"unet": tmp_path})["unet.w"].dtype is torch.float16
    checkpoint(tmp_path, {"w": torch.zeros(2)})
    assert open_weights({"unet": tmp_path})["unet.w"].dtype is torch.float32


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-00001.safetensors"}}))
    with pytest.raises(ModelError, match=r"incomplete: model-00001\.safetensors is missing"):
        open_weights({"unet": tmp_path})


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no weights; expected diffusion_pytorch_model\.safetensors"):
        open_weights({"unet": tmp_path})


def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code when they are read"):
        open_weights({"unet": tmp_path})


@pytest.mark.parametrize("bytes_left", [4, 60, 200])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, bytes_left: int) -> None:
    checkpoint(tmp_path, tensors())
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        open_weights({"unet": tmp_path})


def test_a_file_that_is_cut_off_later_is_refused_when_it_is_read(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path, {"w": torch.zeros(100)})
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ModelError, match="is cut off"):
        weights.tensor("unet.w")


def test_loading_fills_a_weightless_module_in_its_own_type(tmp_path: Path) -> None:
    values = tensors()
    with weightless(torch.float16):
        net = Net()
    checkpoint(tmp_path, values).load_into(net)
    assert torch.equal(net.unet["to_q"].weight, values["to_q.weight"].half())
    assert not net.unet["to_q"].weight.requires_grad
    assert torch.equal(net.unet.table, torch.arange(5.0))


def test_a_checkpoint_that_does_not_fit_is_described(tmp_path: Path) -> None:
    values = tensors()
    del values["to_q.bias"]
    values["conv.weight"] = torch.zeros(2, 3, 3, 3)
    values["to_k.bias"] = torch.zeros(1)
    with weightless(torch.float32):
        net = Net()
    with pytest.raises(ModelError) as caught:
        checkpoint(tmp_path, values).fit(net)
    assert "missing (1): unet.to_q.bias" in str(caught.value)
    assert "unexpected (1): unet.to_k.bias" in str(caught.value)
    assert "unet.conv.weight is [2, 3, 3, 3], the model has [2, 3, 1, 1]" in str(caught.value)


def test_older_names_and_1x1_convolutions_for_linear_layers_are_understood(tmp_path: Path) -> None:
    values = tensors()
    query = values.pop("to_q.weight")
    older = {"model.query.weight": query.reshape(3, 4, 1, 1), "model.query.bias": values.pop("to_q.bias")}
    with weightless(torch.float32):
        net = Net()
    weights = checkpoint(tmp_path, {**older, **values}).fit(net)
    assert torch.equal(weights.tensor("unet.to_q.weight"), query)


def test_a_tied_parameter_needs_one_of_its_names(tmp_path: Path) -> None:
    with weightless(torch.float32):
        net = Net()
        net.unet["again"] = nn.Linear(4, 3, bias=False)
        net.unet["again"].weight = net.unet["to_q"].weight
    checkpoint(tmp_path, tensors()).load_into(net)
    assert net.unet["again"].weight is net.unet["to_q"].weight


def test_parts_of_a_checkpoint_that_a_module_lacks_are_left_out(tmp_path: Path) -> None:
    checkpoint(tmp_path / "a", tensors())
    checkpoint(tmp_path / "b", tensors())
    with weightless(torch.float32):
        net = Net()
    fitted = open_weights({"unet": tmp_path / "a", "vae": tmp_path / "b"}).fit(net)
    assert {name.split(".")[0] for name in fitted} == {"unet"}


def test_low_rank_changes_are_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    values = {name: value.half() for name, value in tensors().items()}
    plain = checkpoint(tmp_path, values)
    up, down = torch.randn(3, 2), torch.randn(2, 4)
    weights = plain.with_delta({"unet.to_q.weight": Delta(down, up, 0.5)})
    weights = weights.with_delta({"unet.to_q.weight": Delta(down, up, 0.25)})
    expected = (values["to_q.weight"].float() + 0.5 * up @ down + 0.25 * up @ down).half()
    # One rounding to half, on a sum whose order may differ by a float32 rounding.
    torch.testing.assert_close(weights.tensor("unet.to_q.weight"), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(weights.tensor("unet.to_q.bias"), values["to_q.bias"])
    assert torch.equal(plain.tensor("unet.to_q.weight"), values["to_q.weight"])


def test_low_rank_changes_of_a_convolution_have_its_kernels_in_their_first_factor(tmp_path: Path) -> None:
    values = {"conv.weight": torch.randn(2, 3, 3, 3)}
    down, up = torch.randn(4, 3, 3, 3), torch.randn(2, 4, 1, 1)
    weights = checkpoint(tmp_path, values).with_delta({"unet.conv.weight": Delta(down, up, 1.0)})
    expected = values["conv.weight"] + torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    torch.testing.assert_close(weights.tensor("unet.conv.weight"), expected)


def test_a_lora_for_another_model_is_refused_with_every_mismatch(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path, tensors())
    with pytest.raises(ModelError) as caught:
        weights.with_delta(
            {
                "unet.to_z.weight": Delta(torch.zeros(2, 4), torch.zeros(3, 2), 1.0),
                "unet.to_q.weight": Delta(torch.zeros(2, 8), torch.zeros(3, 2), 1.0),
            }
        )
    assert "unet.to_z.weight: the model has no such weight" in str(caught.value)
    assert "unet.to_q.weight: changes a weight of shape [3, 8], the model's is [3, 4]" in str(caught.value)


def test_hashes_follow_the_contents(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "a", {"w": torch.zeros(2)})
    second = checkpoint(tmp_path / "b", {"w": torch.ones(2)})
    assert set(first.sha256.values()) != set(second.sha256.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_weights_that_are_not_numbers_are_noticed_when_they_are_read(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    save_file({"w": torch.tensor([1.0, value]).to(dtype)}, tmp_path / "model.safetensors")
    weights = open_weights({"unet": tmp_path})
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: unet\.w holds NaN or infinity"):
        weights.tensor("unet.w", torch.float32)
    with pytest.raises(ModelError, match="holds NaN or infinity"):
        list(weights.slabs("unet.w", torch.float32))
