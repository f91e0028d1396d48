"""LoRA files: low-rank changes of a checkpoint's weights, merged when the weights are read."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import diffusers
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
    (".down.weight", ".up.weight"),  # XLabs
)
"""How files call the two factors of a change: what narrows, what widens. The first that fits is meant."""

KOHYA_NETWORK = r"^(base_model_model_)?diffusion_model_|^(?=(double|single|input|middle|output)_blocks?_)"
"""How the denoiser begins in files of others, all dots underscores; kohya says "lora_unet_"."""

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "lora_te_": ("text_encoder_",),
    "lora_te1_": ("text_encoder_",),
    "lora_te2_": ("text_encoder_2_",),
    "lora_te3_": ("text_encoder_3_", "text_encoder_2_"),  # T5: the third of SD3, the second of FLUX
    "text_encoders_clip_l_transformer_": ("text_encoder_",),  # ComfyUI
    "text_encoders_clip_g_transformer_": ("text_encoder_2_",),
    "text_encoders_t5xxl_transformer_": ("text_encoder_3_", "text_encoder_2_"),
}
"""What a text encoder may be in diffusers, by what trainers call it."""

NETWORK_PREFIXES = ("lora_unet_", "lora_transformer_", "diffusion_model_", "unet_", "transformer_")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA as the user asks for it.

    Attributes:
        path: A safetensors file in the form of PEFT, diffusers, kohya, ComfyUI or XLabs.
        scale: Strength; 1 as it was trained, 0 nothing, negative the opposite.

    Raises:
        ModelError: The strength is no number.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise ModelError(f"strength {self.scale} of LoRA {self.path} is no number; 1 is the LoRA as it was trained")


Tensors = Mapping[str, Tensor]

Renaming = Callable[[Tensors], Tensors]
"""The factors of one change by the names of diffusers; none where these are not known. Fused layers come apart."""


def renaming(pipeline: str, config: object) -> Renaming:
    """What diffusers does with the names of the original code, and of those who train with it.

    Args:
        pipeline: Class of the checkpoint's pipeline.
        config: Of its denoiser, with all defaults; a UNet's names depend on it.
    """
    cls: Any = getattr(diffusers, pipeline)

    def rename(tensors: Tensors) -> Tensors:
        try:
            found = cls.lora_state_dict(dict(tensors), unet_config=config)
        except (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return {}  # names that are in no form that it knows
        return found[0] if isinstance(found, tuple) else found

    return rename


def read_lora(lora: Lora, names: Iterable[str], network: str, rename: Renaming) -> dict[str, Delta]:
    """The changes a LoRA makes.

    Every change is looked up, and renamed where that is needed, by itself: so nothing is dropped unseen, as it is
    where diffusers converts a file in one go, and every alpha counts.

    Args:
        lora: What to read.
        names: Weights of the checkpoint, `<component>.<key>`.
        network: The component that unprefixed and "unet" keys mean, "transformer" or "unet".
        rename: For names in the layout of the original code.

    Returns:
        Change by the name of the weight.

    Raises:
        ModelError: The file is missing or damaged, or has keys that match no weight; lists them.
    """
    tensors, metadata = _read(lora.path)
    known = {_flat(name.removesuffix(".weight")): name for name in names if name.endswith(".weight")}
    deltas: dict[str, Delta] = {}
    unmatched = {key for key in tensors if not key.endswith(".alpha")}
    for module, pair in _pairs(tensors).items():
        down, up = tensors[pair[0]], tensors[pair[1]]
        alpha = tensors.get(f"{module}.alpha")
        strength = float(alpha) if alpha is not None else _alpha(metadata, module, down.shape[0])
        scale = lora.scale * strength / down.shape[0]
        for keys in (pair, _kohya(module)):
            found = _places(dict(zip(keys, (down, up), strict=True)), network, known, rename)
            if found:
                unmatched -= set(pair)
                deltas.update({name: Delta(*factors, scale) for name, factors in found.items()})
                break
    if unmatched or not deltas:
        shown = "".join(f"\n  {key}" for key in sorted(unmatched)[:20]) or " it has no LoRA keys at all"
        more = f"\n  and {len(unmatched) - 20} more" if len(unmatched) > 20 else ""
        raise ModelError(f"{lora.path} does not fit this checkpoint; keys without a weight:{shown}{more}")
    return deltas


def _places(
    tensors: Tensors, network: str, known: Mapping[str, str], rename: Renaming
) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights that two factors change, and the factors of each; none where one of the weights is not known."""
    for named in (tensors, rename(tensors)):
        pairs = _pairs(named)
        names = [known.get(_normal(module, network, known)) for module in pairs]
        if names and None not in names:
            return {str(name): (named[down], named[up]) for name, (down, up) in zip(names, pairs.values(), strict=True)}
    return {}


def _kohya(module: str) -> tuple[str, str]:
    """What kohya calls the factors of a denoiser's module; where only the prefix is another, diffusers knows that."""
    name = re.sub(KOHYA_NETWORK, "lora_unet_", module.replace(".", "_"))
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a LoRA ({error}); give a safetensors file") from error
    return tensors, metadata


def _pairs(tensors: Tensors) -> dict[str, tuple[str, str]]:
    """Keys of the two factors, by the module they change."""
    found: dict[str, tuple[str, str]] = {}
    for key in tensors:
        for down, up in PAIRS:
            module = key.removesuffix(down)
            if module != key and f"{module}{up}" in tensors:
                found[module] = (key, f"{module}{up}")
                break
    return found


def _normal(module: str, network: str, known: Mapping[str, str]) -> str:
    """The module's name as a key of `known`: component first, all dots underscores."""
    flat = _flat(module.removeprefix("base_model.model.").replace(".processor.", "."))
    for prefix, components in ENCODERS.items():
        if flat.startswith(prefix):
            found = [component + flat.removeprefix(prefix) for component in components]
            return next((name for name in found if name in known), found[0])
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
    """All dots underscores, and without the wrapper of CLIP that some versions of transformers save and some do not."""
    return name.replace(".", "_").replace("text_model_", "")
