"""A LoRA as somebody asks for it: a file, and how strong."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from lssgen.errors import ModelError


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
