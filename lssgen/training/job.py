"""A whole training: pictures and a VAE in, a checkpoint with its report out, installed where export finds it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from tqdm import tqdm

from lssgen.errors import TrainingError
from lssgen.models.nets.installed import installed_upsampler
from lssgen.models.nets.latent_upsampler import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LatentUpSampler,
    UpSamplerConfig,
    published_config,
    read_config,
)
from lssgen.training.autoencoder import Autoencoder, load_autoencoder
from lssgen.training.config import TrainJob
from lssgen.training.latents import CachedPairs, EncodeJob, FreshPairs, Pairs, encode_pairs
from lssgen.training.pictures import CentreCrops, RandomCrops, find_pictures, shuffled
from lssgen.training.report import REPORT_JSON, REPORT_MD, SHEET_PNG, UPSAMPLER, Validation, validate, write_report
from lssgen.training.trainer import Trainer

CARD_FILE = "lssgen.json"
HELD_OUT_AT_MOST = 32
HELD_OUT_SHARE = 5
"""Without a folder of validation pictures, one in five is held out, up to the number above."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where the checkpoint lies (installed, if it was), and its validation."""

    folder: Path
    validation: Validation


def train_upsampler(job: TrainJob, say: Callable[[str], None]) -> TrainResult:
    """Train, or go on where an earlier call with this output folder stopped, then validate, write and install.

    Args:
        say: Is given what the user should know, a sentence at a time.

    Raises:
        TrainingError: Pictures, options or the saved state cannot be used; or the loss stopped being finite.
        ModelError: The VAE or the upsampler to start from cannot be used.
        KeyboardInterrupt: Told to stop; the state is saved.
    """
    config = job.config
    if not config.steps and not job.start_from:
        raise TrainingError(
            "0 steps train nothing; give --start-from FOLDER to measure that upsampler, or more --steps"
        )
    if job.threads:
        torch.set_num_threads(job.threads)
    device = _device(job.device)
    training, held_out = _pictures(job, say)
    autoencoder = load_autoencoder(job.vae, device)
    config.pairs.check(autoencoder.cell_px)
    say(f"VAE {autoencoder.name}: {autoencoder.channels} channels, cells of {autoencoder.cell_px} px, on {device}")
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to {job.output}: {error}; give another --output") from error
    trainer = Trainer(_first_model(job, autoencoder), autoencoder, config, device, job.output)
    if trainer.resume():
        say(f"going on after step {trainer.step} of {config.steps}")
    if trainer.step < config.steps:
        pairs = _pairs(job, training, autoencoder, device)
        _run(trainer, pairs, job)
    trainer.average.save_pretrained(job.output)
    validation = validate(
        trainer.average, autoencoder, CentreCrops(held_out, config.pairs), device, min(config.batch, 8)
    )
    trained_on = job.trained_on or f"{len(training)} pictures from {job.images.resolve().name}"
    write_report(job.output, validation, _conditions(job, autoencoder, trained_on, device))
    _write_card(job, autoencoder, trained_on, validation)
    folder = _install(job.output, autoencoder) if job.install else job.output
    return TrainResult(folder, validation)


def _run(trainer: Trainer, pairs: Pairs, job: TrainJob) -> None:
    shown: dict[str, str] = {}
    with tqdm(total=job.config.steps, initial=trainer.step, desc="training", unit=" steps", disable=None) as bar:
        for progress in trainer.run(pairs, save_every=job.save_every):
            shown = {"latent": f"{progress.latent:.4f}", "image": f"{progress.image:.4f}"}
            bar.set_postfix(shown, refresh=False)
            bar.update()


def _pictures(job: TrainJob, say: Callable[[str], None]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Training and validation pictures."""
    found = find_pictures(job.images, job.config.pairs)
    say(found.note)
    if job.validation:
        validation = find_pictures(Path(job.validation), job.config.pairs)
        say(f"validation: {validation.note}")
        return found.paths, validation.paths
    count = len(found.paths)
    if count < 2:
        raise TrainingError(f"{job.images} has one usable picture; training needs another one to validate on")
    held_out = max(1, min(HELD_OUT_AT_MOST, count // HELD_OUT_SHARE))
    order = [found.paths[index] for index in shuffled(count, job.config.seed, 0)]
    say(f"{held_out} of them are held out for validation")
    return tuple(order[held_out:]), tuple(order[:held_out])


def _first_model(job: TrainJob, autoencoder: Autoencoder) -> LatentUpSampler:
    if job.start_from:
        model = LatentUpSampler.from_pretrained(job.start_from)
    else:
        shape = _shape(job, autoencoder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.config.seed)
            model = LatentUpSampler(shape)
    model.check_fits(autoencoder.channels, model=autoencoder.name)
    return model


def _shape(job: TrainJob, autoencoder: Autoencoder) -> UpSamplerConfig:
    if not job.shape:
        return published_config(autoencoder.channels)
    channels = autoencoder.channels
    return replace(read_config(Path(job.shape)), in_channels=channels, out_channels=channels)


def _pairs(job: TrainJob, paths: tuple[Path, ...], autoencoder: Autoencoder, device: torch.device) -> Pairs:
    config = job.config
    crops = RandomCrops(paths, config.pairs, config.seed)
    if not config.cached_pairs:
        return FreshPairs(
            crops=crops,
            autoencoder=autoencoder,
            device=device,
            workers=job.workers,
            with_pictures=config.looks_at_pictures,
        )
    needed = config.steps * config.batch * config.accumulate
    encode = EncodeJob(
        crops=crops,
        total=min(config.cached_pairs, needed),
        autoencoder=autoencoder,
        device=device,
        folder=job.output / "cache",
        workers=job.workers,
        with_pictures=config.looks_at_pictures,
    )
    return CachedPairs(pairs=encode_pairs(encode), seed=config.seed, device=device)


def _conditions(
    job: TrainJob, autoencoder: Autoencoder, trained_on: str, device: torch.device
) -> dict[str, str | int | float | bool]:
    flat = asdict(job.config)
    pairs = cast(dict[str, Any], flat.pop("pairs"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "vae": autoencoder.name,
        "vae sha256": autoencoder.sha256,
        "trained on": trained_on,
        "validated on": job.validation or "pictures held out of the same folder",
        **pairs,
        **flat,
        "device": name,
        "torch": torch.__version__,
    }


def _write_card(job: TrainJob, autoencoder: Autoencoder, trained_on: str, validation: Validation) -> None:
    """Write lssgen.json: which latent space the upsampler lives in, and what is known about it."""
    vae_config: Any = cast(Any, autoencoder.vae).config
    history: dict[str, Any] = {"licence": job.licence, "trained_on": trained_on, "steps": job.config.steps}
    if not job.config.steps:  # measured, not trained: what was known stays true
        known = _card(Path(job.start_from))
        history |= {key: known[key] for key in history if key in known}
    card = {
        "vae": autoencoder.name,
        "vae_sha256": autoencoder.sha256,
        "scaling_factor": vae_config.get("scaling_factor"),
        "shift_factor": vae_config.get("shift_factor"),
        "latents_mean": vae_config.get("latents_mean"),
        "latents_std": vae_config.get("latents_std"),
        **history,
        "metrics": asdict(validation.row(UPSAMPLER)),
    }
    (job.output / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n")


def _card(folder: Path) -> dict[str, Any]:
    """What lssgen.json of an upsampler says; nothing where there is none that can be read."""
    try:
        card: object = json.loads((folder / CARD_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], card) if isinstance(card, dict) else {}


def _install(output: Path, autoencoder: Autoencoder) -> Path:
    """Copy the checkpoint to its place, so that another process sees the old one or the new one, never a mixture."""
    place = installed_upsampler(autoencoder.sha256)
    fresh, old = place.with_name(f".{place.name}.new"), place.with_name(f".{place.name}.old")
    try:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, REPORT_JSON, REPORT_MD, SHEET_PNG):
            shutil.copy2(output / name, fresh / name)
        if place.exists():
            place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise TrainingError(
            f"trained, but cannot install to {place}: {error}; the checkpoint is in {output}: "
            "give it to lssgen-export with --upsampler, or move LSSGEN_HOME"
        ) from error
    return place


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(f"device {name!r} cannot be used: {error}; give cpu, cuda or auto") from error
    return device
