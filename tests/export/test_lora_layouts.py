"""Every layer of the published networks is found under the names of the original code."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from original_layout import Asked, Tensors, unet
from safetensors.torch import save_file

from lssgen.export.changes import Delta
from lssgen.export.lora import read_lora
from lssgen.export.lora_renaming import renaming
from lssgen.export.writer import weightless
from lssgen.lora.asked import Lora
from lssgen.lora.names import Renaming, Target
from lssgen.models.aliases import ALIASES


def published(alias: str, network: str, cls: type[Any]) -> tuple[Any, Mapping[str, torch.Size]]:
    """Configuration and layers of a network, without its weights."""
    with weightless(torch.float32):
        module = cls.from_config(dict(ALIASES[alias].published[network]))
    layers = {key: value.shape for key, value in module.state_dict().items() if value.ndim > 1}
    return module.config, layers


def kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def comfyui(name: str) -> str:
    return f"diffusion_model.{name}"


def saved(path: Path, factors: Tensors, rename: Callable[[str], str]) -> Lora:
    """What widens, by the original name of the layer."""
    tensors: Tensors = {}
    for key, up in factors.items():
        module = rename(key.removeprefix("model.diffusion_model.").removesuffix(".weight"))
        tensors |= {f"{module}.lora_up.weight": up[:, None], f"{module}.lora_down.weight": torch.ones(1, 1)}
    save_file(tensors, path)
    return Lora(path)


def read(lora: Lora, layers: Mapping[str, torch.Size], network: str, rename: Renaming) -> Mapping[str, Delta]:
    shapes = {f"{network}.{key}": tuple(shape) for key, shape in layers.items()}
    (changes,) = read_lora(lora, Target(shapes, network, rename, {network: ""})).changes
    return {key: change for key, change in changes.items() if isinstance(change, Delta)}


@pytest.mark.parametrize("rename", [kohya, comfyui])
def test_every_layer_of_sdxl_is_found(tmp_path: Path, rename: Callable[[str], str]) -> None:
    config, layers = published("sdxl", "unet", UNet2DConditionModel)
    numbers = {key: torch.tensor([float(at)]) for at, key in enumerate(layers)}
    lora = saved(tmp_path / "lora.safetensors", unet(numbers, layers=2), rename)
    deltas = read(lora, layers, "unet", renaming("StableDiffusionXLPipeline", config))
    assert {key: int(delta.up) for key, delta in deltas.items()} == {f"unet.{key}": at for at, key in enumerate(layers)}


@pytest.mark.parametrize("rename", [kohya, comfyui])
def test_rows_of_every_change_go_where_the_rows_of_the_weight_go_in_flux(
    tmp_path: Path, rename: Callable[[str], str]
) -> None:
    config, layers = published("flux-dev", "transformer", FluxTransformer2DModel)
    asked = Asked(("double_blocks.18.x", "single_blocks.37.x", "guidance_in.x"))
    rows = convert_flux_transformer_checkpoint_to_diffusers(asked)
    numbers = {
        key: torch.arange(7 * 3072.0) + 7 * 3072 * at for at, key in enumerate(asked.taken) if key.endswith(".weight")
    }
    lora = saved(tmp_path / "lora.safetensors", numbers, rename)
    deltas = read(lora, layers, "transformer", renaming("FluxPipeline", config))
    assert set(deltas) == {f"transformer.{key}" for key in layers}
    for key in layers:
        assert torch.equal(deltas[f"transformer.{key}"].up.flatten().long(), rows[key])
