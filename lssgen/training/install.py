"""Where a trained upsampler goes: its card, whether it is worth having, and the place where exports find it."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lssgen.durable import clear_partial, locked, whole_folder
from lssgen.errors import TrainingError
from lssgen.jsons import JsonError, read_object
from lssgen.models.nets.installed import installed_upsampler
from lssgen.models.nets.upsampler import CONFIG_FILE, WEIGHTS_FILE
from lssgen.models.published import NORMALISATION
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.config import TrainJob
from lssgen.training.report import (
    BICUBIC,
    PIXELS,
    REPORT_JSON,
    REPORT_MD,
    SHEET_PNG,
    UPSAMPLER,
    Row,
    Validation,
    write_json,
)

CARD_FILE = "lssgen.json"


def shortcoming(validation: Validation) -> str:
    """In what an upsampler does worse than no upsampler, with the numbers; empty where it is worth having.

    It is worse than bicubic on the latent, which costs nothing, if it has the larger latent error, or decodes to the
    lower PSNR: a smaller latent error alone may look worse, blurred and with a cast of colour. It is worse than the way
    through pixels, which costs a decode and an encode, if it is so in both.
    """
    ours = validation.row(UPSAMPLER)
    bicubic, pixels = validation.row(BICUBIC), validation.row(PIXELS)
    worse = [row for row, fails in ((bicubic, any), (pixels, all)) if fails(_worse(ours, row))]
    if not worse:
        return ""
    others = " and ".join(f'"{row.method}" ({_numbers(row)})' for row in worse)
    return f"on {validation.pairs} validation pictures it does worse ({_numbers(ours)}) than {others}"


def _worse(ours: Row, other: Row) -> tuple[bool, bool]:
    """Whether the latents are further from the true ones, and whether the pictures are."""
    # Negated, since comparisons with NaN are false.
    return not ours.latent_mse <= other.latent_mse, not ours.psnr_db >= other.psnr_db


def _numbers(row: Row) -> str:
    return f"latent MSE {row.latent_mse:.4g}, PSNR {row.psnr_db:.2f} dB"


def write_card(job: TrainJob, autoencoder: Autoencoder, trained_on: str, validation: Validation) -> None:
    """Write lssgen.json: which latent space the upsampler lives in, and what is known about it."""
    history: dict[str, Any] = {"licence": job.licence, "trained_on": trained_on, "steps": job.config.steps}
    if not job.config.steps:  # measured, not trained: what was known stays true
        known = _card(Path(job.start_from))
        history |= {key: known[key] for key in history if key in known}
    card = {
        "vae": autoencoder.name,
        "vae_sha256": autoencoder.sha256,
        "space": autoencoder.of or None,
        **{name: autoencoder.normalisation.get(name) for name in NORMALISATION},
        **history,
        "metrics": asdict(validation.row(UPSAMPLER)),
    }
    write_json(job.output / CARD_FILE, card)


def _card(folder: Path) -> Mapping[str, Any]:
    """What lssgen.json of an upsampler says; nothing where there is none that can be read."""
    try:
        return read_object(folder / CARD_FILE)
    except JsonError:
        return {}


def install(output: Path, autoencoder: Autoencoder) -> Path:
    """Copy the checkpoint to its place, so that another process sees the old one or the new one, never a mixture.

    Raises:
        TrainingError: It cannot be written there.
    """
    place = installed_upsampler(autoencoder.sha256)
    try:
        with locked(place.with_name(f".{place.name}.lock")):
            clear_partial(place)
            with whole_folder(place) as draft:
                for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE, REPORT_JSON, REPORT_MD, SHEET_PNG):
                    shutil.copy2(output / name, draft / name)
    except OSError as error:
        raise TrainingError(
            f"trained, but cannot install to {place}: {error}; the checkpoint is in {output}: "
            "give it to lssgen-export with --upsampler, or move LSSGEN_HOME"
        ) from error
    return place
