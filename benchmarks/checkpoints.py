"""Full-size checkpoints with random weights, in the layout that diffusers writes: what exports are measured on.

Weights are one block of normal numbers, taken from changing places and scaled by 1 / sqrt(fan-in), so that activations
stay finite through any depth and a 24 GB checkpoint is written at the speed of the disk.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from lssgen.export.writer import weightless

SHARD_BYTES = 10_000_000_000
BLOCK = 1 << 24
Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component: its class, and its config as published. `library` None: a folder with a config and no weights."""

    library: str
    cls: str
    config: Config


CLIP_L = Part(
    library="transformers",
    cls="CLIPTextModelWithProjection",
    config={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": 49408, "max_position_embeddings": 77},
)  # fmt: skip
CLIP_G = Part(
    library="transformers",
    cls="CLIPTextModelWithProjection",
    config={"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
            "hidden_act": "gelu", "projection_dim": 1280, "vocab_size": 49408, "max_position_embeddings": 77},
)  # fmt: skip
T5_XXL = Part(
    library="transformers",
    cls="T5EncoderModel",
    config={"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
)  # fmt: skip

QWEN3_4B = Part(
    library="transformers",
    cls="Qwen3Model",
    config={"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
            "rope_theta": 1000000.0, "tie_word_embeddings": True},
)  # fmt: skip


def vae(channels: int, scaling: float, shift: float | None, quant: bool) -> Part:
    return Part(
        library="diffusers",
        cls="AutoencoderKL",
        config={"in_channels": 3, "out_channels": 3, "latent_channels": channels, "layers_per_block": 2,
                "block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024,
                "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
                "scaling_factor": scaling, "shift_factor": shift, "use_quant_conv": quant,
                "use_post_quant_conv": quant},
    )  # fmt: skip


def sd3(**config: Any) -> Part:
    published = {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "attention_head_dim": 64,
                 "joint_attention_dim": 4096, "pooled_projection_dim": 2048}  # fmt: skip
    return Part(library="diffusers", cls="SD3Transformer2DModel", config={**published, **config})


FLOW = Part(
    library="diffusers",
    cls="FlowMatchEulerDiscreteScheduler",
    config={"num_train_timesteps": 1000, "shift": 3.0},
)
BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

FLOW_TOKENS = Part(
    library="diffusers",
    cls="FlowMatchEulerDiscreteScheduler",
    config={"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5,
            "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096},
)  # fmt: skip


def qwen3(**config: Any) -> Part:
    published = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                 "vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1000000}  # fmt: skip
    return Part(library="transformers", cls="Qwen3ForCausalLM", config={**published, **config})


MISTRAL_SMALL = Part(
    library="transformers",
    cls="Mistral3ForConditionalGeneration",
    config={
        "text_config": {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768,
                        "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
                        "vocab_size": 131072, "sliding_window": None, "rope_theta": 1000000000.0},
        "vision_config": {"model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096,
                          "num_hidden_layers": 24, "num_attention_heads": 16, "head_dim": 64, "patch_size": 14,
                          "image_size": 1540},
    },
)  # fmt: skip
VAE_FLUX2 = Part(
    library="diffusers",
    cls="AutoencoderKLFlux2",
    config={"latent_channels": 32, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
)


def flux2(pipeline: str, text: Part, **config: Any) -> tuple[str, Mapping[str, Part]]:
    net = Part(library="diffusers", cls="Flux2Transformer2DModel", config=config)
    return pipeline, {"scheduler": FLOW_TOKENS, "text_encoder": text, "transformer": net, "vae": VAE_FLUX2}


MODELS: Mapping[str, tuple[str, Mapping[str, Part]]] = {
    "sd15": (
        "StableDiffusionPipeline",
        {
            "scheduler": Part(
                library="diffusers",
                cls="PNDMScheduler",
                config={**BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
            ),
            "text_encoder": Part(library="transformers", cls="CLIPTextModel", config=CLIP_L.config),
            "unet": Part(
                library="diffusers",
                cls="UNet2DConditionModel",
                config={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
            ),
            "vae": vae(4, 0.18215, None, quant=True),
        },
    ),
    "sdxl": (
        "StableDiffusionXLPipeline",
        {
            "scheduler": Part(
                library="diffusers",
                cls="EulerDiscreteScheduler",
                config={**BETAS, "timestep_spacing": "leading", "steps_offset": 1},
            ),
            "text_encoder": Part(library="transformers", cls="CLIPTextModel", config=CLIP_L.config),
            "text_encoder_2": CLIP_G,
            "unet": Part(
                library="diffusers",
                cls="UNet2DConditionModel",
                config={"sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
                        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
                        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
                        "projection_class_embeddings_input_dim": 2816, "use_linear_projection": True},
            ),
            "vae": vae(4, 0.13025, None, quant=True),
        },
    ),
    "sd3-medium": (
        "StableDiffusion3Pipeline",
        {
            "scheduler": FLOW,
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
            "transformer": sd3(
                num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
            ),
            "vae": vae(16, 1.5305, 0.0609, quant=False),
        },
    ),
    "sd3.5-large": (
        "StableDiffusion3Pipeline",
        {
            "scheduler": FLOW,
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
            "transformer": sd3(
                num_layers=38,
                num_attention_heads=38,
                caption_projection_dim=2432,
                pos_embed_max_size=192,
                qk_norm="rms_norm",
            ),
            "vae": vae(16, 1.5305, 0.0609, quant=False),
        },
    ),
    "flux-dev": (
        "FluxPipeline",
        {
            "scheduler": FLOW_TOKENS,
            "text_encoder": Part(library="transformers", cls="CLIPTextModel", config=CLIP_L.config),
            "text_encoder_2": T5_XXL,
            "transformer": Part(
                library="diffusers",
                cls="FluxTransformer2DModel",
                config={"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38,
                        "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
                        "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56]},
            ),
            "vae": vae(16, 0.3611, 0.1159, quant=False),
        },
    ),
    "flux2-klein-4b": flux2(
        "Flux2KleinPipeline",
        qwen3(hidden_size=2560, intermediate_size=9728, tie_word_embeddings=True),
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
        guidance_embeds=False,
    ),
    "flux2-klein-9b": flux2(
        "Flux2KleinPipeline",
        qwen3(hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False),
        num_layers=8,
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
        guidance_embeds=False,
    ),
    "flux2-dev": flux2("Flux2Pipeline", MISTRAL_SMALL),
    "qwen-image": (
        "QwenImagePipeline",
        {
            "scheduler": Part(
                library="diffusers",
                cls="FlowMatchEulerDiscreteScheduler",
                config={"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9,
                        "base_image_seq_len": 256, "max_image_seq_len": 8192, "shift_terminal": 0.02},
            ),
            # Layers, widths and heads are those of Qwen2.5-VL-7B-Instruct, whose language model this is.
            "text_encoder": Part(
                library="transformers",
                cls="Qwen2_5_VLForConditionalGeneration",
                config={"text_config": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                                        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                                        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6,
                                                            "mrope_section": [16, 24, 24]}}},
            ),
            "transformer": Part(library="diffusers", cls="QwenImageTransformer2DModel", config={}),
            "vae": Part(library="diffusers", cls="AutoencoderKLQwenImage", config={}),
        },
    ),
    "z-image-turbo": (
        "ZImagePipeline",
        {
            "scheduler": FLOW,
            "text_encoder": QWEN3_4B,
            # Class defaults of diffusers 0.42.1, which has this checkpoint in mind; not compared with the hub.
            "transformer": Part(
                library="diffusers", cls="ZImageTransformer2DModel", config={"axes_lens": [1536, 512, 512]}
            ),
            "vae": vae(16, 0.3611, 0.1159, quant=False),
        },
    ),
}  # fmt: skip
"""Configs as the checkpoints' authors published them; those of FLUX.2 from memory, and its classes' defaults; of
Qwen-Image's transformer and VAE, the classes' defaults."""


def write_checkpoint(name: str, folder: Path, parts: tuple[str, ...], dtype: torch.dtype) -> int:
    """Write a checkpoint of `MODELS`, with weights for `parts` and configs for all; returns the bytes of weights."""
    pipeline, components = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    index = {"_class_name": pipeline, **{key: [part.library, part.cls] for key, part in components.items()}}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    total = 0
    for key, part in components.items():
        (folder / key).mkdir(exist_ok=True)
        file = "scheduler_config.json" if key == "scheduler" else "config.json"
        (folder / key / file).write_text(json.dumps(whole_config(part), indent=2))
        if key in parts:
            total += write_weights(skeleton(part, dtype), folder / key, part.library)
    return total


def whole_config(part: Part) -> Config:
    """The config with the class's defaults, as the libraries save it."""
    cls = getattr(import_module(part.library), part.cls)
    if part.library == "transformers":
        return {**cls.config_class(**part.config).to_dict(), "architectures": [part.cls]}
    parameters = signature(cls.__init__).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.default is not Parameter.empty
    }
    return {"_class_name": part.cls, **defaults, **part.config}


def skeleton(part: Part, dtype: torch.dtype) -> nn.Module:
    cls = getattr(import_module(part.library), part.cls)
    with weightless(dtype):
        if part.library == "transformers":
            return cls(cls.config_class(**part.config))
        return cls.from_config(dict(part.config))


def write_weights(module: nn.Module, folder: Path, library: str) -> int:
    """Random weights for a module, in as many safetensors files as the published ones have."""
    stem = "model" if library == "transformers" else "diffusion_pytorch_model"
    tensors = {name: tensor for name, tensor in module.state_dict().items() if name != "encoder.embed_tokens.weight"}
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    single = len(shards) == 1
    names = [
        f"{stem}.safetensors" if single else f"{stem}-{at + 1:05}-of-{len(shards):05}.safetensors"
        for at in range(len(shards))
    ]
    for file, shard in zip(names, shards, strict=True):
        write_shard(folder / file, shard)
    total = sum(tensor.nbytes for tensor in tensors.values())
    if not single:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).repeat(2)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            for piece in random_values(name, tensor, block):
                file.write(memoryview(piece.view(torch.uint8).numpy()))


def random_values(name: str, tensor: Tensor, block: Tensor) -> Iterator[Tensor]:
    """The tensor's values, flattened, in pieces of the block, which is there twice."""
    count = tensor.numel()
    if not tensor.is_meta:  # a buffer that the module has computed
        yield tensor.detach().contiguous().flatten()
        return
    mean, spread = 0.0, 0.02
    if tensor.dim() > 1 and "embed" not in name:
        spread = 1 / math.sqrt(count / tensor.shape[0])
        if name.endswith("SelfAttention.q.weight"):  # T5 does not divide its scores by the root of the head's size
            spread /= math.sqrt(T5_XXL.config["d_kv"])
    elif name.endswith("weight") and tensor.dim() == 1:
        mean = 1.0
    length = len(block) // 2
    for start in range(0, count, length):
        # From another place each time: a compiler stores equal tensors once, and would make the model look small.
        begin = crc32(f"{name} {start}".encode()) % length
        yield (block[begin : begin + min(length, count - start)] * spread + mean).to(tensor.dtype)


if __name__ == "__main__":
    model, target, *chosen = sys.argv[1:]
    print(write_checkpoint(model, Path(target), tuple(chosen), torch.float16), "bytes")
