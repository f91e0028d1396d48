"""What may be chosen about a training. No torch in here, so that the command can explain itself at once."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lssgen.errors import TrainingError

Downscale = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Target = Literal["origin", "nearest"]
ImageLossName = Literal["none", "l1", "ms-ssim", "lpips"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecipe:
    """How a picture becomes a pair.

    Attributes:
        height, width: Of the high-resolution picture, in pixels; the low one has half of each.
        target: "origin": the high picture is a random crop and the low one is made from it. "nearest": the low
            picture is the random crop, and the high one is its nearest-neighbour enlargement.
        downscale: Filter that makes the low picture. The published recipe has "nearest", whose pictures are full of
            aliasing that no diffusion model paints; the others smooth first.
    """

    height: int = 256
    width: int = 256
    target: Target = "origin"
    downscale: Downscale = "bicubic"

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width in pixels of what is cut from the picture."""
        return (self.height, self.width) if self.target == "origin" else (self.height // 2, self.width // 2)

    def check(self, cell_px: int) -> None:
        """Raises TrainingError unless both pictures of a pair are whole numbers of latent cells."""
        unit = 2 * cell_px
        if min(self.height, self.width) < unit or self.height % unit or self.width % unit:
            raise TrainingError(
                f"crops of {self.width}x{self.height} px do not halve into whole latent cells of {cell_px} px; "
                f"give multiples of {unit}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides which upsampler comes out. A run can only be resumed under the same one.

    Attributes:
        pairs: How pictures become pairs.
        cached_pairs: How many pairs are encoded once and reused; 0 cuts and encodes fresh ones for every step.
        sample_low: Draw the low latent from the encoder's posterior, freshly in every step, instead of taking its mean.
        steps: Optimiser steps; 0 only measures the upsampler that the job starts from.
        batch: Pairs that go through the networks together.
        accumulate: Batches a step.
        learning_rate: Peak of the one-cycle schedule (30 % warm-up, cosine).
        weight_decay, clip: Of AdamW, and the largest gradient norm.
        ema: Share of the average that each step keeps; the average is what is saved. Smaller in the first steps.
        latent_weight: Of the mean square error between latents in model space.
        image_loss, image_weight: Loss on the decoded picture, through the frozen decoder, and its weight.
        seed: Of the first weights, the pairs, their order and their noise; 0 is a seed like any other.
        bf16: Run the networks' forward passes under bfloat16 autocast; parameters and losses stay float32.
    """

    pairs: PairRecipe = field(default_factory=PairRecipe)
    cached_pairs: int = 2048
    sample_low: bool = True
    steps: int = 10_000
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    latent_weight: float = 1.0
    image_loss: ImageLossName = "l1"
    image_weight: float = 1.0
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be above 0")
        for name in ("steps", "cached_pairs", "weight_decay", "latent_weight", "image_weight", "seed"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be 0 or more")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"ema is {self.ema}, but must be at least 0 and below 1")
        if self.latent_weight == 0 and not self.looks_at_pictures:
            raise TrainingError("latent_weight is 0 and there is no image loss: nothing is left to learn from")

    @property
    def looks_at_pictures(self) -> bool:
        return self.image_loss != "none" and self.image_weight > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What the command was asked to do.

    Attributes:
        vae: Folder or hub id, see `load_autoencoder`.
        images: Folder of training pictures.
        validation: Folder of validation pictures; empty: some of `images` are held out.
        output: Where state, cache, checkpoint and report go.
        config: Decides which upsampler comes out.
        shape: Path of an upsampler's config.json to train that shape; empty: the published one for the VAE's channels.
        start_from: Folder of an upsampler to go on from; empty: random weights.
        device: torch name, or "auto".
        threads: Of torch on the CPU; 0 leaves the number to torch.
        workers: Processes that read pictures; 0 reads them in this one.
        save_every: Steps between saved states.
        install: Put the result where `lssgen-export` finds it for this VAE.
        licence, trained_on: For lssgen.json, in the user's words; `trained_on` may be empty.
    """

    vae: str
    images: Path
    validation: str = ""
    output: Path = Path("upsampler")
    config: TrainConfig = field(default_factory=TrainConfig)
    shape: str = ""
    start_from: str = ""
    device: str = "auto"
    threads: int = 0
    workers: int = 0
    save_every: int = 500
    install: bool = True
    licence: str = "not stated"
    trained_on: str = ""

    def __post_init__(self) -> None:
        for name, least in (("threads", 0), ("workers", 0), ("save_every", 1)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} is {getattr(self, name)}, but must be {least} or more")
