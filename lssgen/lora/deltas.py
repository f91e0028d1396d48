"""A LoRA as low-rank sums of NumPy: what can be merged without torch. `lssgen export` merges every other kind."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lssgen.errors import ModelError
from lssgen.lora.asked import Lora
from lssgen.lora.layouts import original_names
from lssgen.lora.names import ENCODERS, Pair, Places, Role, Target, component_of, sorted_keys
from lssgen.lora.said import Place, Said, adapters_of, places_of
from lssgen.lora.strengths import Factors, assumed_note, strengths_of
from lssgen.ports import Array

PLAIN: frozenset[Role] = frozenset(("down", "up", "alpha"))

TEXT_ENCODERS = ("text_encoder", *ENCODERS)
"""Beginnings of the names of text encoders' layers."""

ELSEWHERE = "export the checkpoint with --lora, which merges it, and serve that bundle"

SHOWN = 8
"""Layers that a message lists at most."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A change of one weight: scale * up @ down, shaped like the weight.

    Attributes:
        down: (rank, ...) first factor; a convolution's kernel is flattened behind the rank.
        up: (out, rank, ...) second factor.
        scale: Strength asked for, times alpha / rank.
    """

    down: Array
    up: Array
    scale: float

    def added_to(self, weight: Array) -> Array:
        """The changed weight, float32."""
        up, down = (factor.astype(np.float32).reshape(len(factor), -1) for factor in (self.up, self.down))
        return weight.astype(np.float32) + np.float32(self.scale) * (up @ down).reshape(weight.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a weight of a shape can be changed like this."""
        return (len(self.up), prod(self.down.shape[1:])) == (shape[0], prod(shape[1:]))


@dataclass(frozen=True, slots=True)
class Deltas:
    """What a LoRA does to a bundle.

    Attributes:
        by_weight: Changes by the names of weights.
        notes: Sentences that the user should read.
    """

    by_weight: Mapping[str, Delta]
    notes: tuple[str, ...]


def read_deltas(lora: Lora, shapes: Mapping[str, tuple[int, ...]]) -> Deltas:
    """The changes that a LoRA makes to weights of some shapes, by their names in the checkpoint.

    Raises:
        ModelError: The file is missing or damaged, has keys that match no weight, or is of a kind or in names that
            only an export reads.
    """
    found: dict[str, Delta] = {}
    notes: list[str] = []
    for place in places_of(lora.path):
        deltas = _of_file(lora, place, shapes)
        if twice := found.keys() & deltas.by_weight.keys():
            raise ModelError(f"{lora.path} changes {min(twice)} twice; give one adapter a file")
        found |= deltas.by_weight
        notes += deltas.notes
    return Deltas(found, tuple(notes))


def _of_file(lora: Lora, place: Place, shapes: Mapping[str, tuple[int, ...]]) -> Deltas:
    header, tensors = _tensors(place)
    said = Said(
        path=place.path, header=header, adapters=adapters_of(place.path, header), component=place.component
    )  # fmt: skip
    layers, rest = sorted_keys(tensors, place.path)
    _see_plain(said, layers, rest)
    pairs = {layer: (tensors[keys["down"]], tensors[keys["up"]]) for layer, keys in layers.items()}
    factors = [_factors(layer, keys, tensors) for layer, keys in layers.items()]
    strengths = strengths_of(said, factors)
    network = next((part for part in ("transformer", "unet") if any(name.startswith(part) for name in shapes)), "")
    target = Target(shapes, network, original_names(shapes, network), dict.fromkeys(_components(shapes), ""))
    places = Places(target, _component(said, pairs, target))
    found: dict[str, Delta] = {}
    lost: list[str] = []
    for layer, keys in layers.items():
        here = places.of_pair((keys["down"], keys["up"]), layer, pairs[layer])
        lost += [] if here else [layer]
        scale = lora.scale * strengths.by_layer[layer]
        found |= {name: Delta(down, up, scale) for name, (down, up) in here.items()}
    if lost or not found:
        raise _misfit(place, lost)
    for name, delta in found.items():
        if not delta.fits(shapes[name]):
            raise ModelError(f"{place.path} is for another model: its change of {name} is not {list(shapes[name])}")
    assumed = (assumed_note(place.path, strengths.assumed, len(factors)),) if strengths.assumed else ()
    return Deltas(found, (*strengths.notes, *assumed))


def _tensors(place: Place) -> tuple[Mapping[str, str], Mapping[str, Array]]:
    """Header and tensors of a file.

    Raises:
        ModelError: It is not a whole safetensors file, or holds NaN or infinity.
    """
    try:
        with safe_open(place.path, "np") as file:
            header: dict[str, str] = file.metadata() or {}
            halves = _bfloat16s(place.path)  # after safetensors has seen that it is sound
            tensors: dict[str, Array] = {name: _tensor(file, name, halves) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise ModelError(f"{place.path} cannot be read as a LoRA: {error}") from error
    for name, value in tensors.items():
        if value.dtype.kind not in "fV" or not value.size or not np.isfinite(value.astype(np.float32)).all():
            raise ModelError(f"{place.path} is damaged: {name} is empty, or not made of finite numbers")
    return header, tensors


def _tensor(file: Any, name: str, halves: Mapping[str, bytes]) -> Array:
    if name not in halves:
        return file.get_tensor(name)
    # NumPy has no bfloat16 of its own, and the package that brings one is not everywhere: its bits are the upper half
    # of a float32's.
    bits = np.frombuffer(halves[name], "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(file.get_slice(name).get_shape())


def _bfloat16s(path: Path) -> Mapping[str, bytes]:
    """The bytes of a sound file's tensors of that type, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries: dict[str, Any] = json.loads(file.read(length))
        found: dict[str, bytes] = {}
        for name, entry in entries.items():
            if entry.get("dtype") == "BF16":
                first, last = entry["data_offsets"]
                file.seek(8 + length + first)
                found[name] = file.read(last - first)
    return found


def _see_plain(said: Said, layers: Mapping[str, Mapping[Role, str]], rest: list[str]) -> None:
    """See that a file has low-rank sums and nothing else.

    Raises:
        ModelError: It has more.
    """
    more = [key for roles in layers.values() for role, key in roles.items() if role not in PLAIN] + rest
    half = [layer for layer, roles in layers.items() if not {"down", "up"} <= roles.keys()]
    special = [one.said_by for one in said.adapters.values() if one.start != "weight" or one.blocks or one.whole]
    if more or half or special:
        named = ", ".join([*special, *more, *half][:SHOWN])
        raise ModelError(f"{said.path} is more than low-rank sums ({named}); {ELSEWHERE}")


def _factors(layer: str, keys: Mapping[Role, str], tensors: Mapping[str, Array]) -> Factors:
    down, up = tensors[keys["down"]], tensors[keys["up"]]
    if min(down.ndim, up.ndim) < 2 or prod(up.shape[1:]) != len(down):
        raise ModelError(f"the factors of {layer} do not multiply, their shapes are {down.shape} and {up.shape}")
    alpha = tensors[keys["alpha"]] if "alpha" in keys else None
    if alpha is not None and alpha.size != 1:
        raise ModelError(f"{keys['alpha']} has shape {alpha.shape}; expected one number")
    return Factors(
        layer=layer,
        rank=len(down),
        wide=any(size > 1 for size in down.shape[2:]),
        kohya="lora_down" in keys["down"],
        alpha=None if alpha is None else float(alpha.reshape(())),
    )


def _components(shapes: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in shapes))


def _component(said: Said, pairs: Mapping[str, Pair[Array]], target: Target[Array]) -> str:
    adapter = said.adapters.get("")
    if adapter is None or said.component:
        return said.component
    return component_of({layer: len(up) for layer, (_, up) in pairs.items()}, adapter.model, target)


def _misfit(place: Place, lost: list[str]) -> ModelError:
    if not lost:
        return ModelError(f"{place.path} has no LoRA keys at all; give the file that the trainer wrote")
    shown = ", ".join(lost[:SHOWN])
    if all(layer.startswith(TEXT_ENCODERS) for layer in lost):
        return ModelError(
            f"{place.path} changes text encoders too, and there is no weight, or no slot, for {shown}; {ELSEWHERE}"
        )
    return ModelError(
        f"{place.path} does not fit this bundle: there is no weight, or no slot, for {shown}, or only an export knows "
        f"these names; {ELSEWHERE}"
    )
