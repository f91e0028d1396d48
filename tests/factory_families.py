"""Tiny random checkpoints of the families besides SD3, in the layout that diffusers writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    CogView4Transformer2DModel,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    LCMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
)
from factory import (
    CLIP_END,
    byte_letters,
    clip_tokenizer,
    liven,
    t5_tokenizer,
    tiny_clip,
    tiny_t5,
    tiny_vae,
    write_index,
    write_json,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTextModel, GlmConfig, GlmModel

BETAS: Mapping[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip


def pndm(**more: Any) -> PNDMScheduler:
    """Of Stable Diffusion 1."""
    return PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, **more)


def ddim(**more: Any) -> DDIMScheduler:
    """Of Stable Diffusion 2.1, which predicts velocity."""
    return DDIMScheduler(**{**BETAS, "set_alpha_to_one": False, "clip_sample": False, **more})


def euler(**more: Any) -> EulerDiscreteScheduler:
    """Of Stable Diffusion XL."""
    return EulerDiscreteScheduler(**BETAS, **more)


def edm() -> EDMDPMSolverMultistepScheduler:
    """Of Playground v2.5."""
    return EDMDPMSolverMultistepScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)


def lcm() -> LCMScheduler:
    """Of latent consistency models."""
    return LCMScheduler(**BETAS, clip_sample=False)


def tiny_unet(**overrides: Any) -> UNet2DConditionModel:
    """Two levels, one layer each."""
    settings: dict[str, Any] = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
        "block_out_channels": (8, 16), "attention_head_dim": 2, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**settings | overrides)


def tiny_sd(folder: Path, scheduler: Any = None, *, seed: int = 0, **unet: Any) -> Path:
    """A Stable Diffusion 1 pipeline; four pixels a cell."""
    torch.manual_seed(seed)
    components = {
        "unet": tiny_unet(**unet),
        "vae": tiny_vae(4, scaling_factor=0.18215, shift_factor=None, use_quant_conv=True, use_post_quant_conv=True),
        "text_encoder": tiny_clip(16, 16, CLIPTextModel),
        "scheduler": scheduler or pndm(),
    }
    clip_tokenizer(folder / "tokenizer", pad=CLIP_END)
    return save_pipeline(folder, "StableDiffusionPipeline", components, {"tokenizer": "CLIPTokenizer"})


def tiny_sdxl(
    folder: Path, scheduler: Any = None, *, seed: int = 0, vae: Mapping[str, Any] | None = None, **unet: Any
) -> Path:
    """A Stable Diffusion XL pipeline; four pixels a cell."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "cross_attention_dim": 32, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 12, "use_linear_projection": True,
    }  # fmt: skip
    components = {
        "unet": tiny_unet(**settings | unet),
        "vae": tiny_vae(4, **{"scaling_factor": 0.13025, "shift_factor": None, "force_upcast": True, **(vae or {})}),
        "text_encoder": tiny_clip(16, 16, CLIPTextModel),
        "text_encoder_2": tiny_clip(16, 12),
        "scheduler": scheduler or euler(),
    }
    clip_tokenizer(folder / "tokenizer", pad=CLIP_END)
    clip_tokenizer(folder / "tokenizer_2", pad="!")
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    return save_pipeline(
        folder, "StableDiffusionXLPipeline", components, tokenizers, {"force_zeros_for_empty_prompt": True}
    )


PLAYGROUND: Mapping[str, Any] = {
    "scaling_factor": 0.5,
    "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
    "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
}
"""What Playground's autoencoder has in place of a scaling factor."""


def tiny_flux(folder: Path, *, seed: int = 0, guided: bool = True, **transformer: Any) -> Path:
    """A FLUX.1 pipeline with a block of each kind; `guided` as dev and Krea are, schnell is not."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6), "guidance_embeds": guided,
    }  # fmt: skip
    levels = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15} if guided else {"shift": 1.0}
    components = {
        "transformer": FluxTransformer2DModel(**settings | transformer),
        "vae": tiny_vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": tiny_clip(16, 16, CLIPTextModel),
        "text_encoder_2": tiny_t5(32),
        "scheduler": FlowMatchEulerDiscreteScheduler(**levels),
    }
    clip_tokenizer(folder / "tokenizer", pad=CLIP_END)
    t5_tokenizer(folder / "tokenizer_2")
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"}
    return save_pipeline(folder, "FluxPipeline", components, tokenizers)


def tiny_cogview4(folder: Path, *, seed: int = 0, **transformer: Any) -> Path:
    """A CogView4 pipeline with two blocks."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8, "sample_size": 16,
    }  # fmt: skip
    glm = GlmConfig(
        vocab_size=len(glm_vocabulary()), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, pad_token_id=glm_vocabulary()[GLM_END],
        eos_token_id=glm_vocabulary()[GLM_END],
    )  # fmt: skip
    components = {
        "transformer": CogView4Transformer2DModel(**settings | transformer),
        "vae": tiny_vae(4, scaling_factor=1.0, shift_factor=0.0),
        "text_encoder": GlmModel(glm),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, time_shift_type="linear", base_shift=0.25, max_shift=0.75
        ),
    }
    glm_tokenizer(folder / "tokenizer")
    return save_pipeline(folder, "CogView4Pipeline", components, {"tokenizer": "PreTrainedTokenizerFast"})


GLM_MASK, GLM_START, GLM_END = "[gMASK]", "<sop>", "<|endoftext|>"


def glm_vocabulary() -> dict[str, int]:
    return {token: index for index, token in enumerate([*byte_letters(), GLM_END, GLM_MASK, GLM_START])}


def glm_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with GLM's two tokens in front and its filling on the left."""
    folder.mkdir(parents=True)
    vocabulary = glm_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab={t: i for t, i in vocabulary.items() if len(t) == 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([GLM_END, GLM_MASK, GLM_START])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{GLM_MASK} {GLM_START} $A",
        special_tokens=[(token, vocabulary[token]) for token in (GLM_MASK, GLM_START)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": GLM_END,
            "eos_token": GLM_END,
            "padding_side": "left",
            "model_max_length": 1024,
            "model_input_names": ["input_ids", "attention_mask"],
        },
    )


def save_pipeline(
    folder: Path,
    pipeline: str,
    components: Mapping[str, Any],
    tokenizers: Mapping[str, str],
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Write every component and a model_index.json that names them.

    Args:
        folder: Has the tokenizers already; also returned.
        pipeline: Class of the pipeline.
        components: Modules and the scheduler, by folder.
        tokenizers: Classes, by folder.
        settings: Of the pipeline itself.
    """
    index: dict[str, tuple[str, str]] = {name: ("transformers", cls) for name, cls in tokenizers.items()}
    for name, component in components.items():
        if isinstance(component, torch.nn.Module):
            liven(component)
        component.save_pretrained(folder / name)
        index[name] = (type(component).__module__.partition(".")[0], type(component).__name__)
    write_index(folder, pipeline, **index)
    if settings:
        path = folder / "model_index.json"
        write_json(path, {**json.loads(path.read_text()), **settings})
    return folder
