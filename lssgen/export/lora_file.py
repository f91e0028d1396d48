"""LoRA files: their tensors, read by torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.stored import PLAIN, Stored, read_header
from lssgen.lora.said import Place, Said, adapters_of, places_of


@dataclass(frozen=True, kw_only=True)
class LoraFile(Said):
    """A LoRA's tensors, and what is said about them.

    Attributes:
        stored: Place of each tensor.
    """

    stored: Mapping[str, Stored]

    def tensor(self, key: str) -> Tensor:
        """A tensor that can be a weight, in the type it has.

        Raises:
            ModelError: It has no elements, or is not made of finite real numbers.
        """
        stored = self.stored[key]
        if stored.dtype not in PLAIN:
            kind = str(stored.dtype).removeprefix("torch.")
            raise ModelError(f"{self.path} holds {key} as {kind}; weights of a LoRA are fp32, fp16, bf16 or fp8")
        if 0 in stored.shape:
            raise ModelError(f"{self.path} holds {key} with shape {list(stored.shape)}: it is empty, a LoRA of rank 0")
        value = stored.read().reshape(stored.shape)
        if not torch.isfinite(value.float()).all():
            raise ModelError(f"{self.path} is damaged: {key} holds NaN or infinity")
        return value

    def number(self, key: str) -> float:
        """A tensor of one number.

        Raises:
            ModelError: It has more or none, or is not finite.
        """
        stored = self.stored[key]
        if math.prod(stored.shape) != 1 or stored.dtype.is_complex:
            raise ModelError(f"{self.path} holds {key} with shape {list(stored.shape)}; expected one number")
        value = float(stored.read().double())
        if not math.isfinite(value):
            raise ModelError(f"{self.path} holds {value} in {key}; expected a finite number")
        return value


def open_lora(path: Path) -> tuple[LoraFile, ...]:
    """Look through a LoRA's headers: a safetensors file, or a folder as PEFT or diffusers write it.

    Raises:
        ModelError: There is none, it is pickled or damaged, or its configuration is not for a LoRA that can be merged.
    """
    return tuple(map(_file, places_of(path)))


def _file(place: Place) -> LoraFile:
    try:
        stored, header = read_header(place.path)
    except ModelError as error:
        raise ModelError(f"{place.path} cannot be read as a LoRA: {error}") from error
    adapters = adapters_of(place.path, header)
    return LoraFile(path=place.path, header=header, adapters=adapters, component=place.component, stored=stored)
