"""The latent upsampler against arithmetic written out in NumPy, and its checkpoint format."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from lssgen.errors import UpsamplerError
from lssgen.models.nets.latent_upsampler import LatentUpSampler, UpSamplerConfig, published_config

Array = NDArray[np.float64]

TINY = UpSamplerConfig(
    in_channels=4, out_channels=4, block_out_channels=(16, 8), is_up_samples=(True, False), strides=(2, 1),
    norm_num_groups=4, interpolate="bilinear",
)  # fmt: skip
SHAPES = {
    "up": {"is_up_samples": (True, False), "strides": (2, 1)},
    "down": {"is_up_samples": (False, False), "strides": (2, 1)},
    "down by 3": {"is_up_samples": (False, True), "strides": (3, 2)},
    "plain": {"is_up_samples": (True, False), "strides": (1, 1)},
}


# ---- the reference: float64, one equation of the published network a function ----


def conv(x: Array, w: Array, b: Array, stride: int = 1, pad: int = 0) -> Array:
    """x (C, H, W), w (out, C, k, k)."""
    k = w.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), (k, k), (1, 2))
    return np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], w) + b[:, None, None]


def conv_transpose(x: Array, w: Array, b: Array) -> Array:
    """4x4, stride 2, padding 1; w (C, out, 4, 4): every cell of x stamps its 4x4 kernel, then a border is cut off."""
    _, height, width = x.shape
    full = np.zeros((w.shape[1], 2 * height + 2, 2 * width + 2))
    for i in range(height):
        for j in range(width):
            full[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,coab->oab", x[:, i, j], w)
    return full[:, 1:-1, 1:-1] + b[:, None, None]


def group_norm(x: Array, w: Array, b: Array, groups: int, eps: float) -> Array:
    grouped = x.reshape(groups, -1)
    normed = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + eps)
    return normed.reshape(x.shape) * w[:, None, None] + b[:, None, None]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def cubic(distance: Array, a: float = -0.75) -> Array:
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    return np.where(d <= 1, near, np.where(d < 2, a * (d**3 - 5 * d**2 + 8 * d - 4), 0))


def resize_matrix(size: int, factor: float, mode: str) -> Array:
    """(size * factor, size) weights of a one-dimensional resize with clamped borders, pixel centres at i + 1/2."""
    matrix = np.zeros((int(size * factor), size))
    for i in range(len(matrix)):
        if mode == "nearest":
            matrix[i, int(i / factor)] = 1
            continue
        at = (i + 0.5) / factor - 0.5
        for tap in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            weight = cubic(np.array(at - tap)) if mode == "bicubic" else max(0.0, 1 - abs(at - tap))
            matrix[i, min(max(tap, 0), size - 1)] += weight
    return matrix


def reference(config: UpSamplerConfig, weights: Mapping[str, Array], x: Array) -> Array:
    def get(name: str) -> tuple[Array, Array]:
        return weights[f"upsampler.{name}.weight"], weights[f"upsampler.{name}.bias"]

    groups, c_in = config.norm_num_groups, config.block_out_channels[0]
    h = conv(x, *get("conv_in"), pad=1)
    for n, (c_out, up, stride) in enumerate(
        zip(config.block_out_channels, config.is_up_samples, config.strides, strict=True)
    ):
        y = group_norm(h, *get(f"up_blocks.{n}.norm1"), groups, 1e-6)
        if stride > 1 and up:
            y = conv_transpose(y, *get(f"up_blocks.{n}.conv1"))
        else:
            y = conv(y, *get(f"up_blocks.{n}.conv1"), stride, pad=1)
        y = group_norm(silu(y), *get(f"up_blocks.{n}.norm2"), groups, 1e-6)
        y = silu(conv(y, *get(f"up_blocks.{n}.conv2"), pad=1))
        skip = conv(h, *get(f"up_blocks.{n}.skip_proj")) if c_in != c_out else h
        if stride > 1:
            factor = stride if up else 1 / stride
            rows, columns = (resize_matrix(size, factor, config.interpolate) for size in skip.shape[1:])
            skip = rows @ skip @ columns.T
        h, c_in = y + skip, c_out
    return conv(silu(group_norm(h, *get("norm_out"), groups, 1e-5)), *get("conv_out"), pad=1)


def random_upsampler(config: UpSamplerConfig) -> LatentUpSampler:
    """Weights a few times larger than torch's, and norms that are not the identity, so that every term counts."""
    model = LatentUpSampler(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model


# ---- what it computes ----


@pytest.mark.parametrize("interpolate", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_reference(shape: str, interpolate: str) -> None:
    config = UpSamplerConfig(
        in_channels=3, out_channels=5, block_out_channels=(8, 12), norm_num_groups=4, interpolate=interpolate,
        **SHAPES[shape],
    )  # fmt: skip
    model = random_upsampler(config)
    x = torch.randn(1, 3, 6, 12, generator=torch.Generator().manual_seed(1))
    weights = {key: value.double().numpy() for key, value in model.state_dict().items()}
    expected = reference(config, weights, x[0].double().numpy())
    with torch.no_grad():
        got = model(x)[0].numpy()
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 3e-6 * max(1, np.abs(expected).max())  # float32 rounding, about 20 sums deep


@pytest.mark.parametrize(("channels", "parameters"), [(16, 557_648), (4, 136_356)])
def test_published_shapes_have_the_published_size(channels: int, parameters: int) -> None:
    model = LatentUpSampler(published_config(channels))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == 24
    assert model(torch.zeros(1, channels, 3, 5)).shape == (1, channels, 6, 10)


def test_a_latent_does_not_depend_on_its_batch() -> None:
    model, x = random_upsampler(TINY), torch.randn(3, 4, 6, 6)
    assert torch.allclose(model(x)[1], model(x[1:2])[0], atol=1e-6)  # convolutions may sum in another order


@pytest.mark.parametrize("act_fn", ["silu", "relu", "gelu", "mish"])
def test_the_activation_is_the_one_of_the_config(act_fn: str) -> None:
    model = LatentUpSampler(UpSamplerConfig(act_fn=act_fn))
    x = torch.linspace(-3, 3, 7)
    assert torch.equal(model.upsampler.activation(x), getattr(torch.nn.functional, act_fn)(x))


# ---- the checkpoint ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_upsampler(TINY).to(dtype)
    model.save_pretrained(tmp_path)
    assert {value.dtype for value in load_file(tmp_path / "diffusion_pytorch_model.safetensors").values()} == {dtype}
    loaded = LatentUpSampler.from_pretrained(tmp_path)
    assert loaded.config == TINY
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[key].float())


def test_loading_can_change_the_type(tmp_path: Path) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    loaded = LatentUpSampler.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_loading_leaves_the_global_random_numbers_alone(tmp_path: Path) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    LatentUpSampler.from_pretrained(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_the_saved_config_names_the_class_and_every_field(tmp_path: Path) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "_class_name": "LatentUpSampler", "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 8],
        "is_up_samples": [True, False], "strides": [2, 1], "norm_num_groups": 4, "act_fn": "silu",
        "interpolate": "bilinear",
    }  # fmt: skip


def test_fields_that_a_config_leaves_out_have_the_published_defaults(tmp_path: Path) -> None:
    LatentUpSampler(UpSamplerConfig()).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "LatentUpSampler", "_diffusers_version": "0.33.1"}')
    assert LatentUpSampler.from_pretrained(tmp_path).config == UpSamplerConfig()


# ---- refusals ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"in_channels": "16"}, "must be an int above 0"),
        ({"block_out_channels": ()}, "must be a list of ints"),
        ({"is_up_samples": (1, 0)}, "must be a list of true and false"),
        ({"strides": (2,)}, r"\[2, 2, 1\] entries; each needs one per block"),
        ({"strides": (4, 1)}, "an enlarging block has stride 4"),
        ({"norm_num_groups": 3}, "16 channels do not divide into norm_num_groups 3"),
        ({"act_fn": "tanh"}, "act_fn is 'tanh', but must be one of"),
        ({"interpolate": "area"}, "interpolate is 'area', but must be one of"),
        ({"depth": 3}, "has fields that no LatentUpSampler has: depth"),
        ({"_class_name": "AutoencoderKL"}, "describes 'AutoencoderKL', not a LatentUpSampler"),
    ],
)
def test_refuses_a_config_that_makes_no_sense(tmp_path: Path, change: dict[str, object], words: str) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UpsamplerError, match=words):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_missing_and_unexpected_keys(tmp_path: Path) -> None:
    _save_with(tmp_path, lambda w: {("net" + k if "conv_in" in k else k): v for k, v in w.items()})
    with pytest.raises(UpsamplerError, match=r"missing: upsampler\.conv_in\.bias, .*; not expected: netupsampler"):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_a_wrong_shape(tmp_path: Path) -> None:
    _save_with(tmp_path, lambda w: w | {"upsampler.conv_in.weight": torch.zeros(16, 8, 3, 3)})
    with pytest.raises(UpsamplerError, match=r"has shape \[16, 8, 3, 3\], but config.json asks for \[16, 4, 3, 3\]"):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_a_type_that_is_no_weight(tmp_path: Path) -> None:
    _save_with(tmp_path, lambda w: {k: v.to(torch.int8) for k, v in w.items()})
    with pytest.raises(UpsamplerError, match=r"is torch\.int8, but upsamplers are F32, F16 or BF16"):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    _save_with(tmp_path, lambda w: w | {"upsampler.conv_out.bias": torch.full((4,), torch.nan)})
    with pytest.raises(UpsamplerError, match=r"upsampler\.conv_out\.bias holds NaN or infinity"):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_a_truncated_file(tmp_path: Path) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UpsamplerError, match="is damaged"):
        LatentUpSampler.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_names_the_file_that_is_missing(tmp_path: Path, name: str) -> None:
    random_upsampler(TINY).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UpsamplerError, match=f"no {name} in .*; an upsampler is a folder with config.json and"):
        LatentUpSampler.from_pretrained(tmp_path)


def test_refuses_a_model_with_other_channels() -> None:
    with pytest.raises(UpsamplerError, match="turns 4 latent channels into 4, but sd3 has 16"):
        LatentUpSampler(TINY).check_fits(16, model="sd3")


def test_refuses_to_stand_between_stages_without_doubling() -> None:
    config = UpSamplerConfig(block_out_channels=(32, 32), is_up_samples=(True, True), strides=(2, 2))
    with pytest.raises(UpsamplerError, match="enlarges 4 times, but stages double"):
        LatentUpSampler(config).check_fits(16, model="sd3")


def _save_with(folder: Path, change: object) -> None:
    random_upsampler(TINY).save_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file)  # type: ignore[operator]
