"""What a single file says about itself beside its weights: what its network predicts, and on which noise it trained.

Nothing of this is in the layout that the original code gave such files; trainers and programs have agreed on marks:
keys whose presence means something (`v_pred`, `ztsnr`, `edm_...`: ComfyUI, stable-diffusion-webui), header fields
that Stability AI proposed (`modelspec.*`), and those of kohya's trainer (`ss_*`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lssgen.errors import ModelError
from lssgen.export.config import PredictionType
from lssgen.export.stored import Stored
from lssgen.plan.schedulers import SCHEDULERS, ZERO_SNR

WORDS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "v_pred": "v_prediction",
    "vpred": "v_prediction",
    "velocity": "v_prediction",
}
"""Names that writers of headers have for the two things that a diffusion network may predict."""

NOTHING = ("", "none", "null", "unknown")
"""Values of a field by which writers say nothing."""

OTHERS: Mapping[str, str] = {
    "lora": "a LoRA: give the checkpoint as --model, and this with --lora",
    "textual-inversion": "an embedding: give the checkpoint as --model, and this with --embedding",
    "vae": "a VAE: give the checkpoint as --model, and this with --vae",
    "controlnet": "a ControlNet, which no bundle has a place for",
    "inpainting": "made for inpainting: choose the text-to-image checkpoint",
    "refiner": "a refiner: choose the base checkpoint",
    "edit": "made for editing pictures: choose the text-to-image checkpoint",
    "unclip": "made for variations of pictures: choose the text-to-image checkpoint",
}
"""Other ends of `modelspec.architecture`, and what to do about them."""

ARCHITECTURES: Mapping[str, PredictionType] = {"v2-768-v": "v_prediction", "v2-512": "epsilon"}
"""Parts of `modelspec.architecture` that tell the two kinds of Stable Diffusion 2 apart."""

WHOLE_RANGE = re.compile(r"\s*0+\s*[,-]\s*(999|1000)\s*")

SD2_NORM = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_SPREAD = 0.09
"""Deviation of that tensor above which ComfyUI takes a Stable Diffusion 2 to predict velocity; it knows no better."""

CLEAN = 1e-6
"""Share of the picture at the noisiest level, squared, below which a schedule ends in nothing but noise."""


class Header(Protocol):
    """What is looked at of a file."""

    @property
    def path(self) -> Path: ...
    @property
    def stored(self) -> Mapping[str, Stored]: ...
    @property
    def said(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a file says, and what was made of its silence.

    Attributes:
        scheduler, vae: Changes to the configurations that the base has.
        size_px: Side of the pictures that it was trained on; 0: not said.
        keys: Names of the tensors that said it, and are not weights.
        notes: Sentences that the user should read.
    """

    scheduler: Mapping[str, object] = field(default_factory=dict[str, object])
    vae: Mapping[str, object] = field(default_factory=dict[str, object])
    size_px: int = 0
    keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def see_kind(file: Header) -> None:
    """See that a header does not announce something that no bundle can be made of.

    Raises:
        ModelError: Says what it announces, and what to do.
    """
    architecture = _field(file, "modelspec.architecture")
    for end, what in OTHERS.items():
        # As in "stable-diffusion-xl-v1-base/lora": whole words, or "vae" would be found in names.
        if re.search(rf"[/_-]{end}(-|$)|^{end}$", architecture):
            raise ModelError(f"the header of {file.path} calls it {architecture!r}, {what}")
    steps = _field(file, "modelspec.timestep_range")
    if steps and not WHOLE_RANGE.fullmatch(steps):
        raise ModelError(
            f"the header of {file.path} says that it was trained for the timesteps {steps} alone "
            "(modelspec.timestep_range), and a plan here takes one network from noise to picture"
        )


def read_said(file: Header, *, sd2: bool, base: Mapping[str, object], asked: PredictionType | None) -> Said:
    """What a file of the UNet families says.

    Args:
        file: Its header.
        sd2: Whether it is a Stable Diffusion 2, of which some predict velocity and some do not.
        base: scheduler_config.json of the base.
        asked: What the user says that it predicts; then the file is not listened to about that.

    Raises:
        ModelError: It says two things, or something that no plan reproduces.
    """
    marks = _marks(file, base)
    prediction, why = (asked, "as --prediction-type says") if asked else _prediction(file, marks, sd2, base)
    notes = [f"{file.path.name} predicts {_spoken(prediction)}, {why}."] if why else []
    scheduler: dict[str, object] = {"prediction_type": prediction}
    if _zero_snr(file):
        scheduler |= {ZERO_SNR: True, "timestep_spacing": "trailing"}
        walked, own = "", str(base.get("_class_name"))
        if own in SCHEDULERS and ZERO_SNR not in SCHEDULERS[own].fields:
            # The class of the paper (Lin et al., arXiv 2305.08891); all that a base says of its betas stays.
            scheduler = {**base, **scheduler, "_class_name": "DDIMScheduler", "clip_sample": False}
            walked = f", and they are walked by DDIMScheduler, since {own} cannot begin in nothing but noise"
        notes.append(
            f"{file.path.name} was trained until nothing but noise is left (zero terminal SNR), so its timesteps are "
            f"spaced from the last one (trailing){walked}."
        )
    if re.search(r"turbo|lightning|lcm|hyper|dmd2?\b", file.path.stem, re.IGNORECASE):
        notes.append(
            f"The name of {file.path.name} speaks of few steps, of which nothing in a file tells; if it was distilled "
            "for them, run it with few steps, little or no guidance, and the scheduler or timestep spacing that its "
            "authors name (trailing, most often)."
        )
    size = _size(file) or (512 if sd2 and prediction == "epsilon" else 768 if sd2 else 0)
    layers = _field(file, "modelspec.encoder_layer") or _field(file, "ss_clip_skip")
    # Trainers count from the last layer, which is 1, and write "None" where nothing was asked for.
    if layers.isdecimal() and int(layers) > 1:
        skip = int(layers) - 1
        notes.append(
            f"The header of {file.path.name} asks for a clip skip of {layers}, counted from 1 for none; "
            f"--clip-skip {skip} does that."
        )
    return Said(
        scheduler={**scheduler, **marks.scheduler},
        vae=marks.vae,
        size_px=size,
        keys=marks.keys,
        notes=(*notes, *marks.notes, *_schedule_note(file, base)),
    )


def _marks(file: Header, base: Mapping[str, object]) -> Said:
    """What the keys mean whose presence means something."""
    keys = tuple(key for key in ("v_pred", "ztsnr", "edm_mean", "edm_std", *EDM) if key in file.stored)
    if "edm_mean" in keys and "edm_std" in keys:
        if not str(base.get("_class_name")).startswith("EDM"):
            raise ModelError(
                f"{file.path} was trained as Playground v2.5 was (its keys edm_mean and edm_std), and its base has the "
                "schedule of another model; name one that has it: --base playground"
            )
        # Playground's latents are normalised by channel, with numbers that such files bring along.
        means = {f"latents_{name}": _numbers(file, f"edm_{name}") for name in ("mean", "std")}
        return Said(vae=means, keys=keys)
    lone = [key for key in ("edm_mean", "edm_std") if key in keys]
    keys = tuple(key for key in keys if key not in lone)  # one without the other means nothing, and is left over
    if EDM[0] in keys:
        levels = {key.partition(".")[2]: _numbers(file, key)[0] for key in EDM if key in keys}
        scheduler = {
            "_class_name": "EDMEulerScheduler",
            # ComfyUI's value where a file names the largest level alone.
            "sigma_min": 0.002,
            **levels,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
        }
        note = f"{file.path.name} predicts velocity on a continuous schedule (its key {EDM[0]}), as CosXL does."
        return Said(scheduler=scheduler, keys=keys, notes=(note,))
    return Said(keys=tuple(key for key in keys if key not in EDM))


EDM = ("edm_vpred.sigma_max", "edm_vpred.sigma_min")


def _prediction(file: Header, marks: Said, sd2: bool, base: Mapping[str, object]) -> tuple[PredictionType, str]:
    """What the network predicts, and how that is known; nothing where `marks` have told.

    Raises:
        ModelError: Two marks contradict each other, or a word means neither.
    """
    if EDM[0] in marks.keys:
        return "v_prediction", ""
    said = _statements(file)
    if len(set(said.values())) > 1:
        both = " and ".join(f"{source} says {what}" for source, what in said.items())
        raise ModelError(f"{file.path} contradicts itself: {both}; say which is true with --prediction-type")
    if said:
        source, prediction = next(iter(said.items()))
        return prediction, f"as {source} says"
    norm = next((key for key in file.stored if key.endswith(SD2_NORM)), None)
    if sd2 and norm is not None:
        # ComfyUI's torch.std(..., unbiased=False); the threshold is of that.
        spread = float(_tensor(file, norm).std(correction=0))
        prediction = "v_prediction" if spread > SD2_SPREAD else "epsilon"
        other = "epsilon" if prediction == "v_prediction" else "v_prediction"
        return prediction, (
            f"to judge by one of its tensors ({norm} has a deviation of {spread:.3f}, and those above {SD2_SPREAD} do "
            f"so for velocity); nothing in the file says it, and --prediction-type {other} changes it"
        )
    assumed: PredictionType = "v_prediction" if base.get("prediction_type") == "v_prediction" else "epsilon"
    hint = " (its name speaks of v-prediction)" if re.search(r"v[-_ ]?pred", file.path.stem, re.IGNORECASE) else ""
    other = "epsilon" if assumed == "v_prediction" else "v_prediction"
    return assumed, f"it is assumed, since nothing in the file says it{hint}; --prediction-type {other} changes that"


def _statements(file: Header) -> dict[str, PredictionType]:
    """What the file says that its network predicts, by where it says so.

    Raises:
        ModelError: A word means neither.
    """
    said: dict[str, PredictionType] = {"its key v_pred": "v_prediction"} if "v_pred" in file.stored else {}
    for name in ("modelspec.prediction_type", "modelspec.predict_key"):
        word = _field(file, name)
        if word and word not in WORDS:
            raise ModelError(
                f"{file.path} predicts {word!r} ({name} in its header), which no plan reproduces; if that is wrong, "
                "say what it predicts with --prediction-type"
            )
        if word:
            said[f"{name} in its header"] = WORDS[word]
    if trained := _field(file, "ss_v_parameterization"):
        said["ss_v_parameterization in its header"] = "v_prediction" if trained == "true" else "epsilon"
    beside = file.path.with_suffix(".yaml")
    if beside.is_file():  # the original code's settings, in which noise is what is not said otherwise
        word = re.search(r"^\s*parameterization:\s*[\"']?(\w+)", beside.read_text(errors="replace"), re.MULTILINE)
        said[f"{beside.name} beside it"] = WORDS.get(word[1].lower(), "epsilon") if word else "epsilon"
    for part, prediction in ARCHITECTURES.items():
        if part in _field(file, "modelspec.architecture"):
            said["modelspec.architecture in its header"] = prediction
    return said


def _zero_snr(file: Header) -> bool:
    """Whether it was trained on a schedule that ends in nothing but noise."""
    if "ztsnr" in file.stored or _field(file, "ss_zero_terminal_snr") == "true":
        return True
    levels = _levels(file)
    return levels is not None and float(levels[-1]) < CLEAN


def _schedule_note(file: Header, base: Mapping[str, object]) -> tuple[str, ...]:
    """A sentence, where the file brings levels of noise that are not the base's."""
    levels = _levels(file)
    if levels is None or _zero_snr(file) or base.get("beta_schedule") != "scaled_linear":
        return ()
    start, end = (float(str(base.get(name))) for name in ("beta_start", "beta_end"))
    betas = torch.linspace(start**0.5, end**0.5, len(levels), dtype=torch.float64) ** 2
    if torch.allclose((1 - betas).cumprod(0), levels.double(), rtol=0.01, atol=2e-3):
        return ()
    return (
        f"{file.path.name} brings levels of noise (alphas_cumprod) that are not those of its base; they are left out, "
        "as other programs do. If pictures come out grey or burnt, it was trained on another schedule.",
    )


def _levels(file: Header) -> Tensor | None:
    """The table of noise levels that the original code saved."""
    stored = file.stored.get("alphas_cumprod")
    return _tensor(file, "alphas_cumprod").float() if stored is not None and stored.shape == (1000,) else None


def _size(file: Header) -> int:
    """Side of the square pictures that the header speaks of."""
    for name in ("modelspec.resolution", "ss_resolution"):
        sides = {int(side) for side in re.findall(r"\d+", _field(file, name))}
        # Headers hold "1024x1024" and "(512, 768)", and whatever trainers were told: only a plausible square is
        # believed.
        if len(sides) == 1 and 128 <= (side := sides.pop()) <= 2048 and side % 64 == 0:
            return side
    return 0


def _field(file: Header, name: str) -> str:
    """A field of the header in small letters; empty where it says nothing."""
    value = file.said.get(name, "").strip().lower()
    return "" if value in NOTHING else value


def _numbers(file: Header, key: str) -> list[float]:
    return [float(number) for number in _tensor(file, key).flatten()]


def _tensor(file: Header, key: str) -> Tensor:
    """A small tensor.

    Raises:
        ModelError: It is empty, or holds NaN.
    """
    tensor = file.stored[key].read().float()
    if not tensor.numel() or not torch.isfinite(tensor).all():
        raise ModelError(f"{key} in {file.path} is empty or holds NaN; fetch the file again")
    return tensor


def _spoken(prediction: PredictionType) -> str:
    return "velocity (v)" if prediction == "v_prediction" else "noise (epsilon)"
