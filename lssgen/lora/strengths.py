"""What the changes of a LoRA's layers are multiplied with: alpha / rank, wherever the file or its maker says it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lssgen.lora.adapters import Adapter
from lssgen.lora.said import Said


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """A layer's two factors, as far as its strength goes.

    Attributes:
        layer: Name of the layer in the file.
        rank: Size between the factors.
        wide: True where the layer is a convolution of more than a pixel.
        kohya: True where the factors have the names that kohya's trainers give.
        alpha: Alpha that the file has for this layer alone; None: it has none.
    """

    layer: str
    rank: int
    wide: bool
    kohya: bool
    alpha: float | None


@dataclass(frozen=True, slots=True)
class Strengths:
    """Strengths of a file's layers.

    Attributes:
        by_layer: Alpha / rank, by the layer's name in the file.
        assumed: Number of layers whose alpha is taken to be the rank, since nothing says it.
        notes: Sentences that the user should read.
    """

    by_layer: Mapping[str, float]
    assumed: int
    notes: tuple[str, ...]


def strengths_of(said: Said, layers: Sequence[Factors]) -> Strengths:
    """Alpha / rank of every layer.

    Raises:
        ModelError: What is said contradicts the factors, or makes no sense.
    """
    found: dict[str, float] = {}
    asked: dict[str, dict[str, int]] = {}
    names: dict[str, dict[str, str]] = {}
    assumed, notes = 0, list[str]()
    for one in layers:
        adapter, plain = said.adapter_of(one.layer)
        if one.alpha is not None:
            found[one.layer] = one.alpha / one.rank
        elif adapter is not None:
            component = "" if "" in said.adapters else one.layer.partition(".")[0]
            asked.setdefault(component, {})[plain] = one.rank
            names.setdefault(component, {})[plain] = one.layer
        else:
            strength = _said_by_header(said, one)
            assumed += strength is None
            found[one.layer] = 1.0 if strength is None else strength
    for component, ranks in asked.items():
        adapter = said.adapters[component]
        found |= {names[component][plain]: value for plain, value in adapter.strengths(ranks).items()}
        notes += _default_noted(adapter)
    return Strengths(found, assumed, tuple(notes))


def assumed_note(path: Path, assumed: int, total: int) -> str:
    """What a user should know of layers whose strength nothing says."""
    which = "" if assumed == total else f" for {assumed} of its {total} layers"
    return (
        f"LoRA {path.name} does not say its alpha{which}: it is taken to be the rank, which makes the strength "
        "1. If it was trained with another one, write :X behind its name, with X = alpha / rank."
    )


def _said_by_header(said: Said, one: Factors) -> float | None:
    """What the header says about all layers; None where it says nothing."""
    alpha = said.said_alpha()
    if alpha is not None:
        return alpha / one.rank
    # Converters keep kohya's header and put the alpha into the factors, under other names.
    return said.kohya_strength(one.rank, wide=one.wide) if one.kohya else None


def _default_noted(adapter: Adapter) -> list[str]:
    said = f"{adapter.said_by} names no lora_alpha: it is taken to be {adapter.alpha:g}, as in PEFT."
    return [said] if adapter.default else []
