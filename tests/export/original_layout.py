"""Checkpoints written back in the layouts of the original code: the inverse of what diffusers converts."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]

UNET_NAMES = {
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"],
    **DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"],
}
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_NAMES = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", r"up.\1.block.\2"),
    (r"up_blocks\.(\d)\.upsamplers\.0", r"up.\1.upsample"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"conv_shortcut", "nin_shortcut"),
)


def part(folder: Path, name: str) -> Tensors:
    """All weights of a part in the diffusers layout."""
    files = sorted((folder / name).glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


def unet(tensors: Tensors, layers: int = 1) -> Tensors:
    """Of Stable Diffusion 1, 2 and XL: the blocks of all levels are counted through.

    In a block, 0 is the residual layer, 1 the attention; upsampling is the last, downsampling has a block of its own.
    """
    attended = {key.split(".")[1] for key in tensors if re.match(r"up_blocks\.\d\.attentions", key)}

    def name(key: str) -> str:
        side, _, rest = key.partition(".")
        level, kind, index, rest = ["0", *rest.split(".", 2)] if side == "mid_block" else rest.split(".", 3)
        if kind == "resnets":
            layer, _, rest = rest.partition(".")
            rest = f"{RESNET[layer]}.{rest}"
        inner = int(kind == "attentions")
        at = int(level) * (layers + 1) + int(index)
        if side == "mid_block":
            return f"middle_block.{1 if inner else 2 * int(index)}.{rest}"
        if kind == "downsamplers":
            return f"input_blocks.{at + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{at + layers}.{1 + (level in attended)}.{rest}"
        return (
            f"input_blocks.{at + 1}.{inner}.{rest}" if side == "down_blocks" else f"output_blocks.{at}.{inner}.{rest}"
        )

    return {f"model.diffusion_model.{UNET_NAMES.get(key) or name(key)}": value for key, value in tensors.items()}


def vae(tensors: Tensors, prefix: str = "first_stage_model.", levels: int = 3) -> Tensors:
    """The autoencoder: the decoder's levels count from the other end, attention is made of 1 x 1 convolutions."""
    named = DIFFUSERS_TO_LDM_MAPPING["vae"]
    found: Tensors = {}
    for key, value in tensors.items():
        name = re.sub(r"up_blocks\.(\d)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", key)
        for ours, theirs in VAE_NAMES:
            name = re.sub(ours, theirs, name)
        convolution = ".attn_1." in name and value.ndim == 2
        found[prefix + named.get(key, name)] = value[:, :, None, None] if convolution else value
    return found


def clip(tensors: Tensors, prefix: str) -> Tensors:
    """A CLIP with the names of transformers, and the table of positions that old versions saved."""
    found = {prefix + _wrapped(key): value for key, value in tensors.items()}
    return {**found, f"{prefix}text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(tensors: Tensors, prefix: str) -> Tensors:
    """A CLIP with the names of OpenCLIP; queries, keys and values are one tensor."""
    names = DIFFUSERS_TO_LDM_MAPPING["openclip"]

    def name(key: str) -> str:
        for ours, theirs in names["transformer"].items():
            key = key.replace(ours, theirs)
        return f"{prefix}transformer.{key}"

    whole = {_wrapped(key): value for key, value in tensors.items()}
    found: Tensors = {}
    for key, value in whole.items():
        if key in names["layers"]:
            found[prefix + names["layers"][key]] = value.T.contiguous() if "projection" in key else value
        elif match := re.fullmatch(r"(.*)\.q_proj\.(weight|bias)", key):
            pieces = [whole[f"{match[1]}.{letter}_proj.{match[2]}"] for letter in "qkv"]
            found[f"{name(match[1])}.in_proj_{match[2]}"] = torch.cat(pieces)
        elif not re.search(r"\.[kv]_proj\.", key):
            found[name(key)] = value
    return found


def _wrapped(key: str) -> str:
    return key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


ROWS = 7 * 3072
"""Of FLUX's widest fused layer. It comes apart by fixed numbers, others in halves and thirds; this serves for all."""


class Asked(dict[str, Tensor]):
    """A checkpoint that has whatever is taken from it: numbered rows, which no other tensor has."""

    def __init__(self, hints: Iterable[str]) -> None:
        super().__init__({key: torch.zeros(ROWS) for key in hints})
        self.taken: list[str] = []

    def pop(self, key: str, *_: object) -> Tensor:
        self.taken.append(key)
        return torch.arange(ROWS) + ROWS * (len(self.taken) - 1)


def inverse(convert: Callable[[Tensors], Tensors], hints: Iterable[str], tensors: Tensors) -> Tensors:
    """The checkpoint that `convert` turns into `tensors`, for conversions that take, split and swap.

    Args:
        convert: Takes what it wants by `pop`.
        hints: Keys in which it looks for how the model is built.
        tensors: What it shall give.
    """
    asked = Asked(hints)
    pieces: list[dict[int, Tensor]] = []
    for name, numbers in convert(asked).items():
        starts = [0, *(torch.nonzero(numbers.diff() != 1).flatten() + 1).tolist()]  # where another piece begins
        for start, piece in zip(starts, tensors[name].chunk(len(starts)), strict=True):
            source, place = divmod(int(numbers[start]), ROWS)
            pieces += [{} for _ in range(source + 1 - len(pieces))]
            pieces[source][place] = piece
    return {key: torch.cat([found[at] for at in sorted(found)]) for key, found in zip(asked.taken, pieces, strict=True)}
