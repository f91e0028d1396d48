"""Tiny random Z-Image checkpoints in the layout that diffusers writes, with a tokenizer and template like Qwen3's."""

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from factory import byte_letters, tiny_vae, write_json
from factory_families import save_pipeline
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
MERGES = (("t", "h"), ("th", "e"), ("r", "e"), ("re", "d"), ("i", "n"), ("in", "g"), ("u", "s"), ("us", "e"))

TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""What Qwen3's own makes of messages without tools."""

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen cuts texts into words before it looks for pairs of bytes."""


def tiny_zimage(
    folder: Path, *, seed: int = 0, head: bool = False, shift: float = 6.0, channels: int = 4, **transformer: Any
) -> Path:
    """A Z-Image pipeline with two layers and a refiner of each kind; four pixels a cell.

    Args:
        folder: Where it is written; also returned.
        head: With the language model's head, as transformers' Qwen3ForCausalLM writes it.
        shift: Of the schedule: 6 as Z-Image, 3 as Z-Image-Turbo.
        channels: Of the latent.
        transformer: Overrides of the transformer's configuration.
    """
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": channels, "dim": 48, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 3, "n_kv_heads": 3,
        "cap_feat_dim": 32, "axes_dims": (4, 6, 6), "axes_lens": (1024, 256, 256),
    }  # fmt: skip
    components = {
        "transformer": ZImageTransformer2DModel(**settings | transformer),
        "vae": tiny_vae(channels, scaling_factor=0.3611, shift_factor=0.1159),
        "text_encoder": tiny_qwen3(32, cls=Qwen3ForCausalLM if head else Qwen3Model),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
    }
    qwen_tokenizer(folder / "tokenizer")
    return save_pipeline(folder, "ZImagePipeline", components, {"tokenizer": "Qwen2Tokenizer"})


def tiny_qwen3(width: int, *, layers: int = 3, cls: Any = Qwen3Model) -> Any:
    config = Qwen3Config(
        vocab_size=len(qwen_vocabulary()), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=qwen_vocabulary()[PAD],
    )  # fmt: skip
    return cls(config)


def qwen_vocabulary() -> dict[str, int]:
    tokens = [*byte_letters(), *("".join(pair) for pair in MERGES), PAD, START, END]
    return {token: index for index, token in enumerate(tokens)}


def qwen_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """A byte-level tokenizer with Qwen's special tokens, filling on the right, and a chat template."""
    folder.mkdir(parents=True)
    vocabulary = {token: index for token, index in qwen_vocabulary().items() if token not in (PAD, START, END)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": PAD,
        "eos_token": END,
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 131072,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
