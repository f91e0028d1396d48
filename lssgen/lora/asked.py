"""A LoRA as somebody asks for it: a file, and how strong."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lssgen.errors import ModelError

SCALES = "/"
"""Sign between the strengths of a run's stages: "style.safetensors:0.2/1"."""


Scales = float | tuple[float, ...]
"""Strength of a LoRA, or one for each stage of a run."""

Chosen = Mapping[str, Scales] | Mapping[Path, Scales] | Mapping[str | Path, Scales]
"""LoRAs of a run: strength by file."""


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA as the user asks for it.

    Attributes:
        path: A safetensors file in the form of PEFT, diffusers, kohya, ComfyUI or XLabs, the folder that PEFT or
            diffusers make, or the place of one on the hub: owner/name or owner/name/file.safetensors, with @revision.
        scale: Strength; 1 as it was trained, 0 nothing, negative the opposite.

    Raises:
        ModelError: The strength is not a finite number.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.scale):
            raise ModelError(
                f"strength {self.scale} of LoRA {self.path} is not a finite number; 1 is the LoRA as it was trained"
            )

    @classmethod
    def from_text(cls, text: str) -> "Lora":
        """Path and strength, 1 where none is given, of "style.safetensors:0.8"."""
        path, colon, scale = text.rpartition(":")
        try:
            return cls(Path(path), float(scale)) if colon else cls(Path(text))
        except ValueError:  # the colon belongs to the path
            return cls(Path(text))


@dataclass(frozen=True, slots=True)
class RunLora:
    """A LoRA that a run puts into the slots of its bundle.

    Attributes:
        path: A safetensors file, or the folder that PEFT or diffusers make.
        scales: Strength in every stage; one: the same in all of them.

    Raises:
        ModelError: A strength is not a finite number.
    """

    path: Path
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for scale in self.scales:
            Lora(self.path, scale)

    @classmethod
    def from_text(cls, text: str) -> "RunLora":
        """Path and strengths, 1 where none is given, of "style.safetensors:0.8" or, by stage, ":0.2/1"."""
        path, colon, scales = text.rpartition(":")
        try:
            return cls(Path(path), tuple(map(float, scales.split(SCALES)))) if colon else cls(Path(text))
        except ValueError:  # the colon belongs to the path
            return cls(Path(text))

    @property
    def named(self) -> str:
        """The same as text, without the folder."""
        return str(RunLora(Path(self.path.name), self.scales))

    def __str__(self) -> str:
        return f"{self.path}:{SCALES.join(map(repr, self.scales))}"


def lora_texts(loras: Chosen) -> tuple[str, ...]:
    """LoRAs by file, with their strengths, as a run takes them: "style.safetensors:0.8".

    Raises:
        ModelError: A strength is not a finite number.
    """
    scales = {path: scale if isinstance(scale, tuple) else (scale,) for path, scale in loras.items()}
    return tuple(str(RunLora(Path(path), tuple(map(float, scale)))) for path, scale in scales.items())
