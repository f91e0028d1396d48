"""Names of the original code of published networks, which trainers use too, and diffusers' names for the same layers.

diffusers knows them as well, but needs torch; a bundle's layers are found without. What is said here as rules over
names holds for every network that has the layers: none is asked for its family.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from lssgen.lora.names import Renaming, sorted_keys
from lssgen.ports import Array

ORIGINAL = "lora_unet_"
"""Beginning of a denoiser's layers among trainers; what follows has underscores in place of dots."""

SWAPPED = "~"
"""Sign before a layer whose two halves of rows, scale and shift, come in the other order."""

_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def _each(start: str, ends: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{start}{end}" for end in ends)


_BLOCK, _SINGLE = r"transformer_blocks_\1_", r"single_transformer_blocks_\1_"

RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # FLUX.1 and FLUX.2, black-forest-labs; the names with "lora" are XLabs'.
    (r"double_blocks_(\d+)_(?:img_attn_qkv|processor_qkv_lora1)", _each(_BLOCK + "attn_", _QKV)),
    (r"double_blocks_(\d+)_(?:txt_attn_qkv|processor_qkv_lora2)", _each(_BLOCK + "attn_", _ADDED)),
    (r"double_blocks_(\d+)_(?:img_attn_proj|processor_proj_lora1)", (_BLOCK + "attn_to_out_0",)),
    (r"double_blocks_(\d+)_(?:txt_attn_proj|processor_proj_lora2)", (_BLOCK + "attn_to_add_out",)),
    (r"double_blocks_(\d+)_img_mlp_0", (_BLOCK + "ff_net_0_proj",)),
    (r"double_blocks_(\d+)_img_mlp_2", (_BLOCK + "ff_net_2",)),
    (r"double_blocks_(\d+)_txt_mlp_0", (_BLOCK + "ff_context_net_0_proj",)),
    (r"double_blocks_(\d+)_txt_mlp_2", (_BLOCK + "ff_context_net_2",)),
    (r"double_blocks_(\d+)_img_mlp_0", (_BLOCK + "ff_linear_in",)),
    (r"double_blocks_(\d+)_img_mlp_2", (_BLOCK + "ff_linear_out",)),
    (r"double_blocks_(\d+)_txt_mlp_0", (_BLOCK + "ff_context_linear_in",)),
    (r"double_blocks_(\d+)_txt_mlp_2", (_BLOCK + "ff_context_linear_out",)),
    (r"double_blocks_(\d+)_img_mod_lin", (_BLOCK + "norm1_linear",)),
    (r"double_blocks_(\d+)_txt_mod_lin", (_BLOCK + "norm1_context_linear",)),
    (r"single_blocks_(\d+)_linear1", (*_each(_SINGLE + "attn_", _QKV), _SINGLE + "proj_mlp")),
    (r"single_blocks_(\d+)_linear1", (_SINGLE + "attn_to_qkv_mlp_proj",)),
    (r"single_blocks_(\d+)_processor_qkv(?:_lora)?", _each(_SINGLE + "attn_", _QKV)),
    (r"single_blocks_(\d+)_(?:linear2|processor_proj(?:_lora)?)", (_SINGLE + "proj_out",)),
    (r"single_blocks_(\d+)_linear2", (_SINGLE + "attn_to_out",)),
    (r"single_blocks_(\d+)_modulation_lin", (_SINGLE + "norm_linear",)),
    (r"(single_stream|double_stream)_modulation(_img|_txt|)_lin", (r"\1_modulation\2_linear",)),
    (r"img_in", ("x_embedder",)),
    (r"txt_in", ("context_embedder",)),
    (r"time_in_in_layer", ("time_text_embed_timestep_embedder_linear_1",)),
    (r"time_in_out_layer", ("time_text_embed_timestep_embedder_linear_2",)),
    (r"vector_in_in_layer", ("time_text_embed_text_embedder_linear_1",)),
    (r"vector_in_out_layer", ("time_text_embed_text_embedder_linear_2",)),
    (r"guidance_in_in_layer", ("time_text_embed_guidance_embedder_linear_1",)),
    (r"guidance_in_out_layer", ("time_text_embed_guidance_embedder_linear_2",)),
    (r"time_in_in_layer", ("time_guidance_embed_timestep_embedder_linear_1",)),
    (r"time_in_out_layer", ("time_guidance_embed_timestep_embedder_linear_2",)),
    (r"guidance_in_in_layer", ("time_guidance_embed_guidance_embedder_linear_1",)),
    (r"guidance_in_out_layer", ("time_guidance_embed_guidance_embedder_linear_2",)),
    (r"final_layer_linear", ("proj_out",)),
    (r"final_layer_adaLN_modulation_1", (SWAPPED + "norm_out_linear",)),
    # Stable Diffusion 3, Stability-AI.
    (r"joint_blocks_(\d+)_x_block_attn_qkv", _each(_BLOCK + "attn_", _QKV)),
    (r"joint_blocks_(\d+)_x_block_attn2_qkv", _each(_BLOCK + "attn2_", _QKV)),
    (r"joint_blocks_(\d+)_context_block_attn_qkv", _each(_BLOCK + "attn_", _ADDED)),
    (r"joint_blocks_(\d+)_x_block_attn_proj", (_BLOCK + "attn_to_out_0",)),
    (r"joint_blocks_(\d+)_x_block_attn2_proj", (_BLOCK + "attn2_to_out_0",)),
    (r"joint_blocks_(\d+)_context_block_attn_proj", (_BLOCK + "attn_to_add_out",)),
    (r"joint_blocks_(\d+)_x_block_mlp_fc1", (_BLOCK + "ff_net_0_proj",)),
    (r"joint_blocks_(\d+)_x_block_mlp_fc2", (_BLOCK + "ff_net_2",)),
    (r"joint_blocks_(\d+)_context_block_mlp_fc1", (_BLOCK + "ff_context_net_0_proj",)),
    (r"joint_blocks_(\d+)_context_block_mlp_fc2", (_BLOCK + "ff_context_net_2",)),
    (r"joint_blocks_(\d+)_x_block_adaLN_modulation_1", (_BLOCK + "norm1_linear",)),
    # Z-Image and Lumina 2, Alpha-VLLM.
    (r"((?:layers|\w+_refiner)_\d+_attention)_qkv", _each(r"\1_", _QKV)),
    (r"((?:layers|\w+_refiner)_\d+_attention)_out", (r"\1_to_out_0",)),
)
"""Names of the original code as patterns, and the layers of diffusers that they stand for; where these are several,
their rows lie behind each other. The first whose layers a network has is meant."""

RESNET: Mapping[str, str] = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
"""Layers of a residual block, CompVis' names by diffusers'."""

UNET: Mapping[str, str] = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
"""Layers of a UNet outside of its blocks, CompVis' names by diffusers'."""


def original_names(shapes: Mapping[str, tuple[int, ...]], network: str) -> Renaming[Array]:
    """What finds the layers of a network by the names of its original code.

    Args:
        shapes: Shape of each weight, by `<component>.<key>`.
        network: Component that the names are of.
    """
    rows = {_flat(name): shape[0] for name, shape in shapes.items() if name.startswith(f"{network}.")}
    unet = _unet_names(rows)

    def rename(tensors: Mapping[str, Array]) -> Mapping[str, Array]:
        layers, _ = sorted_keys(tensors, "it")
        found: dict[str, Array] = {}
        for layer, roles in layers.items():
            name = layer.removeprefix(ORIGINAL)
            if name == layer or not {"down", "up"} <= roles.keys():
                return {}
            down, up = tensors[roles["down"]], tensors[roles["up"]]
            targets = (unet[name],) if name in unet else _by_rule(name, len(up), rows)
            for target, part in _apart(targets, up, rows):
                found |= {f"{network}.{target}.lora_A.weight": down, f"{network}.{target}.lora_B.weight": part}
        return found

    return rename


def _flat(name: str) -> str:
    """A weight's name without its component and its end, underscores in place of dots."""
    return name.partition(".")[2].removesuffix(".weight").replace(".", "_")


def _by_rule(name: str, height: int, rows: Mapping[str, int]) -> tuple[str, ...]:
    """The layers that an original name stands for, where the network has them, of that height together; else none."""
    for pattern, targets in RULES:
        if match := re.fullmatch(pattern, name):
            named = tuple(match.expand(target) for target in targets)
            heights = [rows.get(target.removeprefix(SWAPPED)) for target in named]
            if None not in heights and sum(filter(None, heights)) == height:
                return named
    return ()


def _apart(targets: tuple[str, ...], up: Array, rows: Mapping[str, int]) -> Iterator[tuple[str, Array]]:
    """Each layer's rows of a factor that is several layers'."""
    at = 0
    for target in targets:
        name = target.removeprefix(SWAPPED)
        part = up[at : at + rows[name]]
        at += rows[name]
        yield name, part if name == target else np.roll(part, len(part) // 2, 0)


def _unet_names(rows: Mapping[str, int]) -> Mapping[str, str]:
    """diffusers' names of a UNet's layers by those of CompVis' code, which counts blocks through all levels.

    In a block, 0 is the residual layer and 1 the attention; upsampling is the last, downsampling a block of its own.
    """
    layers = len({match[1] for name in rows if (match := re.match(r"down_blocks_0_resnets_(\d+)_", name))})
    attended = {match[1] for name in rows if (match := re.match(r"up_blocks_(\d+)_attentions_", name))}
    found = {original: name for name, original in UNET.items() if name in rows}
    for name in rows:
        if match := re.fullmatch(r"mid_block_(resnets|attentions)_(\d+)_(.+)", name):
            kind, index, rest = match.groups()
            inner = 2 * int(index) if kind == "resnets" else 1
            found[f"middle_block_{inner}_{_inside(kind, rest)}"] = name
        elif match := re.fullmatch(r"(down|up)_blocks_(\d+)_([a-z]+)_(\d+)_(.+)", name):
            side, level, kind, index, rest = match.groups()
            at = int(level) * (layers + 1) + int(index)
            if kind == "downsamplers":
                found[f"input_blocks_{at + layers + 1}_0_op"] = name
            elif kind == "upsamplers":
                found[f"output_blocks_{at + layers}_{1 + (level in attended)}_{rest}"] = name
            else:
                block = f"input_blocks_{at + 1}" if side == "down" else f"output_blocks_{at}"
                found[f"{block}_{int(kind == 'attentions')}_{_inside(kind, rest)}"] = name
    return found


def _inside(kind: str, rest: str) -> str:
    return RESNET.get(rest, rest) if kind == "resnets" else rest
