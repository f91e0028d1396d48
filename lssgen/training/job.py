"""A whole training: pictures and a VAE in, a checkpoint with its report out, installed where export finds it."""

import hashlib
import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import filelock
import torch

from lssgen.durable import clear_folder, locked
from lssgen.errors import TrainingError
from lssgen.files import read_regular
from lssgen.machine import at_most_cpus
from lssgen.models.nets.local_upsampler import LocalLatentUpSampler, local_config
from lssgen.models.nets.upsampler import WEIGHTS_FILE
from lssgen.models.nets.upsamplers import AnyUpsampler, load_upsampler, network_of
from lssgen.progress import Say
from lssgen.training.autoencoder import Autoencoder, in_space, load_autoencoder
from lssgen.training.cache import EncodeJob, encode_pairs
from lssgen.training.config import TrainConfig, TrainJob
from lssgen.training.install import install, shortcoming, write_card
from lssgen.training.latents import CachedPairs, FreshPairs, Pairs
from lssgen.training.machine import device_of, told_plainly
from lssgen.training.pictures import CentreCrops, Pictures, RandomCrops, find_pictures, is_decodable, shuffled
from lssgen.training.progress import followed
from lssgen.training.report import Validation, validate, write_report
from lssgen.training.resident import ResidentPairs, read_all
from lssgen.training.stopping import interruptible
from lssgen.training.trainer import Trainer, writing

HELD_OUT_AT_MOST = 32
HELD_OUT_SHARE = 5
"""Without a folder of validation pictures, one in five is held out, up to the number above."""

LARGEST_UPSAMPLER = 2**30
"""Bytes; the published ones have two million."""

NAMED = 5
"""Pictures that are named where some were left out; of more there is only the number."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came out.

    Attributes:
        folder: Folder of the checkpoint: where it is installed, if it is, or else the output folder.
        validation: Its validation.
        refused: Reason why it was not installed although that was asked for, in words; empty where there is none.
    """

    folder: Path
    validation: Validation
    refused: str = ""


def train_upsampler(job: TrainJob, say: Say) -> TrainResult:
    """Train, or go on where an earlier call with this output folder stopped, then validate, write and install.

    An upsampler that does worse than none is not installed, unless `install_anyway` is set; see `TrainResult.refused`.

    Args:
        say: Is given what the user should know, a sentence at a time.

    Raises:
        TrainingError: Pictures, options or the saved state cannot be used; the disk is full; or the loss stopped being
            finite.
        ModelError: The VAE or the upsampler to start from cannot be used.
        KeyboardInterrupt: Told to stop, by Ctrl-C, SIGTERM or SIGHUP; the state is saved.
    """
    config = job.config
    if not config.steps and not job.start_from:
        raise TrainingError(
            "0 steps train nothing; give --start-from FOLDER to measure that upsampler, or more --steps"
        )
    # Outermost: signals and lack of memory come while pictures are looked through and the VAE is loaded, too.
    with interruptible(), told_plainly():
        if job.threads:
            torch.set_num_threads(at_most_cpus(job.threads, "threads", say))
        job = replace(job, workers=at_most_cpus(job.workers, "processes that read pictures", say))
        device = device_of(job.device)
        pictures = _pictures(job, say)
        autoencoder = in_space(load_autoencoder(job.vae, device), job.space, job.vae)
        config.pairs.check(autoencoder.cell_px)
        say(f"VAE {autoencoder.name}: {autoencoder.channels} channels, cells of {autoencoder.cell_px} px, on {device}")
        with _held(job.output):
            made_from = {"pictures": pictures.print, "start_from": _print_of_start(job)}
            trainer = Trainer(_first_model(job, autoencoder), autoencoder, config, device, job.output, made_from)
            try:
                _train(trainer, job, pictures, say)
                return _finish(trainer, job, pictures, say)
            except KeyboardInterrupt:
                so_far = f"step {trainer.saved} of {config.steps} is saved" if trainer.saved else "no step is saved yet"
                say(f"stopped: {so_far}; run the same command again to go on from there")
                raise


def _train(trainer: Trainer, job: TrainJob, pictures: "_Pictures", say: Say) -> None:
    steps = job.config.steps
    if trainer.resume(say):
        say(f"going on after step {trainer.step} of {steps}")
    if trainer.done == 1:
        return
    with writing(job.output):
        pairs = _pairs(job, pictures.training, trainer, say)
    with followed("training: step", total=steps, done=trainer.step, say=say) as tell:
        for progress in trainer.run(pairs, save_every=job.save_every):
            tell(f"latent loss {progress.latent:.4f}, image loss {progress.image:.4f}")


def _finish(trainer: Trainer, job: TrainJob, pictures: "_Pictures", say: Say) -> TrainResult:
    """Validate, write and install what was trained."""
    # Steps look at loss and gradient; an upsampler that is only measured has had none.
    if not all(bool(weights.isfinite().all()) for weights in trainer.average.parameters()):
        raise TrainingError("the weights are no longer finite; try a smaller --learning-rate (in a new --output)")
    config, autoencoder = job.config, trainer.autoencoder
    crops = CentreCrops(pictures.held_out, config.pairs)
    validation = validate(trainer.average, autoencoder, crops, trainer.device, min(config.batch, 8), say)
    trained_on = job.trained_on or f"{len(pictures.training)} pictures from {job.images.resolve().name}"
    conditions = _conditions(trainer, job, trained_on) | {"pictures": pictures.note}
    if trainer.undecodable:
        left_out = sorted(trainer.undecodable)
        named = ", ".join(left_out[:NAMED]) + (f" and {len(left_out) - NAMED} more" if len(left_out) > NAMED else "")
        conditions["left out"] = f"{len(left_out)} that cannot be decoded: {named}"
        say(f"pictures left out: {conditions['left out']}")
    with writing(job.output):
        trainer.average.save_pretrained(job.output)
        write_report(job.output, validation, conditions)
        write_card(job, autoencoder, trained_on, validation)
    worse = shortcoming(validation)
    if not job.install or (worse and not job.install_anyway):
        return TrainResult(job.output, validation, worse if job.install else "")
    return TrainResult(install(job.output, autoencoder), validation)


@contextmanager
def _held(folder: Path) -> Generator[None]:
    """An output folder for one training alone, without what killed ones left there.

    Raises:
        TrainingError: It cannot be written, or another training is writing into it.
    """
    lock = _lock(folder)
    try:
        with writing(folder):
            clear_folder(folder)
        yield
    finally:
        lock.release()


def _lock(folder: Path) -> filelock.BaseFileLock:
    try:
        lock = locked(folder / ".lock", wait=False)
        lock.acquire()
    except filelock.Timeout as error:
        raise TrainingError(
            f"another training is writing into {folder}; wait for it, or give another --output"
        ) from error
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error}; give another --output") from error
    return lock


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Pictures to train on and to validate on, what is to be said of them, and a short name for the former."""

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    note: str
    print: str


def _pictures(job: TrainJob, say: Say) -> _Pictures:
    found = find_pictures(job.images, job.config.pairs)
    say(found.note)
    if job.validation:
        others = find_pictures(Path(job.validation), job.config.pairs)
        say(f"validation: {others.note}")
        held_out = _decodable(others.paths, job, say)
        return _Pictures(found.paths, held_out, found.note, _print_of(found, found.paths))
    count = len(found.paths)
    if count < 2:
        raise TrainingError(f"{job.images} has one usable picture; training needs another one to validate on")
    # By the seed, so that a run that is resumed holds out the same ones.
    order = [found.paths[index] for index in shuffled(count, job.config.seed, 0)]
    held_out = max(1, min(HELD_OUT_AT_MOST, count // HELD_OUT_SHARE))
    say(f"{held_out} of them are held out for validation")
    return _Pictures(
        tuple(order[held_out:]), _decodable(order[:held_out], job, say), found.note, _print_of(found, order[held_out:])
    )


def _decodable(paths: Sequence[Path], job: TrainJob, say: Say) -> tuple[Path, ...]:
    """Validation pictures without those that cannot be decoded.

    Found before hours are spent on a training that could not be validated.

    Raises:
        TrainingError: There is none.
    """
    good = tuple(path for path in paths if is_decodable(path, job.config.pairs))
    if not good:
        raise TrainingError(
            f"none of the {len(paths)} validation pictures can be decoded, {paths[0]} for one; repair or remove them, "
            "or give others with --validation"
        )
    if len(good) < len(paths):
        say(f"{len(paths) - len(good)} validation pictures are left out because they cannot be decoded")
    return good


def _print_of(found: Pictures, paths: Iterable[Path]) -> str:
    """A short name for pictures, which changes with them: their number, and a hash of their names and sizes."""
    # Neither times nor whole paths: a folder that was moved or copied is the same one to a run that goes on.
    names = sorted((path.relative_to(found.folder).as_posix(), path.stat().st_size) for path in paths)
    return f"{len(names)} pictures ({hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]})"


def _print_of_start(job: TrainJob) -> str:
    """A short name for the weights that the job starts from."""
    if not job.start_from:
        return "random weights"
    try:
        weights = read_regular(Path(job.start_from) / WEIGHTS_FILE, LARGEST_UPSAMPLER)
        return f"weights {hashlib.sha256(weights).hexdigest()[:12]}"
    except OSError:
        return "weights that cannot be read"  # which loading them says better


def _first_model(job: TrainJob, autoencoder: Autoencoder) -> AnyUpsampler:
    if job.start_from:
        model = load_upsampler(job.start_from)
    else:
        with torch.random.fork_rng(devices=[]):  # the caller's generator goes on as if nothing had been drawn
            torch.manual_seed(job.config.seed)
            model = _fresh_model(job, autoencoder.channels)
    model.check_fits(autoencoder.channels, model=autoencoder.name)
    return model


def _fresh_model(job: TrainJob, channels: int) -> AnyUpsampler:
    if not job.shape:
        return LocalLatentUpSampler(local_config(channels))
    network = network_of(Path(job.shape))
    shape = network.config_from(Path(job.shape))
    return network(replace(shape, in_channels=channels, out_channels=channels))


def _pairs(job: TrainJob, paths: tuple[Path, ...], trainer: Trainer, say: Say) -> Pairs:
    config, autoencoder, device = job.config, trainer.autoencoder, trainer.device
    if config.resident:
        return _resident_pairs(config, paths, trainer, say)
    crops = RandomCrops(paths, config.pairs, config.seed)
    if not config.cached_pairs:
        return FreshPairs(
            crops=crops,
            autoencoder=autoencoder,
            device=device,
            workers=job.workers,
            with_pictures=config.looks_at_pictures,
        )
    encode = EncodeJob(
        crops=crops,
        total=_in_advance(config),
        autoencoder=autoencoder,
        device=device,
        folder=job.output / "cache",
        workers=job.workers,
        with_pictures=config.looks_at_pictures,
    )
    encoded = encode_pairs(encode, say)
    return CachedPairs(pairs=encoded.pairs, seed=config.seed, device=device, undecodable=encoded.undecodable)


def _in_advance(config: TrainConfig) -> int:
    """Number of pairs that are encoded before the first step; those that no step would see need not be."""
    return min(config.cached_pairs, config.steps * config.batch * config.accumulate)


def _resident_pairs(config: TrainConfig, paths: Sequence[Path], trainer: Trainer, say: Say) -> Pairs:
    resident = read_all(paths, trainer.device, say)
    pairs = ResidentPairs(
        resident=resident,
        recipe=config.pairs,
        seed=config.seed,
        autoencoder=trainer.autoencoder,
        device=trainer.device,
        with_pictures=config.looks_at_pictures,
        bf16=config.bf16,
    )
    if not config.cached_pairs:
        return pairs
    encoded = pairs.in_advance(_in_advance(config), say)
    return CachedPairs(pairs=encoded, seed=config.seed, device=trainer.device, undecodable=resident.undecodable)


def _conditions(trainer: Trainer, job: TrainJob, trained_on: str) -> dict[str, object]:
    flat = asdict(job.config)
    pairs = cast(dict[str, Any], flat.pop("pairs"))
    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "vae": trainer.autoencoder.name,
        "vae sha256": trainer.autoencoder.sha256,
        "trained on": trained_on,
        "validated on": job.validation or "pictures held out of the same folder",
        **pairs,
        **flat,
        "space": trainer.autoencoder.of or "its own",
        "steps made": trainer.step,
        "seconds": round(trainer.seconds),
        "device": name,
        "torch": torch.__version__,
    }
