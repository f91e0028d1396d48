"""Tiny random checkpoints of the Qwen-Image families, in the layout that diffusers writes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Transformer2DModel,
    QwenImageTransformer2DModel,
)
from factory import byte_letters
from factory_families import save_pipeline
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

WORDS = (
    "system", "Describe", " the", " image", " by", " detailing", " color", " shape", " size", " texture", " quantity",
    " text", " spatial", " relationships", " of", " objects", " and", " background", "user", "assistant", " red",
)  # fmt: skip
"""Words that are one token, as in the published vocabulary: those of the text around a prompt, and one more."""


def tiny_qwen(folder: Path, *, seed: int = 0, **transformer: Any) -> Path:
    """A Qwen-Image pipeline with two blocks; four pixels a cell."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    components = {
        "transformer": QwenImageTransformer2DModel(**settings | transformer),
        "vae": tiny_wan(),
        "text_encoder": tiny_qwen_text(),
        "scheduler": qwen_levels(),
    }
    qwen_tokenizer().save_pretrained(folder / "tokenizer")
    return save_pipeline(folder, "QwenImagePipeline", components, {"tokenizer": "Qwen2Tokenizer"})


def qwen_levels(longest: int = 1024) -> FlowMatchEulerDiscreteScheduler:
    """As published, but for 16 to 1024 tokens where it is 256 to 8192, so that pictures here reach beyond."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=16,
        max_image_seq_len=longest,
        shift_terminal=0.02,
    )


def tiny_wan(**overrides: Any) -> AutoencoderKLQwenImage:
    """Two halvings, one of time too; four channels, each with its own mean and deviation.

    Its attention is 12 wide, for which no engine has a fused kernel; nor has any for the 384 of the published one.
    """
    settings: dict[str, Any] = {
        "base_dim": 6, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [False, True],
        "latents_mean": [-0.7571, -0.7089, -0.9113, 0.1075], "latents_std": [2.8184, 1.4541, 2.3275, 2.6558],
    }  # fmt: skip
    return AutoencoderKLQwenImage(**settings | overrides)


def tiny_qwen_text(**overrides: Any) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers, and a tower for pictures."""
    end = qwen_vocabulary()[END]
    text: dict[str, Any] = {
        "vocab_size": len(qwen_vocabulary()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": end,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    tower = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text | overrides, vision_config=tower))


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A byte-level tokenizer whose merges make the words of the text around a prompt."""
    merges = dict.fromkeys((word[:end], word[end]) for word in written() for end in range(1, len(word)))
    return Qwen2Tokenizer(
        vocab={token: number for token, number in qwen_vocabulary().items() if token not in (END, START, STOP)},
        merges=list(merges),
        pad_token=END,
        eos_token=STOP,
        additional_special_tokens=[START, STOP],
        model_max_length=4096,
    )


def qwen_vocabulary() -> dict[str, int]:
    pieces = [word[:end] for word in written() for end in range(2, len(word) + 1)]
    tokens = dict.fromkeys([*byte_letters(), *pieces, END, START, STOP])
    return {token: number for number, token in enumerate(tokens)}


def written() -> list[str]:
    """`WORDS` as byte-level tokenizers write them."""
    return [word.replace(" ", "Ġ") for word in WORDS]


def tiny_qwen21(folder: Path, *, seed: int = 0, **transformer: Any) -> Path:
    """A Qwen-Image 2.1 pipeline with two blocks; four pixels a cell, where the published one has sixteen."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "context_in_dim": 32, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    components = {
        "transformer": QwenImage21Transformer2DModel(**settings | transformer),
        "vae": tiny_wan21(),
        "text_encoder": tiny_qwen3_text(),
        "scheduler": qwen_levels(4096),  # a cell is a token
    }
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "processor")
    return save_pipeline(folder, "QwenImage21Pipeline", components, {"processor": "Qwen3VLProcessor"})


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the published chat template makes of messages without pictures or tools."""


def tiny_wan21(**overrides: Any) -> AutoencoderKLQwenImage21:
    """Two halvings, one of time too, shortcuts around every block, and pictures with transparency."""
    settings: dict[str, Any] = {
        "base_dim": 6, "decoder_base_dim": 10, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
        "temperal_downsample": [False, True], "scale_factor_spatial": 4,
        "latents_mean": [0.5126, 0.7721, -0.0631, 1.3506], "latents_std": [3.2001, 3.2936, 3.4321, 3.0091],
    }  # fmt: skip
    return AutoencoderKLQwenImage21(**settings | overrides)


def tiny_qwen3_text(**overrides: Any) -> Qwen3VLForConditionalGeneration:
    """Two layers, and a tower for pictures."""
    end = qwen_vocabulary()[END]
    text: dict[str, Any] = {
        "vocab_size": len(qwen_vocabulary()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "bos_token_id": None, "eos_token_id": end,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    tower = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text | overrides, vision_config=tower))
