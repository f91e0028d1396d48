"""Tiny random checkpoints in the real diffusers layout: a second to make, a second to run."""

import json
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config

CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("t h", "th e</w>", "r e", "re d</w>", "i n", "in g</w>", "c i", "ci r", "cir c", "l e</w>", "circ le</w>")


def tiny_sd3(folder: Path, *, t5: bool = True, channels: int = 4, seed: int = 0, **transformer: Any) -> Path:
    """A Stable Diffusion 3 pipeline: two blocks, the first with dual attention as in 3.5 medium; four pixels a cell.

    Args:
        folder: Where it is written; also returned.
        t5: With the third text encoder.
        channels: Of the latent.
        transformer: Overrides of the transformer's configuration.
    """
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "sample_size": 32, "patch_size": 2, "in_channels": channels, "out_channels": channels, "num_layers": 2,
        "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 32, "caption_projection_dim": 16,
        "pooled_projection_dim": 24, "pos_embed_max_size": 24, "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    }  # fmt: skip
    components: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(**settings | transformer),
        "vae": tiny_vae(channels),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": tiny_clip(16, 8),
        "text_encoder_2": tiny_clip(16, 16),
        "text_encoder_3": tiny_t5(32) if t5 else None,
    }
    for name, component in components.items():
        if component is not None:
            if isinstance(component, torch.nn.Module):
                liven(component)
            component.save_pretrained(folder / name)
    clip_tokenizer(folder / "tokenizer", pad=CLIP_END)
    clip_tokenizer(folder / "tokenizer_2", pad="!")
    if t5:
        t5_tokenizer(folder / "tokenizer_3")
    write_index(
        folder,
        "StableDiffusion3Pipeline",
        transformer=("diffusers", "SD3Transformer2DModel"),
        vae=("diffusers", "AutoencoderKL"),
        scheduler=("diffusers", "FlowMatchEulerDiscreteScheduler"),
        text_encoder=("transformers", "CLIPTextModelWithProjection"),
        text_encoder_2=("transformers", "CLIPTextModelWithProjection"),
        text_encoder_3=("transformers", "T5EncoderModel") if t5 else (None, None),
        tokenizer=("transformers", "CLIPTokenizer"),
        tokenizer_2=("transformers", "CLIPTokenizer"),
        tokenizer_3=("transformers", "T5TokenizerFast") if t5 else (None, None),
    )
    return folder


def tiny_vae(channels: int, **overrides: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": channels, "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    return AutoencoderKL(**settings | overrides)


def tiny_upsampler(folder: Path, channels: int = 4, seed: int = 0, **info: Any) -> Path:
    """A latent upsampler with random weights; `info` goes into its lssgen.json, if there is any."""
    torch.manual_seed(seed)
    config = replace(published_config(channels), block_out_channels=(8, 8), norm_num_groups=4)
    LatentUpSampler(config).save_pretrained(folder)
    if info:
        write_json(folder / "lssgen.json", info)
    return folder


def tiny_clip(width: int, projection: int, cls: type = CLIPTextModelWithProjection) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(clip_vocabulary()), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, projection_dim=projection, max_position_embeddings=77,
        bos_token_id=clip_vocabulary()[CLIP_START], eos_token_id=clip_vocabulary()[CLIP_END], pad_token_id=1,
    )  # fmt: skip
    return cls(config)


def tiny_t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=300, d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    return T5EncoderModel(config)


def liven(module: Any) -> None:
    """Give every parameter a value that matters: fresh modules have zeros and ones that hide mistakes."""
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" not in name:
                parameter.copy_(torch.randn_like(parameter) * (0.8 / parameter[0].numel() ** 0.5))


def byte_letters() -> list[str]:
    """The 256 printable stand-ins for bytes, of byte-level BPE."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_vocabulary() -> dict[str, int]:
    merged = [merge.replace(" ", "") for merge in MERGES]
    letters = byte_letters()
    tokens = ["!", *(letter for letter in letters if letter != "!"), *(letter + "</w>" for letter in letters), *merged]
    return {token: index for index, token in enumerate([*tokens, CLIP_START, CLIP_END])}


def clip_tokenizer(folder: Path, pad: str) -> None:
    """A CLIP tokenizer with a few merges, in the files that the published checkpoints have."""
    folder.mkdir(parents=True)
    write_json(folder / "vocab.json", clip_vocabulary())
    (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *MERGES, "")))
    special = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    )


def t5_tokenizer(folder: Path) -> None:
    """A unigram tokenizer with T5's special tokens."""
    folder.mkdir(parents=True)
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "▁",
        *string.ascii_letters,
        *string.digits,
        *".,!?'-",
        "▁the",
        "▁red",
        "ing",
        "le",
    ]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i) / 8) for i, p in enumerate(pieces)], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(
        folder / "tokenizer_config.json",
        {**special, "tokenizer_class": "T5TokenizerFast", "model_max_length": 512, "extra_ids": 0},
    )


def write_index(folder: Path, pipeline: str, **components: tuple[str | None, str | None]) -> None:
    index = {"_class_name": pipeline, "_diffusers_version": "0.33.1", **components}
    write_json(folder / "model_index.json", index)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
