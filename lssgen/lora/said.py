"""LoRA files and folders: what lies where, and what is said about the tensors beside them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lssgen.errors import ModelError
from lssgen.jsons import JsonError, decode_json
from lssgen.lora.adapters import Adapter, adapter_from
from lssgen.lora.names import PEFT_PREFIX
from lssgen.models.configs import read_json

CONFIG = "adapter_config.json"
"""PEFT's file, beside the tensors."""

FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
"""Names that PEFT and diffusers give to a LoRA in a folder of its own."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")

DIFFUSERS_KEY = "lora_adapter_metadata"
"""Entry of a file's header where diffusers keeps PEFT's configurations: fields behind the names of the components."""

ALPHAS = ("lora_alpha", "network_alpha", "alpha")
"""Entries of a header that give one alpha for all layers."""

KOHYA_ALPHA, KOHYA_RANK, KOHYA_MORE = "ss_network_alpha", "ss_network_dim", "ss_network_args"
"""Entries of kohya's trainers, who give convolutions an alpha and a rank of their own among the further arguments."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What is said about a LoRA's tensors beside them.

    Attributes:
        path: The safetensors file.
        header: Texts in the file's header.
        adapters: Configurations of PEFT, by component; of all, or of the one it was trained for, by the empty name.
        component: Part of the model that the folder's name says it is for; empty: none.
    """

    path: Path
    header: Mapping[str, str]
    adapters: Mapping[str, Adapter]
    component: str = ""

    def adapter_of(self, layer: str) -> tuple[Adapter | None, str]:
        """What PEFT says about a layer, and what it calls the layer."""
        component, _, rest = layer.partition(".")
        if component in self.adapters:
            return self.adapters[component], rest
        return self.adapters.get(""), layer.removeprefix(PEFT_PREFIX)

    def said_alpha(self) -> float | None:
        """The one alpha that the header gives for all layers; None: it gives none.

        Raises:
            ModelError: It is not a number.
        """
        return next((value for name in ALPHAS if (value := self._header_number(name)) is not None), None)

    def kohya_strength(self, rank: int, *, wide: bool) -> float | None:
        """Alpha / rank as kohya's trainers say it in the header; None: they say nothing.

        Args:
            rank: Of the layer's factors.
            wide: Whether the layer is a convolution of more than a pixel.

        Raises:
            ModelError: The header is about another rank, or does not say a number.
        """
        alpha, said = self._header_number(KOHYA_ALPHA), self._header_number(KOHYA_RANK)
        if wide:
            more = _object(self.header.get(KOHYA_MORE, "{}"), f"{KOHYA_MORE} of {self.path}")
            if more.get("conv_dim") is not None:
                alpha, said = (_real(more.get(name), name, self.path) for name in ("conv_alpha", "conv_dim"))
                alpha = 1.0 if alpha is None else alpha  # LyCORIS and kohya agree
        if alpha is None:
            return None
        if said is not None and said != rank:
            raise ModelError(
                f"the header of {self.path} says rank {said:g}, but there are factors of rank {rank} without an alpha; "
                "save it with the alpha of each layer"
            )
        return alpha / rank if alpha else 1.0  # zero is kohya's word for the rank

    def _header_number(self, name: str) -> float | None:
        return _real(self.header.get(name), name, self.path)


@dataclass(frozen=True, slots=True)
class Place:
    """A file of a LoRA.

    Attributes:
        path: The safetensors file.
        component: Part of the model that the folder's name says it is for; empty: none.
    """

    path: Path
    component: str = ""


def places_of(path: Path) -> tuple[Place, ...]:
    """The files of a LoRA: a safetensors file, or a folder as PEFT or diffusers write it.

    Raises:
        ModelError: There is none, or it is pickled.
    """
    if not path.exists():
        raise ModelError(f"there is no LoRA {path}; give a safetensors file, or a folder with one")
    if path.is_dir():
        return _folder(path)
    if path.suffix in PICKLED:
        raise ModelError(f"{path} is pickled, and reading a pickle can run code; give the LoRA as a safetensors file")
    if not path.is_file():
        raise ModelError(f"{path} cannot be read as a LoRA; give a safetensors file")
    return (Place(path),)


def adapters_of(path: Path, header: Mapping[str, str]) -> Mapping[str, Adapter]:
    """PEFT's configurations, in a file of their own or in the header, by component.

    Raises:
        ModelError: They are not for a LoRA that can be merged.
    """
    config = path.parent / CONFIG
    # A configuration beside several files, as in a folder of downloads, need not be this one's.
    alone = path.name == FILES[0] or len(list(path.parent.glob("*.safetensors"))) == 1
    if alone and config.is_file():
        return {"": adapter_from(read_json(config), str(config))}
    return _said_by_diffusers(path, header)


def _folder(folder: Path) -> tuple[Place, ...]:
    for name in FILES:
        if (folder / name).is_file():
            return (Place(folder / name),)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return (Place(found[0]),)
    if found:
        raise ModelError(f"{folder} has {len(found)} safetensors files ({found[0].name}, ...); name one of them")
    parts = sorted(place.parent for place in folder.glob(f"*/{CONFIG}"))
    if parts:
        return tuple(Place(_weights(part), part.name) for part in parts)
    raise _nothing(folder)


def _weights(folder: Path) -> Path:
    if not (folder / FILES[0]).is_file():
        raise _nothing(folder)
    return folder / FILES[0]


def _nothing(folder: Path) -> ModelError:
    pickled = [file.name for file in sorted(folder.iterdir()) if file.suffix in PICKLED]
    if pickled:
        return ModelError(
            f"{folder} has only a pickled LoRA ({pickled[0]}), which can run code; save it as safetensors"
        )
    return ModelError(f"{folder} has no LoRA; expected {' or '.join(FILES)} there")


def _said_by_diffusers(path: Path, header: Mapping[str, str]) -> Mapping[str, Adapter]:
    """PEFT's configurations in a file's header, by component."""
    if DIFFUSERS_KEY not in header:
        return {}
    said_by = f"{DIFFUSERS_KEY} of {path}"
    configs: dict[str, dict[str, Any]] = {}
    for key, value in _object(header[DIFFUSERS_KEY], said_by).items():
        component, _, name = key.rpartition(".")
        configs.setdefault(component, {})[name] = value
    return {component: adapter_from(config, said_by) for component, config in configs.items()}


def _object(text: str, said_by: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        ModelError: The text is something else.
    """
    try:
        # A header's texts may hold halves of surrogate pairs, which UTF-8 has no bytes for.
        return decode_json(text.encode("utf-8", "replace"), dict[str, Any])
    except JsonError as error:
        raise ModelError(f"{said_by} {error}") from error


def _real(value: object, name: str, path: Path) -> float | None:
    """A number out of a header; "None" is what Python's trainers write for none."""
    if value is None or value in ("", "None", "null"):
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ModelError(f"the header of {path} says {str(value)[:40]!r} for {name}; expected a number")
    return number
