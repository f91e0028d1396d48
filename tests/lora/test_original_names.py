"""Names of the original code are read without torch as diffusers reads them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from lssgen.errors import ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.deltas import read_deltas

HIDDEN, MLP = 3072, 12288
"""Widths of FLUX.1, which diffusers counts on."""
FLUX: Mapping[str, tuple[int, ...]] = {
    **{f"transformer.transformer_blocks.3.attn.to_{letter}.weight": (HIDDEN, HIDDEN) for letter in "qkv"},
    **{f"transformer.transformer_blocks.3.attn.add_{letter}_proj.weight": (HIDDEN, HIDDEN) for letter in "qkv"},
    "transformer.transformer_blocks.3.attn.to_out.0.weight": (HIDDEN, HIDDEN),
    "transformer.transformer_blocks.3.attn.to_add_out.weight": (HIDDEN, HIDDEN),
    "transformer.transformer_blocks.3.ff.net.0.proj.weight": (MLP, HIDDEN),
    "transformer.transformer_blocks.3.ff.net.2.weight": (HIDDEN, MLP),
    "transformer.transformer_blocks.3.ff_context.net.0.proj.weight": (MLP, HIDDEN),
    "transformer.transformer_blocks.3.ff_context.net.2.weight": (HIDDEN, MLP),
    "transformer.transformer_blocks.3.norm1.linear.weight": (6 * HIDDEN, HIDDEN),
    "transformer.transformer_blocks.3.norm1_context.linear.weight": (6 * HIDDEN, HIDDEN),
    **{f"transformer.single_transformer_blocks.7.attn.to_{letter}.weight": (HIDDEN, HIDDEN) for letter in "qkv"},
    "transformer.single_transformer_blocks.7.proj_mlp.weight": (MLP, HIDDEN),
    "transformer.single_transformer_blocks.7.proj_out.weight": (HIDDEN, HIDDEN + MLP),
    "transformer.single_transformer_blocks.7.norm.linear.weight": (3 * HIDDEN, HIDDEN),
    "transformer.x_embedder.weight": (HIDDEN, 64),
    "transformer.context_embedder.weight": (HIDDEN, 48),
    "transformer.proj_out.weight": (64, HIDDEN),
    "transformer.norm_out.linear.weight": (2 * HIDDEN, HIDDEN),
    "transformer.time_text_embed.timestep_embedder.linear_1.weight": (HIDDEN, 256),
    "transformer.time_text_embed.timestep_embedder.linear_2.weight": (HIDDEN, HIDDEN),
    "transformer.time_text_embed.guidance_embedder.linear_1.weight": (HIDDEN, 256),
    "transformer.time_text_embed.guidance_embedder.linear_2.weight": (HIDDEN, HIDDEN),
    "transformer.time_text_embed.text_embedder.linear_1.weight": (HIDDEN, 24),
    "transformer.time_text_embed.text_embedder.linear_2.weight": (HIDDEN, HIDDEN),
}
ORIGINAL = {
    "double_blocks.3.img_attn.qkv": (3 * HIDDEN, HIDDEN),
    "double_blocks.3.txt_attn.qkv": (3 * HIDDEN, HIDDEN),
    "double_blocks.3.img_attn.proj": (HIDDEN, HIDDEN),
    "double_blocks.3.txt_attn.proj": (HIDDEN, HIDDEN),
    "double_blocks.3.img_mlp.0": (MLP, HIDDEN),
    "double_blocks.3.img_mlp.2": (HIDDEN, MLP),
    "double_blocks.3.txt_mlp.0": (MLP, HIDDEN),
    "double_blocks.3.txt_mlp.2": (HIDDEN, MLP),
    "double_blocks.3.img_mod.lin": (6 * HIDDEN, HIDDEN),
    "double_blocks.3.txt_mod.lin": (6 * HIDDEN, HIDDEN),
    "single_blocks.7.linear1": (3 * HIDDEN + MLP, HIDDEN),
    "single_blocks.7.linear2": (HIDDEN, HIDDEN + MLP),
    "single_blocks.7.modulation.lin": (3 * HIDDEN, HIDDEN),
    "img_in": (HIDDEN, 64),
    "txt_in": (HIDDEN, 48),
    "final_layer.linear": (64, HIDDEN),
    "final_layer.adaLN_modulation.1": (2 * HIDDEN, HIDDEN),
    "time_in.in_layer": (HIDDEN, 256),
    "time_in.out_layer": (HIDDEN, HIDDEN),
    "guidance_in.in_layer": (HIDDEN, 256),
    "guidance_in.out_layer": (HIDDEN, HIDDEN),
    "vector_in.in_layer": (HIDDEN, 24),
    "vector_in.out_layer": (HIDDEN, HIDDEN),
}


def kohya(name: str) -> tuple[str, str]:
    flat = "lora_unet_" + name.replace(".", "_")
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def comfyui(name: str) -> tuple[str, str]:
    return f"diffusion_model.{name}.lora_A.weight", f"diffusion_model.{name}.lora_B.weight"


def drawn(
    path: Path, layers: Mapping[str, tuple[int, ...]], name: Callable[[str], tuple[str, str]]
) -> Mapping[str, np.ndarray]:
    """A LoRA of rank 2 for layers of the original code, and the second factor of each."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    wide: dict[str, np.ndarray] = {}
    for layer, (rows, columns) in layers.items():
        down, up = (rng.standard_normal(shape, np.float32) for shape in ((2, columns), (rows, 2)))
        tensors |= dict(zip(name(layer), (down, up), strict=True))
        wide[layer] = up
    save_arrays(tensors, path, {"lora_alpha": "2"})
    return wide


@pytest.mark.parametrize("name", [kohya, comfyui])
def test_every_layer_of_flux_is_changed_as_diffusers_changes_it(
    tmp_path: Path, name: Callable[[str], tuple[str, str]]
) -> None:
    from lssgen.export.changes import Delta
    from lssgen.export.lora import read_lora
    from lssgen.export.lora_renaming import renaming
    from lssgen.lora.names import Target

    path = tmp_path / "style.safetensors"
    drawn(path, ORIGINAL, name)
    target = Target(dict(FLUX), "transformer", renaming("FluxPipeline", None), {"transformer": ""})
    (changes,) = read_lora(Lora(path), target).changes
    found = read_deltas(Lora(path), FLUX).by_weight
    assert found.keys() == changes.keys() == FLUX.keys()
    for key, change in changes.items():
        assert isinstance(change, Delta)
        np.testing.assert_array_equal(found[key].down, change.down.numpy())
        np.testing.assert_array_equal(found[key].up, change.up.numpy())
        assert found[key].scale == change.scale


@pytest.mark.parametrize("name", [kohya, comfyui])
def test_every_layer_of_sdxl_is_found(tmp_path: Path, name: Callable[[str], tuple[str, str]]) -> None:
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
    from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
    from original_layout import unet

    from lssgen.export.writer import weightless
    from lssgen.models.aliases import ALIASES

    with weightless(torch.float32):
        module: Any = UNet2DConditionModel.from_config(dict(ALIASES["sdxl"].published["unet"]))
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items() if value.ndim > 1}
    numbers = {key: torch.full((shape[0],), float(at)) for at, (key, shape) in enumerate(shapes.items())}
    tensors: dict[str, torch.Tensor] = {}
    for original, rows in unet(numbers, layers=2).items():
        at = int(rows[0])
        inside = list(shapes.values())[at][1:]
        down, up = name(original.removeprefix("model.diffusion_model.").removesuffix(".weight"))
        tensors |= {down: torch.ones(1, *inside), up: rows.reshape(-1, 1, *[1] * (len(inside) - 1)).contiguous()}
    save_file(tensors, tmp_path / "style.safetensors")
    found = read_deltas(Lora(tmp_path / "style.safetensors"), {f"unet.{key}": one for key, one in shapes.items()})
    assert {key: int(delta.up.flatten()[0]) for key, delta in found.by_weight.items()} == {
        f"unet.{key}": at for at, key in enumerate(shapes)
    }


JOINT: Mapping[str, tuple[int, ...]] = {
    **{f"transformer.transformer_blocks.0.attn.to_{letter}.weight": (HIDDEN, HIDDEN) for letter in "qkv"},
    "transformer.transformer_blocks.0.ff.net.0.proj.weight": (MLP, HIDDEN),
}


def test_fused_layers_of_sd3_come_apart_in_the_order_of_query_key_and_value(tmp_path: Path) -> None:
    layers = {"joint_blocks.0.x_block.attn.qkv": (3 * HIDDEN, HIDDEN), "joint_blocks.0.x_block.mlp.fc1": (MLP, HIDDEN)}
    wide = drawn(tmp_path / "style.safetensors", layers, kohya)
    found = read_deltas(Lora(tmp_path / "style.safetensors"), JOINT).by_weight
    whole = np.concatenate([found[key].up for key in list(JOINT)[:3]])
    np.testing.assert_array_equal(whole, wide["joint_blocks.0.x_block.attn.qkv"])


def test_bfloat16_is_read_without_a_package_for_it(tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    down, up = torch.randn(2, HIDDEN).bfloat16(), torch.randn(HIDDEN, 2).bfloat16()
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "style.safetensors")
    delta = read_deltas(Lora(tmp_path / "style.safetensors"), JOINT).by_weight[f"{name}.weight"]
    np.testing.assert_array_equal(delta.down, down.float().numpy())
    np.testing.assert_array_equal(delta.up, up.float().numpy())


@pytest.mark.parametrize("layer", ["double_blocks.9.img_attn.qkv", "joint_blocks.0.x_block.attn.qkv", "nothing.at.all"])
def test_original_names_of_layers_that_are_not_there_are_listed(tmp_path: Path, layer: str) -> None:
    drawn(tmp_path / "style.safetensors", {layer: (96, 32)}, kohya)
    with pytest.raises(ModelError, match=rf"there is no weight, or no slot, for lora_unet_{layer.replace('.', '_')}"):
        read_deltas(Lora(tmp_path / "style.safetensors"), FLUX)
