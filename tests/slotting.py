"""LoRAs for the slots of a bundle, of random numbers that change what is painted."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lssgen.bundle import Bundle
from lssgen.manifest import LoraFactors
from lssgen.ports import Array


def factors_of(bundle: Bundle, graph: str = "step") -> LoraFactors:
    """The slots of a graph."""
    (found,) = (feed for feed in bundle.manifest.graphs[graph].feeds.values() if isinstance(feed, LoraFactors))
    return found


def pairs(layers: Mapping[str, tuple[int, ...]], rank: int = 2, seed: int = 0) -> dict[str, Array]:
    """Both factors of every layer, by PEFT's names; strong enough to change every layer by some tenths."""
    draw = np.random.default_rng(seed).standard_normal
    found: dict[str, Array] = {}
    for name, (out, *inside) in layers.items():
        layer, wide = name.removesuffix(".weight"), [1] * (len(inside) - 1)
        narrow = draw((rank, *inside), np.float32) / np.prod(inside, dtype=np.float32) ** 0.5
        found[f"{layer}.lora_A.weight"] = narrow.astype(np.float32)
        found[f"{layer}.lora_B.weight"] = 0.3 * draw((out, rank, *wide), np.float32)
    return found


def lora_for(layers: Mapping[str, tuple[int, ...]], path: Path, rank: int = 2, seed: int = 0) -> Path:
    """A file with such a LoRA."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(pairs(layers, rank, seed), path, {"lora_alpha": str(rank)})
    return path


def relative(got: Array, wanted: Array) -> float:
    """Distance of two arrays in the L2 norm, relative to the second."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
