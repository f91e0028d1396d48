"""What a user may choose about an export, and which sizes fit a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lssgen.bundle import Precision
from lssgen.errors import ExportError
from lssgen.export.lora import Lora
from lssgen.plan.facts import ModelFacts
from lssgen.plan.options import PlanOptions
from lssgen.plan.planner import make_plan

Probing = Literal["auto", "stages", "small", "none"]
"""Where graphs are compared with torch: at every stage's size, at one small size, nowhere; "auto" is "stages" for
networks of which a CPU computes a step in seconds, and "small" for larger ones."""

Resolution = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to make a bundle of, and how.

    Attributes:
        model: An alias, a hub id, a folder in the diffusers layout, or a safetensors file in the original one.
        output: Folder of the bundle.
        revision: Branch, tag or commit on the hub; None: its default branch.
        base: For a file, what gives it what it lacks; None: the published checkpoint that it descends from.
        resolutions: Stage sizes in pixels. Empty: the stages of the model's default picture.
        precision: Of the networks; the state between them is always float32.
        upsampler: Folder of a latent upsampler; None: one that belongs to the checkpoint or is installed for its VAE.
        convert_latents: Take latents to the normalisation that the upsampler was trained with, and back: for a model
            whose VAE is that of another model with other means and deviations (Playground, of SDXL). LSSGen, as
            published, does not.
        skip_layers: Give the step graph gates for skip-layer guidance.
        layers_to_skip: What that guidance leaves out; empty: what the model's authors do.
        t5: Keep the T5 encoder, where the family can do without.
        max_sequence_length: Tokens of the long text encoder; None: the model's own.
        loras: Merged into the weights, in order.
        probe: At which sizes graphs are compared with torch.
        threads: CPU threads for the probes; 0 leaves it to ONNX Runtime and torch.
    """

    model: str
    output: Path
    revision: str | None = None
    base: str | None = None
    resolutions: tuple[Resolution, ...] = ()
    precision: Precision = "fp32"
    upsampler: Path | None = None
    convert_latents: bool = False
    skip_layers: bool = False
    layers_to_skip: tuple[int, ...] = ()
    t5: bool = True
    max_sequence_length: int | None = None
    loras: tuple[Lora, ...] = ()
    probe: Probing = "auto"
    threads: int = 0


def default_resolutions(facts: ModelFacts) -> tuple[Resolution, ...]:
    """The stages of the model's default picture.

    Raises:
        PlanError: The checkpoint's scheduler cannot be planned with.
    """
    defaults = facts.defaults
    smallest = min(defaults.min_resolution, defaults.height, defaults.width)
    plan = make_plan(facts, PlanOptions.from_defaults(defaults, min_resolution=smallest))
    return tuple((stage.height * facts.cell_px, stage.width * facts.cell_px) for stage in plan.stages)


def checked_resolutions(resolutions: tuple[Resolution, ...], facts: ModelFacts) -> tuple[Resolution, ...]:
    """The resolutions, smallest first, each once.

    Raises:
        ExportError: A side does not divide, or is longer than the network's position table.
    """
    unit = facts.cell_px * facts.align
    for height, width in resolutions:
        for side in (height, width):
            if side < unit or side % unit:
                below = max(side // unit, 1) * unit
                raise ExportError(
                    f"{facts.name} takes sides that are multiples of {unit} px; {side} in {height} x {width} is not: "
                    f"use {below}" + (f" or {below + unit}" if side > unit else "")
                )
            if facts.longest_side and side > facts.longest_side * facts.cell_px:
                raise ExportError(
                    f"{facts.name} knows positions up to {facts.longest_side * facts.cell_px} px (its position table); "
                    f"{height} x {width} does not fit"
                )
    return tuple(sorted(set(resolutions), key=lambda size: (size[0] * size[1], size)))
