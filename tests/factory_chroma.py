"""Tiny random Chroma checkpoints in the layout that diffusers writes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from factory import t5_tokenizer, tiny_t5, tiny_vae
from factory_families import save_pipeline


def tiny_chroma(folder: Path, *, seed: int = 0, channels: int = 4, **transformer: Any) -> Path:
    """A Chroma pipeline with two blocks of each kind, since their modulations lie in one row; four pixels a cell."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 4 * channels, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
        "approximator_num_channels": 16, "approximator_hidden_dim": 24, "approximator_layers": 2,
    }  # fmt: skip
    components = {
        "transformer": ChromaTransformer2DModel(**settings | transformer),
        "vae": tiny_vae(channels, scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": tiny_t5(32),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
    }
    t5_tokenizer(folder / "tokenizer")
    return save_pipeline(folder, "ChromaPipeline", components, {"tokenizer": "T5TokenizerFast"})
