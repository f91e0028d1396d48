"""LoRA files: low-rank changes of a checkpoint's weights, merged when the weights are read."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.weights import Delta

PAIRS = (
    (".lora_A.weight", ".lora_B.weight"),  # PEFT, and diffusers since 0.22
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),  # kohya's sd-scripts
    (".lora.down.weight", ".lora.up.weight"),  # diffusers before
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
"""How files call the two factors of a change: what narrows, what widens."""

FLAT_PREFIXES = {"lora_te1_": "text_encoder_", "lora_te2_": "text_encoder_2_", "lora_te3_": "text_encoder_3_",
                 "lora_te_": "text_encoder_"}  # fmt: skip
NETWORK_PREFIXES = ("lora_unet_", "lora_transformer_", "diffusion_model_", "unet_", "transformer_")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA as the user asks for it.

    Attributes:
        path: A safetensors file in the form of PEFT, diffusers or kohya.
        scale: Strength; 1 as it was trained, 0 nothing, negative the opposite.
    """

    path: Path
    scale: float = 1.0


def read_lora(lora: Lora, names: Iterable[str], network: str) -> dict[str, Delta]:
    """The changes a LoRA makes.

    Args:
        lora: What to read.
        names: Weights of the checkpoint, `<component>.<key>`.
        network: The component that unprefixed and "unet" keys mean, "transformer" or "unet".

    Returns:
        Change by the name of the weight.

    Raises:
        ModelError: The file is missing or damaged, or has keys that match no weight; lists them.
    """
    tensors, metadata = _read(lora.path)
    known = {_flat(name.removesuffix(".weight")): name for name in names if name.endswith(".weight")}
    deltas: dict[str, Delta] = {}
    unmatched = {key for key in tensors if not key.endswith(".alpha")}
    for module, (down_key, up_key) in _pairs(tensors).items():
        name = known.get(_normal(module, network, known))
        if name is None:
            continue
        unmatched -= {down_key, up_key}
        down, up = tensors[down_key], tensors[up_key]
        alpha = tensors.get(f"{module}.alpha")
        strength = float(alpha) if alpha is not None else _alpha(metadata, module, down.shape[0])
        deltas[name] = Delta(down, up, lora.scale * strength / down.shape[0])
    if unmatched or not deltas:
        shown = "".join(f"\n  {key}" for key in sorted(unmatched)[:20]) or " it has no LoRA keys at all"
        more = f"\n  and {len(unmatched) - 20} more" if len(unmatched) > 20 else ""
        raise ModelError(f"{lora.path} does not fit this checkpoint; keys without a weight:{shown}{more}")
    return deltas


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a LoRA ({error}); give a safetensors file") from error
    return tensors, metadata


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Keys of the two factors, by the module they change."""
    found: dict[str, tuple[str, str]] = {}
    for key in tensors:
        for down, up in PAIRS:
            module = key.removesuffix(down)
            if module != key and f"{module}{up}" in tensors:
                found[module] = (key, f"{module}{up}")
    return found


def _normal(module: str, network: str, known: Mapping[str, str]) -> str:
    """The module's name as a key of `known`: component first, all dots underscores."""
    flat = _flat(module.removeprefix("base_model.model.").replace(".processor.", "."))
    for prefix, component in FLAT_PREFIXES.items():
        if flat.startswith(prefix):
            return component + flat.removeprefix(prefix)
    for prefix in NETWORK_PREFIXES:
        if flat.startswith(prefix):
            flat = flat.removeprefix(prefix)
            break
    for name in (flat, f"{network}_{flat}", f"{network}_{flat}_0"):  # "to_out" of old files is to_out.0
        if name in known:
            return name
    return flat


def _alpha(metadata: Mapping[str, Any], module: str, rank: int) -> float:
    """PEFT's alpha, which diffusers stores for all modules of a component at once; the rank where nothing is said."""
    component, _, rest = module.partition(".")
    for pattern, alpha in dict(metadata.get(f"{component}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", rest):
            return float(alpha)
    return float(metadata.get(f"{component}.lora_alpha") or rank)


def _flat(name: str) -> str:
    return name.replace(".", "_")
