"""What may be chosen about a training. No torch in here, so that the command can explain itself at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lssgen.choices import choice
from lssgen.errors import TrainingError
from lssgen.training.limits import Limits, check_choices

Downscale = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]
Target = Literal["origin", "nearest"]
Space = Literal["auto", "own", "sd", "sdxl", "sd3", "flux", "flux2"]
ImageLossName = Literal["none", "l1", "ms-ssim", "mixed", "lpips"]

_DATA, _LEARNING, _PLACE = "what it learns from", "how it learns", "where"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRecipe:
    """How a picture becomes a pair.

    Attributes:
        height, width: Size of the high picture in pixels; the low one has half of each.
        target: "origin": the high picture is a random crop and the low one is made from it. "nearest": the low
            picture is the random crop, and the high one is its nearest-neighbour enlargement.
        downscale: Filter that makes the low picture. The published recipe has "nearest", whose pictures are full of
            aliasing that no diffusion model paints; the others smooth first.
        zoom: Largest factor that a picture is shrunk by before it is cut, so that a few large photographs show things
            at many sizes; 1 cuts them as they are.
        turns: Mirror crops, and turn square ones, at random.
    """

    height: int = 320
    width: int = 320
    target: Target = choice(
        "origin", help="origin: the crop is the high picture; nearest: the low one, and pixels repeat", group=_DATA
    )
    downscale: Downscale = choice(
        "bicubic", help="filter that makes the low picture; nearest is the published one", group=_DATA
    )
    zoom: float = choice(
        2.0, help="largest factor that a picture is shrunk by before it is cut, drawn anew for every crop", group=_DATA
    )
    turns: bool = choice(True, help="mirror crops, and turn square ones, at random", group=_DATA)

    def __post_init__(self) -> None:
        sides = {side: Limits(least=1, most=65_536) for side in ("height", "width")}
        check_choices(self, sides | {"zoom": Limits(least=1, most=64, whole=False)})

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width in pixels of what is cut from the picture."""
        # Whichever of the two pictures is cut from the file; the other is made from it.
        return (self.height, self.width) if self.target == "origin" else (self.height // 2, self.width // 2)

    def check(self, cell_px: int) -> None:
        """Raises TrainingError unless both pictures of a pair are whole numbers of latent cells."""
        unit = 2 * cell_px
        if min(self.height, self.width) < unit or self.height % unit or self.width % unit:
            raise TrainingError(
                f"crops of {self.width}x{self.height} px do not halve into whole latent cells of {cell_px} px; "
                f"give multiples of {unit}"
            )


_CONFIG_LIMITS: Mapping[str, Limits] = {
    "cached_pairs": Limits(most=10_000_000),
    "steps": Limits(most=100_000_000),
    "minutes": Limits(most=1_000_000, whole=False),
    "batch": Limits(least=1, most=65_536),
    "accumulate": Limits(least=1, most=65_536),
    # AdamW moves every weight by about the rate, whatever the gradient: above 1, nothing of the start is left.
    "learning_rate": Limits(most=1, whole=False, above=True),
    "weight_decay": Limits(most=100, whole=False),
    "clip": Limits(most=1e9, whole=False, above=True),
    "ema": Limits(most=1, whole=False, below=True),
    "latent_weight": Limits(most=1e6, whole=False),
    "image_weight": Limits(most=1e6, whole=False),
    "seed": Limits(most=2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides which upsampler comes out. A run can only be resumed under the same one.

    Attributes:
        pairs: Recipe that makes pairs of pictures.
        cached_pairs: Number of pairs that are encoded once and reused; 0 cuts and encodes fresh ones for every step.
        sample_low: Draw the low latent from the encoder's posterior, freshly in every step, instead of taking its mean.
        resident: Keep the decoded pictures on the training device and cut them there; `cached_pairs` of them are
            encoded in advance and stay there too, or none.
        steps: Optimiser steps; 0 only measures the upsampler that the job starts from.
        minutes: Time after which the steps end, even if some are left; the learning rate falls with whichever ends
            first. Reading and encoding pictures in advance does not count. 0: as long as the steps take.
        batch: Pairs that go through the networks together.
        accumulate: Batches a step.
        learning_rate: Peak of the one-cycle schedule (5 % warm-up, cosine).
        weight_decay, clip: Weight decay of AdamW, and the largest gradient norm.
        ema: Share of the average that each step keeps; the average is what is saved. Smaller in the first steps.
        latent_weight: Weight of the mean square error between latents in model space.
        image_loss, image_weight: Loss on the decoded picture, through the frozen decoder, and its weight.
        seed: Seed of the first weights, the pairs, their order and their noise; 0 is a seed like any other.
        bf16: Run the networks' forward passes under bfloat16 autocast; parameters and losses stay float32.
    """

    pairs: PairRecipe = field(default_factory=PairRecipe)
    cached_pairs: int = choice(
        2048, help="pairs that are encoded once and reused; 0 encodes fresh ones in every step", group=_DATA
    )
    sample_low: bool = choice(
        True, help="draw the low latent from the encoder's posterior instead of taking its mean", group=_DATA
    )
    resident: bool = choice(
        False, help="keep all pictures decoded on the device, and cut them there: for a GPU", group=_DATA
    )
    steps: int = choice(10_000, help="optimiser steps; 0 only measures the --start-from upsampler", group=_LEARNING)
    minutes: float = choice(
        0.0, help="time in which the steps end, with a learning rate that fits; 0: when all are made", group=_LEARNING
    )
    batch: int = choice(12, help="pairs that go through the networks together", group=_LEARNING)
    accumulate: int = choice(1, help="batches a step", group=_LEARNING)
    learning_rate: float = choice(2e-3, help="peak of the one-cycle schedule", group=_LEARNING)
    weight_decay: float = choice(1e-4, help="weight decay of AdamW", group=_LEARNING)
    clip: float = choice(1.0, help="largest gradient norm", group=_LEARNING)
    ema: float = choice(0.995, help="decay of the averaged weights, which are the result", group=_LEARNING)
    latent_weight: float = choice(1.0, help="weight of the square error between latents", group=_LEARNING)
    image_loss: ImageLossName = choice(
        "mixed",
        help="loss on the decoded picture; mixed is l1 and ms-ssim; lpips, the published one, needs its weights",
        group=_LEARNING,
    )
    image_weight: float = choice(0.5, help="weight of the loss on the decoded picture", group=_LEARNING)
    seed: int = choice(0, help="seed of the first weights, the pairs, their order and noise", group=_LEARNING)
    bf16: bool = choice(False, help="bfloat16 autocast", group=_LEARNING)

    def __post_init__(self) -> None:
        check_choices(self, _CONFIG_LIMITS)
        if self.latent_weight == 0 and not self.looks_at_pictures:
            raise TrainingError("latent_weight is 0 and there is no image loss: nothing is left to learn from")
        if self.resident and self.pairs.downscale == "lanczos":
            raise TrainingError("resident pairs cannot be made with lanczos; give another --downscale, as bicubic")

    @property
    def looks_at_pictures(self) -> bool:
        return self.image_loss != "none" and self.image_weight > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What the command was asked to do.

    Attributes:
        vae: Folder, hub id or file, see `load_autoencoder`.
        space: Models whose latents the VAE makes, a key in `lssgen.models.spaces.SPACES`. "auto": its config.json says
            how they are normalised, or it is one of the small autoencoders that are known. "own": no known model's.
        images: Folder of training pictures.
        validation: Folder of validation pictures; empty: some of `images` are held out.
        output: Folder for state, cache, checkpoint and report.
        config: Choices that decide which upsampler comes out.
        shape: Path of an upsampler's config.json to train that shape; empty: the one that this package ships.
        start_from: Folder of an upsampler to go on from; empty: random weights.
        device: torch name, or "auto".
        threads: Number of torch's CPU threads, at most what the machine has; 0 leaves the number to torch.
        workers: Processes that read pictures, at most as many as the machine has CPUs; 0 reads them in this one.
        save_every: Steps between saved states.
        install: Put the result where `lssgen-export` finds it for this VAE, if it does better than no upsampler.
        install_anyway: Install it even where its validation says that bicubic or the way through pixels does better.
        licence, trained_on: Lines of lssgen.json, in the user's words; `trained_on` may be empty.
    """

    vae: str = choice(help="folder or hub id of a VAE, or of a pipeline with one, or a TAESD file", group=_DATA)
    space: Space = choice(
        "auto", help="whose latents the VAE makes, where it does not say: those of a model, or its own", group=_DATA
    )
    images: Path = choice(help="folder of training pictures, searched with subfolders", metavar="DIR", group=_DATA)
    validation: str = choice(
        "", help="folder of validation pictures", metavar="DIR", group=_DATA, unset="some pictures are held out"
    )
    output: Path = choice(Path("upsampler"), help="state, cache, checkpoint and report", metavar="DIR", group=_PLACE)
    config: TrainConfig = field(default_factory=TrainConfig)
    shape: str = choice(
        "",
        help="an upsampler's config.json, to train another shape",
        metavar="FILE",
        group=_LEARNING,
        unset="the shape of this package's own",
    )
    start_from: str = choice(
        "", help="folder of an upsampler to go on from", metavar="DIR", group=_LEARNING, unset="random weights"
    )
    device: str = choice("auto", help="cpu, cuda, cuda:1, ... or auto", group=_PLACE)
    threads: int = choice(0, help="CPU threads; 0 leaves it to torch", group=_PLACE)
    workers: int = choice(0, help="processes that read pictures; 0 reads them in this one", group=_DATA)
    save_every: int = choice(500, help="steps between saved states", group=_PLACE)
    install: bool = choice(True, help="put the result where lssgen-export finds it for this VAE", group=_PLACE)
    install_anyway: bool = choice(
        False, help="install it even where bicubic or the way through pixels does better", group=_PLACE
    )
    licence: str = choice("not stated", help="licence of the result, for lssgen.json", group=_PLACE)
    trained_on: str = choice("", help="what the pictures are, for lssgen.json", group=_PLACE, unset="not stated")

    def __post_init__(self) -> None:
        counts = Limits(most=1_000_000_000)
        check_choices(self, {"threads": counts, "workers": counts, "save_every": Limits(least=1, most=counts.most)})
        if self.install_anyway and not self.install:
            raise TrainingError("install_anyway has nothing to do where install is False; leave one of them out")
