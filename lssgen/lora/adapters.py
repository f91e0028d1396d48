"""PEFT's adapter configurations: what decides an adapter's strength and cannot be seen in its tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from lssgen.errors import ModelError
from lssgen.lora.patterns import first_fits

Start = Literal["weight", "pissa", "olora", "kasa"]
"""Basis that an adapter was trained on: the weight as it is, the weight without its largest part (PiSSA, OLoRA), or
without its smallest (KaSA)."""

DEFAULT_ALPHA = 8.0
"""PEFT's, where a configuration names none."""

MERGE = "merge it into the model with the library that made it, and export the merged checkpoint"

TYPES: Mapping[str, str] = {
    "ADALORA": "AdaLoRA",
    "BOFT": "BOFT",
    "FOURIERFT": "FourierFT",
    "HRA": "HRA",
    "IA3": "IA3",
    "LN_TUNING": "LayerNorm tuning",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "OFT": "OFT",
    "RANDLORA": "RandLoRA",
    "TRAINABLE_TOKENS": "trainable tokens (without a LoRA)",
    "VBLORA": "VB-LoRA",
    "VERA": "VeRA",
    "XLORA": "X-LoRA",
}
"""Names of the adapter types that are not LoRAs, by PEFT's `peft_type`; of the others its own word is shown."""

REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which acts after certain words only",
    "arrow_config": "an Arrow router, which chooses among LoRAs for every token",
    "layer_replication": "a LoRA for a model with repeated layers (layer_replication)",
    "megatron_config": "a LoRA for layers of Megatron",
    "target_parameters": "a LoRA of bare parameters (target_parameters)",
    "use_qalora": "a QA-LoRA, for quantised weights",
}
"""Variants of PEFT that cannot be merged into plain weights, by the setting that asks for them."""

STARTS: Mapping[str, Start] = {"pissa": "pissa", "olora": "olora"}
"""Ways to begin that change the weight below the adapter, and can be repeated exactly."""

REFUSED_STARTS: Mapping[str, str] = {
    "pissa_niter": "PiSSA with a random decomposition",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
"""Ways to begin that change the weight below the adapter by something that is not in the file."""

HARMLESS = frozenset(
    (
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
        "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "kasa_config",
        "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout",
        "lora_ga_config", "megatron_core", "modules_to_save", "monteclora_config", "peft_type", "peft_version",
        "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
        "trainable_token_indices", "use_bdlora", "use_dora", "use_rslora", "velora_config",
    )
)  # fmt: skip
"""Settings that are read here, or that matter to training alone. Linear layers are never stored the other way round in
diffusers' models, so that PEFT switches `fan_in_fan_out` off for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Factors that are stored as the blocks of a block-diagonal matrix (BD-LoRA).

    Attributes:
        count: Number of blocks.
        down, up: Parts of the names of the layers whose first or second factor it is.
    """

    count: int
    down: tuple[str, ...]
    up: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What PEFT says about the adapter of one model.

    Attributes:
        said_by: File that says it, for messages.
        alpha, alphas: Numerator of the strength, and by pattern of the layer's name.
        rank, ranks: Size between the factors, and by pattern; None: not said.
        root: True where the strength divides by the root of the rank (rsLoRA).
        start: Weight that it was trained on top of.
        blocks: Blocks that factors are stored as; None: in full.
        whole: True where it brings tensors that were trained in full: biases, or whole layers.
        tokens: Indices of the rows that were trained in a table of embeddings, by the end of its layer's name.
        model: Class of the model that it was trained for; empty: not said.
        default: True where alpha is PEFT's own, for want of another.
    """

    said_by: str
    alpha: float = DEFAULT_ALPHA
    alphas: Mapping[str, float]
    rank: int | None = None
    ranks: Mapping[str, int]
    root: bool = False
    start: Start = "weight"
    blocks: Blocks | None = None
    whole: bool = False
    tokens: Mapping[str, tuple[int, ...]]
    model: str = ""
    default: bool = False

    def strengths(self, ranks: Mapping[str, int]) -> Mapping[str, float]:
        """What each layer's change is multiplied with.

        Args:
            ranks: Rank of each layer's factors, by the layer's name in its model.

        Raises:
            ModelError: A pattern cannot be matched, or a rank is not the one that is said.
        """
        layers = list(ranks)
        alphas = first_fits(list(self.alphas), layers, f"alpha_pattern of {self.said_by}")
        said = first_fits(list(self.ranks), layers, f"rank_pattern of {self.said_by}")
        found: dict[str, float] = {}
        for layer, rank in ranks.items():
            expected = self.ranks[said[layer]] if layer in said else self.rank
            if expected is not None and expected != rank:
                raise ModelError(f"{self.said_by} says rank {expected} for {layer}, whose factors have rank {rank}")
            alpha = self.alphas[alphas[layer]] if layer in alphas else self.alpha
            found[layer] = alpha / (math.sqrt(rank) if self.root else rank)
        return found


def adapter_from(settings: Mapping[str, Any], said_by: str) -> Adapter:
    """Read a configuration as PEFT does.

    Raises:
        ModelError: It is another kind of adapter than a LoRA, a kind that cannot be merged, or makes no sense.
    """
    _refuse_others(settings, said_by)
    start = settings.get("init_lora_weights")
    kasa = settings.get("kasa_config") is not None
    return Adapter(
        said_by=said_by,
        alpha=_number(settings, "lora_alpha", said_by, DEFAULT_ALPHA),
        alphas=_numbers(settings, "alpha_pattern", said_by),
        # Not PEFT's default of 8: a file that is silent has factors, which say it.
        rank=int(_number(settings, "r", said_by, 0)) or None,
        ranks={key: int(value) for key, value in _numbers(settings, "rank_pattern", said_by).items()},
        root=bool(settings.get("use_rslora")),
        start="kasa" if kasa else STARTS.get(start.lower(), "weight") if isinstance(start, str) else "weight",
        blocks=_blocks(settings.get("use_bdlora"), said_by),
        whole=bool(settings.get("modules_to_save")) or settings.get("bias", "none") != "none",
        tokens=_tokens(settings.get("trainable_token_indices"), said_by),
        model=_model(settings.get("auto_mapping")),
        default=settings.get("lora_alpha") is None,
    )


def _refuse_others(settings: Mapping[str, Any], said_by: str) -> None:
    """See that it is a LoRA that can be merged.

    Raises:
        ModelError: It is not; says what it is.
    """
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise ModelError(f"{said_by} is for {TYPES.get(str(kind), str(kind)[:40])}, which is not a LoRA; {MERGE}")
    for field, what in REFUSED.items():
        if settings.get(field):
            raise ModelError(f"{said_by} is for {what}; it cannot be merged into weights")
    start = settings.get("init_lora_weights")
    for begin, what in REFUSED_STARTS.items():
        if isinstance(start, str) and start.lower().startswith(begin):
            raise ModelError(
                f"{said_by} is for {what}, which was trained on top of other weights than the model's own; save it "
                "with PEFT's path_initial_model_for_weight_conversion, or merge it and export the merged checkpoint"
            )
    # Of newer versions of PEFT. Those that are off change nothing; one that is on may change everything.
    new = sorted(key for key, value in settings.items() if value and key not in HARMLESS | REFUSED.keys())
    if new:
        raise ModelError(f"{said_by} has settings that are not known here: {', '.join(new)[:200]}; {MERGE}")


def _number(settings: Mapping[str, Any], field: str, said_by: str, default: float) -> float:
    value = settings.get(field)
    return default if value is None else _checked(value, field, said_by)


def _numbers(settings: Mapping[str, Any], field: str, said_by: str) -> dict[str, float]:
    value = settings.get(field) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{field} of {said_by} is {str(value)[:40]!r}; expected numbers by the layers' names")
    patterns = cast("dict[str, Any]", value)
    return {key: _checked(number, f"{field} of {key[:80]!r}", said_by) for key, number in patterns.items()}


def _checked(value: Any, field: str, said_by: str) -> float:
    try:
        # float() reads True as 1 and "8" as 8, which PEFT would not multiply with.
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ModelError(f"{said_by} says {str(value)[:40]!r} for {field}; expected a number")
    return number


def _blocks(settings: Any, said_by: str) -> Blocks | None:
    if not settings:
        return None
    try:
        down, up = (tuple(map(str, settings.get(f"target_modules_bd_{letter}") or ())) for letter in "ab")
        count = int(settings.get("nblocks", 1))
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"use_bdlora of {said_by} cannot be read: {error}") from error
    if count < 1:
        raise ModelError(f"use_bdlora of {said_by} asks for {count} blocks; expected 1 or more")
    return Blocks(count=count, down=down, up=up)


def _tokens(settings: Any, said_by: str) -> Mapping[str, tuple[int, ...]]:
    """Trained rows by layer; the empty name is the model's own table of embeddings."""
    rows: Mapping[str, Any] = settings if isinstance(settings, dict) else {"": settings} if settings else {}
    try:
        found = {name: tuple(indices) for name, indices in rows.items()}
    except TypeError as error:
        raise ModelError(f"trainable_token_indices of {said_by} cannot be read: {error}") from error
    # type, and not isinstance: True is an int to Python.
    if not all(type(index) is int for indices in found.values() for index in indices):
        raise ModelError(f"trainable_token_indices of {said_by} are not whole numbers")
    return found


def _model(mapping: Any) -> str:
    return str(cast("dict[str, Any]", mapping).get("base_model_class") or "") if isinstance(mapping, dict) else ""
