"""What a user may choose about an export, and which sizes fit a model. No torch in here, so that the command can
explain itself at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lssgen.choices import choice, refuse_outside
from lssgen.errors import ExportError
from lssgen.lora.asked import Lora
from lssgen.manifest import Precision, SlotLayers
from lssgen.plan.facts import ModelFacts, ScalingSpace
from lssgen.plan.geometry import nearest_sizes
from lssgen.plan.options import MOST_SIDE_PX, PlanOptions
from lssgen.plan.planner import make_plan
from lssgen.plan.scheduler_choice import SchedulerChoice, SigmaSchedule, TimestepSpacing

Probing = Literal["auto", "stages", "small", "none"]
"""Choice of sizes at which graphs are compared with torch: at every stage's size, at one small size, nowhere; "auto" is
"stages" for networks of which a CPU computes a step in seconds, and "small" for larger ones."""

PredictionType = Literal["epsilon", "v_prediction"]
"""Kind of prediction of a diffusion network: the noise, or the velocity (v)."""

LORA_RANK = 16
"""Rank of a slot, unless another one is asked for."""

Resolution = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """An embedding (textual inversion) as the user asks for it.

    Attributes:
        path: A safetensors file in the form of A1111 or diffusers, a folder with one, or its place on the hub.
        words: Names for its vectors in a prompt: one for all of them, or one for each; empty: the file's own.
    """

    path: Path
    words: tuple[str, ...] = ()

    @classmethod
    def from_text(cls, text: str) -> "Embedding":
        """Path and words of "cat.safetensors:<cat>" or "two.safetensors:<s0>,<s1>"."""
        path, colon, words = text.rpartition(":")
        # A path that exists is meant as it is: a colon may be part of it, as after a drive's letter.
        if not colon or Path(text).exists():
            return cls(Path(text))
        return cls(Path(path), tuple(words.split(",")))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to make a bundle of, and how.

    Attributes:
        model: An alias, a hub id, a folder in the diffusers layout, or a safetensors file in the original one.
        output: Folder of the bundle.
        revision: Branch, tag or commit on the hub; None: its default branch.
        base: Checkpoint that gives a file what it lacks; None: the published one that it descends from.
        vae: Autoencoder in the place of the checkpoint's own: a folder, a file or a hub id; None: its own.
        controlnet: ControlNet beside the network: a folder in diffusers' layout or a hub id; None: none.
        prediction_type: Kind of prediction of a diffusion network, whatever its files say; None: the one they say.
        scheduler, timestep_spacing, sigma_schedule: Way in which the bundle samples where a run says nothing; graphs
            do not depend on it. None and "own": the checkpoint's.
        resolutions: Stage sizes in pixels. Empty: the stages of the model's default picture.
        references: Usual sizes in pixels of a run's reference pictures, for models that edit. Empty: the graphs see
            none.
        precision: Number format of the networks; the state between them is always float32.
        upsampler: Folder of a latent upsampler; None: one that belongs to the checkpoint, is
            installed for its VAE, or is this package's own for its latent space.
        convert_latents: Take latents to the normalisation that the upsampler was trained with, and back: for a model
            whose VAE is that of another model with other means and deviations (Playground, of SDXL). LSSGen, as
            published, does not.
        transitions: Ways from stage to stage, "resnet" only where there is an upsampler. Those through pixels hold the
            autoencoder once more each.
        sr: Super-resolution network, an ONNX file that doubles pictures; with it the bundle has the transition "sr".
        skip_layers: Give the step graph gates for skip-layer guidance.
        layers_to_skip: Layers that this guidance leaves out; empty: those that the model's authors do.
        t5: Keep the T5 encoder, where the family can do without.
        text_encoder: Keep what encodes prompts; without it, every run is given their embeddings.
        clip_skip: Layers that CLIP leaves out at its end (SD, SDXL), as diffusers counts them; negative prompts are
            read by the same layers.
        max_sequence_length: Tokens of the long text encoder; None: the model's own.
        loras: Merged into the weights, in order.
        lora_slots: LoRAs that runs may use together, put in and taken out without another export; 0: none can be.
        lora_rank: Rank that each of these may have; one of twice the rank takes two slots.
        lora_layers: Layers that they may change, "linear": matrix products and convolutions of one pixel, or "all":
            convolutions of more pixels too (LoCon).
        embeddings: Words that the text encoders learn.
        probe: Choice of sizes at which graphs are compared with torch.
        threads: CPU threads for the probes, at most as many as the machine has; 0 leaves it to ONNX Runtime and torch.
    """

    model: str = choice(
        help="alias (see --list-models), hub id (owner/name, or owner/name/file.safetensors), diffusers folder or "
        "safetensors file"
    )
    output: Path = choice(help="bundle folder", metavar="DIR", unset="bundles/<model>, or bundles/<model>-<ControlNet>")
    revision: str | None = choice(None, help="branch, tag or commit on the hub", unset="its default branch")
    base: str | None = choice(
        None,
        help="alias, hub id or folder that gives a safetensors file what it lacks: settings, tokenizers, encoders",
        metavar="MODEL",
        unset="the published checkpoint that it descends from",
    )
    vae: str | None = choice(
        None,
        help="autoencoder to use in the place of the checkpoint's own: folder, safetensors file or hub id",
        metavar="VAE",
        unset="the checkpoint's own",
    )
    controlnet: str | None = choice(
        None,
        help="ControlNet to put beside the network, for pictures that steer it: folder or hub id",
        metavar="CONTROLNET",
        unset="none",
    )
    prediction_type: PredictionType | None = choice(
        None,
        help="what a diffusion network predicts (SD, SDXL), whatever its files say",
        unset="what the files say; where they do not, a note says what is assumed",
    )
    scheduler: SchedulerChoice | None = choice(
        None,
        help="what to sample with where a run says nothing: a diffusers scheduler's folder or file, or a name such as "
        "euler, unipc or dpm++2m-karras",
        metavar="FOLDER|FILE|NAME",
        unset="the checkpoint's",
    )
    timestep_spacing: TimestepSpacing = choice(
        "own", help="how timesteps are picked where a run says nothing; models made for few steps want trailing"
    )
    sigma_schedule: SigmaSchedule = choice("own", help="how noise levels are spread where a run says nothing")
    resolutions: tuple[Resolution, ...] = choice(
        (),
        help="stage sizes in pixels: 512,1024 or 512x768",
        unset="the stages of the model's usual picture",
        least=1,
        most=MOST_SIDE_PX,
    )
    references: tuple[Resolution, ...] = choice(
        (),
        help="let runs show the model reference pictures (FLUX.2), usually of these sizes in pixels: 1024 or "
        "1024,512x768 for two; others work, too, but compiled engines are for these",
        unset="none; the step's graph has no inputs for them",
        least=1,
        most=MOST_SIDE_PX,
    )
    precision: Precision = choice("fp32", help="what the networks compute in")
    upsampler: Path | None = choice(
        None,
        help="latent upsampler",
        metavar="DIR",
        unset="the checkpoint's own, one installed for its VAE, or this package's",
    )
    convert_latents: bool = choice(
        False,
        help="take latents to the normalisation that the upsampler was trained with, and back: for a model that has "
        "the VAE of another one, normalised otherwise (Playground with an SDXL upsampler)",
    )
    transitions: tuple[ScalingSpace, ...] = choice(
        ("resnet", "latent", "pixel", "dct"),
        help="ways from stage to stage that the bundle can go, of resnet, latent, pixel, dct and selflift",
        metavar="NAME,...",
    )
    sr: Path | None = choice(
        None,
        help="super-resolution network for transitions by it: ONNX, (batch, 3, height, width) in 0 to 1, of which it "
        "makes twice the size",
        metavar="FILE",
        unset="none; no such transitions",
    )
    skip_layers: bool = False
    layers_to_skip: tuple[int, ...] = ()
    t5: bool = choice(True, help="keep the T5 encoder, where the family can do without (SD3)")
    text_encoder: bool = choice(
        True, help="keep what encodes prompts; a bundle without it is given their embeddings, see lssgen encode"
    )
    clip_skip: int = choice(
        0,
        help="layers that CLIP leaves out at its end (SD, SDXL), counted as in diffusers: what other programs call "
        "clip skip 2 is 1 here",
        metavar="N",
        least=0,
        most=100,
    )
    max_sequence_length: int | None = choice(
        None, help="tokens of the long text encoder", unset="the model's own", least=0, most=1_000_000
    )
    loras: tuple[Lora, ...] = choice(
        (),
        name="--lora",
        help="merge a LoRA in, with a strength: a file, a folder or a hub id (owner/name, owner/name/file.safetensors, "
        "with @revision); may be repeated",
        metavar="PATH[:SCALE]",
        unset="none; a scale of 1",
        repeated=True,
    )
    lora_slots: int = choice(
        0,
        help="LoRAs that runs may use together, chosen when they run (lssgen run --lora); 0 is none, and no cost",
        metavar="N",
        least=0,
        most=64,
    )
    lora_rank: int = choice(
        LORA_RANK,
        help="rank that each of these may have; one of twice the rank takes two slots",
        metavar="R",
        least=1,
        most=1024,
    )
    lora_layers: SlotLayers = choice(
        "linear",
        help="layers that these may change: linear (matrix products and convolutions of one pixel) or all "
        "(convolutions of more too, LoCon)",
    )
    embeddings: tuple[Embedding, ...] = choice(
        (),
        name="--embedding",
        help="teach the text encoders a word (textual inversion): a file, a folder or a hub id, and what to call it in "
        "a prompt; may be repeated",
        metavar="PATH[:WORD]",
        unset="none; the file's own word, or its name",
        repeated=True,
    )
    probe: Probing = choice(
        "auto", help="sizes at which graphs are compared with torch; auto: every stage's, or small for large networks"
    )
    threads: int = choice(
        0, help="CPU threads for the probes, at most the machine's; 0 takes all", least=0, most=1_000_000
    )

    def __post_init__(self) -> None:
        refuse_outside(self, ExportError)
        if not self.text_encoder and self.embeddings:
            raise ExportError("an embedding teaches the text encoder a word, and --no-text-encoder leaves it out")
        if "sr" in self.transitions and self.sr is None:
            raise ExportError("transitions by super-resolution need the network: give its ONNX file with --sr")
        if not self.lora_slots and (self.lora_rank, self.lora_layers) != (LORA_RANK, "linear"):
            raise ExportError("--lora-rank and --lora-layers say what slots are like: ask for some, --lora-slots N")

    @property
    def spaces(self) -> tuple[ScalingSpace, ...]:
        """Ways from stage to stage that are asked for, each once."""
        return tuple(dict.fromkeys((*self.transitions, *(("sr",) if self.sr is not None else ()))))


def default_resolutions(facts: ModelFacts) -> tuple[Resolution, ...]:
    """The stages of the model's default picture.

    Raises:
        PlanError: The checkpoint's scheduler cannot be planned with.
    """
    defaults = facts.defaults
    # A model of small pictures may have a usual size below its family's min_resolution: it then has one stage.
    smallest = min(defaults.min_resolution, defaults.height, defaults.width)
    plan = make_plan(facts, PlanOptions.from_defaults(defaults, min_resolution=smallest))
    return tuple((stage.height * facts.cell_px, stage.width * facts.cell_px) for stage in plan.stages)


def checked_resolutions(resolutions: tuple[Resolution, ...], facts: ModelFacts) -> tuple[Resolution, ...]:
    """The resolutions, smallest first, each once.

    Raises:
        ExportError: A side does not divide, or is longer than the network's position table.
    """
    unit, longest = facts.cell_px * facts.align, facts.longest_side * facts.cell_px or MOST_SIDE_PX

    def fits(size: Resolution) -> bool:
        return all(unit <= side <= longest and side % unit == 0 for side in size)

    for height, width in resolutions:
        if not fits((height, width)):
            limit = f", and at most {longest} px" * bool(facts.longest_side)
            near = nearest_sizes((height, width), fits, unit, longest)
            raise ExportError(
                f"{facts.name} takes sides that are multiples of {unit} px{limit}; {width} x {height} is not such a "
                f"size: use {' or '.join(f'{wide} x {high}' for high, wide in near)}"
            )
    # By area, so that "smallest first" means the same for a tall and a wide size.
    return tuple(sorted(set(resolutions), key=lambda size: (size[0] * size[1], size)))
