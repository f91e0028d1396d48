"""Tiny random ControlNets and checkpoints that inpaint, in the layout that diffusers writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factory_families as factory
import numpy as np
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, FluxControlNetModel, SD3ControlNetModel
from factory import liven, tiny_sd3, write_json
from PIL import Image

CELL = 4
"""Pixels along a cell of the tiny autoencoders."""

UNET: dict[str, Any] = {
    "in_channels": 4, "layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16),
    "attention_head_dim": 2, "cross_attention_dim": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (4, 6, 8),
}  # fmt: skip

SDXL: dict[str, Any] = UNET | {
    "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 12, "use_linear_projection": True,
}  # fmt: skip


def control_sd(folder: Path, **more: Any) -> Path:
    return saved(folder, ControlNetModel, UNET | more)


def control_sdxl(folder: Path, **more: Any) -> Path:
    return saved(folder, ControlNetModel, SDXL | more)


def union_sdxl(folder: Path, **more: Any) -> Path:
    """Eight kinds of picture, as the larger published one has."""
    task = {"num_control_type": 8, "num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    return saved(folder, ControlNetUnionModel, SDXL | task | more)


def control_flux(folder: Path, **more: Any) -> Path:
    settings: dict[str, Any] = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
    }  # fmt: skip
    return saved(folder, FluxControlNetModel, settings | more)


def control_sd3(folder: Path, **more: Any) -> Path:
    settings: dict[str, Any] = {
        "sample_size": 32, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16,
        "pooled_projection_dim": 24, "pos_embed_max_size": 24, "force_zeros_for_pooled_projection": False,
    }  # fmt: skip
    return saved(folder, SD3ControlNetModel, settings | more)


def saved(folder: Path, cls: Any, settings: dict[str, Any], seed: int = 11) -> Path:
    """A model with weights that matter, those included which are zero before training."""
    torch.manual_seed(seed)
    model = cls(**settings)
    liven(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mode_embedder" in name or "task_embedding" in name:
                parameter.copy_(torch.randn_like(parameter))
            elif "controlnet_cond_embedding" in name and parameter.dim() > 1:
                # Strong enough that another picture moves latents by far more than oracles allow.
                parameter.copy_(torch.randn_like(parameter) * (2 / parameter[0].numel() ** 0.5))
            elif not parameter.any():  # the way in of the picture, which `liven` leaves alone as an embedding
                parameter.copy_(torch.randn_like(parameter) * (0.8 / parameter[0].numel() ** 0.5))
    model.save_pretrained(folder)
    return folder


def inpaint_sd(folder: Path, **more: Any) -> Path:
    """A Stable Diffusion checkpoint that takes a mask and a masked picture beside the latent."""
    return renamed(factory.tiny_sd(folder, in_channels=9, **more), "StableDiffusionInpaintPipeline")


def inpaint_sdxl(folder: Path) -> Path:
    return renamed(factory.tiny_sdxl(folder, in_channels=9), "StableDiffusionXLInpaintPipeline")


def fill_flux(folder: Path) -> Path:
    """FLUX Fill: latent, masked latent, and a channel for every pixel of a cell's mask, all packed."""
    channels = 4 * (4 + 4 + CELL * CELL)
    return renamed(factory.tiny_flux(folder, in_channels=channels, out_channels=16), "FluxFillPipeline")


def canny_flux(folder: Path) -> Path:
    """FLUX.1 Canny and Depth: the latent of a control picture beside the latent."""
    return renamed(factory.tiny_flux(folder, in_channels=32, out_channels=16), "FluxControlPipeline")


def renamed(folder: Path, pipeline: str) -> Path:
    path = folder / "model_index.json"
    write_json(path, {**json.loads(path.read_text()), "_class_name": pipeline})
    return folder


def drawing(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with large shapes and fine grain, so that every scale of it matters."""
    rng = np.random.default_rng(seed)
    grain = rng.integers(0, 80, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    shapes = (rows // 7 + columns // 11)[..., None] % 3 * np.array([60, 30, 80])
    return Image.fromarray((grain + shapes).astype(np.uint8))


def hole(width: int, height: int) -> Image.Image:
    """A mask whose edges lie inside of cells: white in the middle."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height - 9, width // 4 + 1 : width - 13] = 255
    return Image.fromarray(mask)


Make = Callable[[Path], Path]
SD3: Make = tiny_sd3
