"""Tiny random FLUX.2 checkpoints: klein and dev, with chat templates that say what the published ones say."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from factory import byte_letters, write_json
from factory_families import save_pipeline
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

QWEN_PAD, QWEN_START, QWEN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_WORDS = [*byte_letters(), QWEN_PAD, QWEN_START, QWEN_END, "<think>", "</think>"]
QWEN_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
MISTRAL_SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "<pad>"]
MISTRAL_WORDS = [*byte_letters(), *MISTRAL_SPECIAL]
MISTRAL_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- set name = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "{{- '[' + name + ']' }}{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for block in message.content %}{{- block.text if block.type == 'text' else '[IMG]' }}{%- endfor %}"
    "{%- endif %}{{- '[/' + name + ']' }}{%- endfor %}"
)

SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
}  # fmt: skip


def tiny_klein(folder: Path, *, seed: int = 0, distilled: bool = True, **transformer: Any) -> Path:
    """A FLUX.2 [klein] pipeline with a block of each kind; four pixels a cell."""
    torch.manual_seed(seed)
    language = Qwen3ForCausalLM(
        Qwen3Config(**SIZES, num_hidden_layers=28, vocab_size=len(QWEN_WORDS), pad_token_id=len(byte_letters()))
    )
    qwen_tokenizer(folder / "tokenizer")
    components = {**parts(guidance_embeds=False, **transformer), "text_encoder": language}
    tokenizers = {"tokenizer": "Qwen2TokenizerFast"}
    return save_pipeline(folder, "Flux2KleinPipeline", components, tokenizers, {"is_distilled": distilled})


def tiny_klein_base(folder: Path) -> Path:
    """The same, not distilled: with classifier-free guidance."""
    return tiny_klein(folder, distilled=False)


def tiny_dev(folder: Path, *, seed: int = 0, **transformer: Any) -> Path:
    """A FLUX.2 [dev] pipeline with a block of each kind; four pixels a cell."""
    torch.manual_seed(seed)
    vision = {"model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "head_dim": 8}  # fmt: skip
    text = {**SIZES, "model_type": "mistral", "num_hidden_layers": 31, "vocab_size": len(MISTRAL_WORDS),
            "sliding_window": None}  # fmt: skip
    language = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision))
    mistral_tokenizer(folder / "tokenizer")
    components = {**parts(guidance_embeds=True, **transformer), "text_encoder": language}
    return save_pipeline(folder, "Flux2Pipeline", components, {"tokenizer": "PreTrainedTokenizerFast"})


def parts(**transformer: Any) -> dict[str, Any]:
    """What klein and dev have alike."""
    settings: dict[str, Any] = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 3 * SIZES["hidden_size"], "axes_dims_rope": (4, 4, 4, 4),
    }  # fmt: skip
    return {
        "transformer": Flux2Transformer2DModel(**settings | transformer),
        "vae": tiny_vae_flux2(settings["in_channels"] // 4),
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
    }


def tiny_vae_flux2(channels: int, **overrides: Any) -> AutoencoderKLFlux2:
    """With statistics that differ between the cells of a square."""
    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 8), "norm_num_groups": 4, "latent_channels": channels, "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
    }  # fmt: skip
    vae = AutoencoderKLFlux2(**settings | overrides)
    vae.bn.running_mean.normal_(0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def qwen_tokenizer(folder: Path, template: str | None = QWEN_TEMPLATE) -> None:
    """A byte-level tokenizer with Qwen's added tokens; it fills up on the right."""
    words = {word: index for index, word in enumerate(QWEN_WORDS)}
    _save(folder, words, [QWEN_PAD, QWEN_START, QWEN_END], "Qwen2TokenizerFast", template,
          pad_token=QWEN_PAD, eos_token=QWEN_END)  # fmt: skip


def mistral_tokenizer(folder: Path, template: str | None = MISTRAL_TEMPLATE) -> None:
    """A byte-level tokenizer with Mistral's special tokens; it fills up on the left."""
    words = {word: index for index, word in enumerate(MISTRAL_WORDS)}
    _save(folder, words, MISTRAL_SPECIAL, "PreTrainedTokenizerFast", template,
          bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>", padding_side="left")  # fmt: skip


def _save(
    folder: Path, words: dict[str, int], special: list[str], cls: str, template: str | None, **config: str
) -> None:
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(vocab={word: at for word, at in words.items() if len(word) == 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # In the order of their ids, which they are given one after the other.
    for word in words:
        if len(word) > 1:
            tokenizer.add_tokens([AddedToken(word, special=word in special, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {**config, "tokenizer_class": cls, "model_max_length": 1024}
    write_json(folder / "tokenizer_config.json", settings | ({"chat_template": template} if template else {}))


def statistics(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation by which a checkpoint normalises squares of 2 x 2 cells: (4 C,) each."""
    vae = AutoencoderKLFlux2.from_pretrained(folder / "vae")
    eps = json.loads((folder / "vae" / "config.json").read_text())["batch_norm_eps"]
    return vae.bn.running_mean, torch.sqrt(vae.bn.running_var + eps)
