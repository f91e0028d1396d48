"""LoRAs in the names of the original code give the weights that diffusers and PEFT give."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from factory_families import tiny_flux, tiny_sd, tiny_sdxl
from safetensors.torch import save_file
from torch import Tensor, nn

from lssgen.export.checkpoint import Checkpoint
from lssgen.lora.asked import Lora


def text(trainer: str, part: str) -> dict[str, str]:
    """Changes of a CLIP. Where its output projection is not among them, diffusers does not know the file's form."""
    layers = {"self_attn_q_proj": "self_attn.q_proj", "self_attn_out_proj": "self_attn.out_proj", "mlp_fc1": "mlp.fc1"}
    return {
        f"{trainer}_text_model_encoder_layers_1_{flat}": f"{part}.text_model.encoder.layers.1.{name}"
        for flat, name in layers.items()
    }


SDXL = {
    "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q":
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "lora_unet_input_blocks_1_1_transformer_blocks_0_ff_net_0_proj":
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_input_blocks_1_0_in_layers_2": "unet.down_blocks.0.resnets.0.conv1",
    "lora_unet_input_blocks_2_0_op": "unet.down_blocks.0.downsamplers.0.conv",
    "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_unet_output_blocks_3_1_transformer_blocks_0_attn2_to_out_0":
        "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "lora_unet_label_emb_0_0": "unet.add_embedding.linear_1",
    **text("lora_te1", "text_encoder"),
    **text("lora_te2", "text_encoder_2"),
}  # fmt: skip
SD = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k":
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    **text("lora_te", "text_encoder"),
}  # fmt: skip
FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv": "transformer.transformer_blocks.0.attn.to_q",
    "lora_unet_double_blocks_0_txt_attn_qkv": "transformer.transformer_blocks.0.attn.add_q_proj",
    "lora_unet_double_blocks_0_img_mlp_0": "transformer.transformer_blocks.0.ff.net.0.proj",
    "lora_unet_double_blocks_0_txt_mod_lin": "transformer.transformer_blocks.0.norm1_context.linear",
    "lora_unet_single_blocks_0_linear2": "transformer.single_transformer_blocks.0.proj_out",
    **text("lora_te1", "text_encoder"),
}


def kohya(path: Path, pipeline: nn.Module, modules: Mapping[str, str], rank: int = 6) -> Path:
    """A random LoRA of kohya-ss, with an alpha; `modules` says where its changes go, for their sizes."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, place in modules.items():
        component, _, rest = place.partition(".")
        module = getattr(pipeline, component)
        if not hasattr(module, "text_model"):
            rest = rest.removeprefix("text_model.")
        weight = module.get_submodule(rest).weight
        fused = 3 if "qkv" in name else 1
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *weight.shape[1:])
        tensors[f"{name}.lora_up.weight"] = torch.randn(fused * weight.shape[0], rank, *[1] * (weight.ndim - 2))
        tensors[f"{name}.alpha"] = torch.tensor(rank / 3)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("make", "pipeline", "modules"),
    [
        (tiny_sd, StableDiffusionPipeline, SD),
        (tiny_sdxl, StableDiffusionXLPipeline, SDXL),
        (tiny_flux, FluxPipeline, FLUX),
    ],
    ids=["sd", "sdxl", "flux"],
)
def test_merged_weights_are_those_of_peft(
    tmp_path: Path, make: Callable[[Path], Path], pipeline: type[Any], modules: Mapping[str, str]
) -> None:
    folder = make(tmp_path / "model")
    fused = pipeline.from_pretrained(folder)
    file = kohya(tmp_path / "lora.safetensors", fused, modules)
    fused.load_lora_weights(file)
    fused.fuse_lora(components=fused._lora_loadable_modules, lora_scale=0.7)
    fused.unload_lora_weights()
    parts = tuple(dict.fromkeys(place.partition(".")[0] for place in modules.values()))
    plain = Checkpoint(folder)
    merged = plain.with_loras([Lora(file, 0.7)], parts, parts[0])
    modified = 0
    for part in parts:
        module = nn.ModuleDict({part: plain.skeleton(part, torch.float32)})
        before, after = (checkpoint.weights((part,)).fit(module) for checkpoint in (plain, merged))
        wanted = nn.ModuleDict({part: getattr(fused, part)}).state_dict()
        assert set(wanted) == set(after)
        modified += sum(not torch.equal(after.tensor(key), before.tensor(key)) for key in after)
        for key, value in wanted.items():
            # The same sums in float32, in another order.
            torch.testing.assert_close(after.tensor(key), value, rtol=1e-5, atol=1e-5)
    assert modified == sum(3 if "qkv" in name else 1 for name in modules)
