"""What LoRA files call the layers that they change, and which of a checkpoint's weights are meant."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lssgen.errors import ModelError

T = TypeVar("T")
"""Kind of array that factors are: torch's where a checkpoint is exported, NumPy's where a bundle is changed."""

Role = Literal["down", "up", "alpha", "magnitude", "bias", "diagonal", "table down", "table up", "tokens"]
"""Part that a tensor plays in its layer's change."""

ENDS: Mapping[str, Role] = {
    ".lora_A.weight": "down",  # PEFT, and diffusers since 0.22
    ".lora_B.weight": "up",
    ".lora_B.bias": "bias",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_diag": "diagonal",
    ".lora_embedding_A": "table down",
    ".lora_embedding_B": "table up",
    ".token_adapter.trainable_tokens_delta": "tokens",
    ".lora_down.weight": "down",  # kohya's sd-scripts
    ".lora_up.weight": "up",
    ".dora_scale": "magnitude",
    ".alpha": "alpha",
    ".lora.down.weight": "down",  # diffusers before
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down",  # XLabs
    ".up.weight": "up",
}
"""Ends of the keys of a layer's change, by what they mean. The first that fits is meant."""

ADAPTER_NAME = re.compile(
    r"(\.lora_(?:A|B|magnitude_vector|diag|embedding_A|embedding_B))\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)"
)
"""Place of the adapter's name, "default", in a raw state dict of PEFT."""

UNUSED = re.compile(r"\.lora_(monteclora_sampler\.\w+|velora_embed)(\.[^.]+)?$")
"""Keys that trainers of PEFT keep for themselves, and its merge leaves out."""

FOREIGN: Mapping[str, str] = {
    r"\.hada_[wt]\d": "a LoHa",
    r"\.lokr_[wt]\d": "a LoKr",
    r"\.(oft_blocks|oft_diag|oft_R|oft_r)\b": "an OFT",
    r"\.boft_[RrSs]": "a BOFT",
    r"\.(on_input|ia3_l)\b": "an IA3",
    r"\b(vera_lambda_[bd]|vera_[AB])\b": "a VeRA",
    r"\.lora_mid\.": "a LoCon with a Tucker core",
    r"\.lora_E\b|\branknum\b": "an AdaLoRA",
    r"\.[ab][12]\.weight$|\.bm\.weight$": "a GLoRA",
    r"\.(diff|diff_b)$": "a full difference of weights",
    r"\.[wb]_norm$": "norms trained in full",
    r"\bfourierft_\w+": "a FourierFT",
    r"\bhra_[uU]\b": "an HRA",
    r"\.lora_[AB]\.lora_[AB]|\blora_router": "a router of LoRAs",
    r"\.to_[kv]_ip\.|^image_proj\.": "an IP-Adapter",
    r"^bundle_emb\.": "a LoRA with embeddings inside",
}
"""Adapters that are not low-rank sums, LyCORIS' most of them, by what their keys have in them."""

KOHYA_NETWORK = r"^(base_model_model_)?diffusion_model_|^(?=(double|single|input|middle|output)_blocks?_)"
"""Beginning of the denoiser's names in files of others, all dots underscores; kohya says "lora_unet_"."""

ENCODERS: Mapping[str, tuple[str, ...]] = {
    "lora_te_": ("text_encoder_",),
    "lora_te1_": ("text_encoder_",),
    "lora_te2_": ("text_encoder_2_",),
    "lora_te3_": ("text_encoder_3_", "text_encoder_2_"),  # T5: the third of SD3, the second of FLUX
    "text_encoders_clip_l_transformer_": ("text_encoder_",),  # ComfyUI
    "text_encoders_clip_g_transformer_": ("text_encoder_2_",),
    "text_encoders_t5xxl_transformer_": ("text_encoder_3_", "text_encoder_2_"),
}
"""Parts of diffusers that a text encoder may be, by its name among trainers."""

NETWORK_PREFIXES = ("lora_unet_", "lora_transformer_", "diffusion_model_", "unet_", "transformer_")

PEFT_PREFIX = "base_model.model."

Pair = tuple[T, T]
"""The two factors: (rank, in) narrows, (out, rank) widens."""

Renaming = Callable[[Mapping[str, T]], Mapping[str, T]]
"""The factors of one change by the names of diffusers; none where these are not known. Fused layers come apart."""


@dataclass(frozen=True)
class Target(Generic[T]):
    """What a LoRA is merged into: a checkpoint, or a bundle.

    Attributes:
        shapes: Shape of each weight, by `<component>.<key>`.
        network: Component that unprefixed and "unet" keys mean, "transformer" or "unet".
        rename: Names of diffusers for those in the layout of the original code.
        classes: Class of each component.
    """

    shapes: Mapping[str, tuple[int, ...]]
    network: str
    rename: Renaming[T]
    classes: Mapping[str, str]


def sorted_keys(keys: Iterable[str], path: object) -> tuple[Mapping[str, Mapping[Role, str]], list[str]]:
    """The keys of a file by layer and role, and those that have no role.

    Raises:
        ModelError: The file has another kind of adapter, or two tensors for one role.
    """
    layers: dict[str, dict[Role, str]] = {}
    rest: list[str] = []
    for key in keys:
        layer, role = _role(key)
        if role is None:
            rest.append(key)
        elif role in layers.setdefault(layer, {}):
            raise ModelError(f"{path} changes {layer} twice: {layers[layer][role]} and {key}; give one adapter a file")
        else:
            layers[layer][role] = key
    rest = [key for key in rest if not UNUSED.search(key)]
    for key in rest:
        for pattern, what in FOREIGN.items():
            if re.search(pattern, key):
                raise ModelError(
                    f"{path} is {what} ({key}), which is not merged here; merge it into the checkpoint with the tool "
                    "that made it, and export the result"
                )
    return layers, rest


def _role(key: str) -> tuple[str, Role | None]:
    plain = ADAPTER_NAME.sub(r"\1", key)
    for end, role in ENDS.items():
        if plain.endswith(end) and len(plain) > len(end):
            return plain.removesuffix(end), role
    return key, None


class Places(Generic[T]):
    """Where the changes of a file go in a checkpoint.

    Args:
        target: The checkpoint.
        component: Part of it that unprefixed names mean before the network; empty: none.
    """

    def __init__(self, target: Target[T], component: str = "") -> None:
        self._target = target
        self._component = component
        self._known = {flat(name.removesuffix(".weight")): name for name in target.shapes if name.endswith(".weight")}

    def of_pair(self, keys: tuple[str, str], layer: str, pair: Pair[T]) -> Mapping[str, Pair[T]]:
        """The weights that two factors change, and the factors of each; none where one of the weights is not known.

        Args:
            keys: Of the factors, as the file has them.
            layer: What the file calls the layer.
            pair: The factors.
        """
        # By the file's own names, then as kohya would say it, which diffusers renames.
        for names in (keys, _kohya(layer)):
            given = dict(zip(names, pair, strict=True))
            # As they are first: most files have diffusers' names.
            for tensors in (given, self._target.rename(given)):
                if found := self._all_of(tensors):
                    return found
        return {}

    def of_layer(self, layer: str) -> str | None:
        """The weight of a layer that the file calls by diffusers' or transformers' name."""
        return self._known.get(self._normal(layer))

    def of_whole(self, key: str) -> str | None:
        """The tensor that a file has in full, a bias too."""
        plain = re.sub(r"\.(base_layer|modules_to_save\.[^.]+)(?=\.\w+$)", "", key)
        layer, _, kind = plain.rpartition(".")
        name = self.of_layer(layer)
        if kind == "weight" or name is None:
            names = [name] if name is not None else self._without_weight(layer, kind)
        else:
            names = [f"{name.removesuffix('weight')}{kind}"]
        return next((name for name in names if name in self._target.shapes), None)

    def _without_weight(self, layer: str, kind: str) -> list[str]:
        """Names of a tensor whose layer has no weight."""
        wanted = {f"{self._normal(layer)}_{kind}", f"{self._component or self._target.network}_{flat(layer)}_{kind}"}
        return [name for name in self._target.shapes if flat(name) in wanted]

    def _all_of(self, tensors: Mapping[str, T]) -> Mapping[str, Pair[T]]:
        layers, _ = sorted_keys(tensors, "it")
        found: dict[str, Pair[T]] = {}
        for layer, roles in layers.items():
            name = self.of_layer(layer)
            if name is None or "down" not in roles or "up" not in roles:
                return {}
            found[name] = (tensors[roles["down"]], tensors[roles["up"]])
        return found

    def _normal(self, layer: str) -> str:
        """The layer's name as a key of what is known: component first, all dots underscores."""
        known, name = self._known, flat(layer.removeprefix(PEFT_PREFIX).replace(".processor.", "."))
        # Before the network: a folder "text_encoder" has names that the network may have too.
        if self._component and f"{self._component}_{name}" in known:
            return f"{self._component}_{name}"
        for prefix, components in ENCODERS.items():
            if name.startswith(prefix):
                found = [component + name.removeprefix(prefix) for component in components]
                return next((one for one in found if one in known), found[0])
        network = self._target.network
        name = name.removeprefix(next((prefix for prefix in NETWORK_PREFIXES if name.startswith(prefix)), ""))
        for one in (name, f"{network}_{name}", f"{network}_{name}_0"):  # "to_out" of old files is to_out.0
            if one in known:
                return one
        return name


def component_of(sizes: Mapping[str, int], model: str, target: Target[T]) -> str:
    """The part of a checkpoint that an adapter without prefixes was trained for; empty where none fits.

    Args:
        sizes: First size of the weight that is changed, by the name of its layer.
        model: Class that it was trained for, as far as it says.
        target: The checkpoint.

    Raises:
        ModelError: Several fit.
    """
    plain = {flat(layer.removeprefix(PEFT_PREFIX)): (size,) for layer, size in sizes.items()}
    known = {flat(name.removesuffix(".weight")): shape[:1] for name, shape in target.shapes.items()}
    fits = [part for part in target.classes if all(known.get(f"{part}_{name}") == size for name, size in plain.items())]
    named = [part for part in fits if target.classes[part] == model]
    found = named or fits
    if len(found) > 1:
        raise ModelError(
            f"the adapter fits {' and '.join(found)} alike; put it into a folder {found[0]} inside another one, and "
            "give that one"
        )
    return found[0] if found else ""


def flat(name: str) -> str:
    """All dots underscores, and without the wrapper of CLIP that some versions of transformers save and some do not."""
    return name.replace(".", "_").replace("text_model_", "")


def _kohya(layer: str) -> tuple[str, str]:
    """What kohya calls the factors of a denoiser's layer; where only the prefix is another, diffusers knows that."""
    name = re.sub(KOHYA_NETWORK, "lora_unet_", layer.replace(".", "_"))
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"
