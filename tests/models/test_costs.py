"""FLOPs from a config.json against torch's own count of the same network, made without weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    CogView4Transformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch.utils.flop_counter import FlopCounterMode

from lssgen.models.costs import cogview_cost, flux2_cost, flux_cost, mmdit_cost, unet_cost, zimage_cost
from lssgen.models.nets.zimage import ZImageStep

TEXT = 13  # tokens, a number that is no other size here
Inputs = Callable[[int, int], dict[str, Any]]

SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 16,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 6, 6),
}
FLUX2 = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}
COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "text_embed_dim": 24,
    "time_embed_dim": 20,
    "condition_dim": 6,
    "sample_size": 16,
    "rope_axes_dim": (16, 16),
}
SD = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
SDXL = SD | {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (4, 4, 8),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 68,
    "use_linear_projection": True,
    "time_cond_proj_dim": 16,
}
SSD_1B = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 3]],
    "reverse_transformer_layers_per_block": [[4, 4, 5], [2, 1, 1], 1],
}
"""Shapes of the fields in which Segmind's smaller SDXL says how deep every single layer is."""


def sd3_inputs(height: int, width: int) -> dict[str, Any]:
    return {"hidden_states": _(4, height, width), "encoder_hidden_states": _(TEXT, 24), "pooled_projections": _(20)}


def flux_inputs(height: int, width: int) -> dict[str, Any]:
    tokens = height * width // 4
    text = {"encoder_hidden_states": _(TEXT, 24), "pooled_projections": _(20), "txt_ids": torch.empty(TEXT, 3)}
    return {"hidden_states": _(tokens, 16), "img_ids": torch.empty(tokens, 3), **text}


def guided_inputs(height: int, width: int) -> dict[str, Any]:
    return {**flux_inputs(height, width), "guidance": _()}


def flux2_inputs(height: int, width: int) -> dict[str, Any]:
    tokens = height * width // 4
    text = {"encoder_hidden_states": _(TEXT, 24), "txt_ids": torch.empty(TEXT, 4)}
    return {"hidden_states": _(tokens, 16), "img_ids": torch.empty(tokens, 4), **text}


def flux2_dev_inputs(height: int, width: int) -> dict[str, Any]:
    return {**flux2_inputs(height, width), "guidance": _()}


def cogview_inputs(height: int, width: int) -> dict[str, Any]:
    sizes = {name: _(2) for name in ("original_size", "target_size", "crop_coords")}
    return {"hidden_states": _(4, height, width), "encoder_hidden_states": _(TEXT, 24), **sizes}


def sd_inputs(height: int, width: int) -> dict[str, Any]:
    return {"sample": _(4, height, width), "encoder_hidden_states": _(TEXT, 24)}


def sdxl_inputs(height: int, width: int) -> dict[str, Any]:
    added = {"text_embeds": _(20), "time_ids": _(6)}
    return {**sd_inputs(height, width), "added_cond_kwargs": added, "timestep_cond": _(16)}


def _(*shape: int) -> torch.Tensor:
    return torch.empty(1, *shape)


CASES: list[tuple[str, Any, dict[str, Any], Any, Inputs]] = [
    ("sd3", SD3Transformer2DModel, SD3, mmdit_cost, sd3_inputs),
    ("sd3.5", SD3Transformer2DModel, SD3 | {"dual_attention_layers": (0, 1)}, mmdit_cost, sd3_inputs),
    ("flux-schnell", FluxTransformer2DModel, FLUX, flux_cost, flux_inputs),
    ("flux-dev", FluxTransformer2DModel, FLUX | {"guidance_embeds": True}, flux_cost, guided_inputs),
    ("flux2-klein", Flux2Transformer2DModel, FLUX2, flux2_cost, flux2_inputs),
    ("flux2-dev", Flux2Transformer2DModel, FLUX2 | {"guidance_embeds": True}, flux2_cost, flux2_dev_inputs),
    ("flux2, odd", Flux2Transformer2DModel, FLUX2 | {"mlp_ratio": 2.7}, flux2_cost, flux2_inputs),
    ("cogview4", CogView4Transformer2DModel, COGVIEW, cogview_cost, cogview_inputs),
    ("sd", UNet2DConditionModel, SD, unet_cost, sd_inputs),
    ("sd without a middle", UNet2DConditionModel, SD | {"mid_block_type": None}, unet_cost, sd_inputs),
    ("sd with a plain middle", UNet2DConditionModel, SD | {"mid_block_type": "UNetMidBlock2D"}, unet_cost, sd_inputs),
    ("lcm-sdxl", UNet2DConditionModel, SDXL, unet_cost, sdxl_inputs),
    ("ssd-1b", UNet2DConditionModel, SDXL | SSD_1B, unet_cost, sdxl_inputs),
    (
        "one way up",
        UNet2DConditionModel,
        SDXL | {"reverse_transformer_layers_per_block": (1, 3, 2)},
        unet_cost,
        sdxl_inputs,
    ),
    ("layers by level", UNet2DConditionModel, SD | {"layers_per_block": (1, 3)}, unet_cost, sd_inputs),
    ("text width by level", UNet2DConditionModel, SD | {"cross_attention_dim": (24, 24)}, unet_cost, sd_inputs),
]


@pytest.mark.parametrize(("make", "config", "cost", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_cost_is_what_torch_counts(make: Any, config: dict[str, Any], cost: Any, inputs: Inputs) -> None:
    with torch.device("meta"):
        network = make(**config)
        for height, width in ((8, 12), (16, 16)):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                network(timestep=_(), **inputs(height, width))
            # Every product is counted on both sides: these are whole numbers, and equal.
            assert cost(config, TEXT).flops(height * width) == counter.get_total_flops()


ZIMAGE = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 3,
    "n_refiner_layers": 2,
    "n_heads": 2,
    "cap_feat_dim": 24,
    "axes_dims": (4, 6, 6),
    "axes_lens": (64, 64, 64),
}


@pytest.mark.parametrize("size", [(8, 16), (16, 24)])
def test_cost_of_zimage_is_that_of_the_graph_for_pictures_without_filling(size: tuple[int, int]) -> None:
    """Of the step and not of the published network, which computes the last layer for the text too."""
    with torch.device("meta"):
        step = ZImageStep(ZImageTransformer2DModel(**ZIMAGE))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            step.velocity(_(4, *size), torch.empty(1), _(TEXT, 24), _(TEXT))
    assert zimage_cost(ZIMAGE, TEXT).flops(size[0] * size[1]) == counter.get_total_flops()
