"""Noise levels from photographs: what every transition gets wrong, and from which level on the noise covers it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle
from lssgen.calibration.spectra import (
    EDGES,
    LEAST_CELLS,
    Floats,
    band_power,
    covering_share,
    deciding_band,
    law,
    mean_of,
    spectral_share,
)
from lssgen.durable import write_whole
from lssgen.errors import CalibrationError
from lssgen.images import PictureError, read_picture, upright_size
from lssgen.jsons import JsonError, decode_json, read_json
from lssgen.plan.facts import ScalingSpace
from lssgen.ports import Array
from lssgen.progress import Say, followed

LEAST_PICTURES = 8
"""Photographs of a fit. One alone says how steep its own spectrum is; eight agree with others to a few hundredths."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Operator = Callable[[Array], Array]
"""Function from a clean latent, (C, h, w), to one of twice the sides."""


class Space(Protocol):
    """An autoencoder, and the ways among its latents."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        ...

    @property
    def identity(self) -> str:
        """Words that change where its numbers would."""
        ...

    @property
    def cell_px(self) -> int: ...

    @property
    def operators(self) -> Mapping[ScalingSpace, Operator]:
        """Every transition's own part, without noise."""
        ...

    def close(self) -> None: ...

    def encode(self, picture: NDArray[np.uint8]) -> Array:
        """(height, width, 3) picture -> (C, h, w) latent in model space."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What was measured of a space.

    Attributes:
        space: Name of the VAE, or of the bundle.
        crop_px: Side of the pictures; the smaller latents are of half of it.
        pictures: Number of photographs.
        quality: Share of a band's power that may be wrong where a stage starts.
        edges: (bands + 1,) ends of the bands, cycles per latent cell.
        power: (bands,) mean square of a coefficient of the whole latents.
        error: The same of every transition's difference from them.
        law: (a, b) of P(f) = a f^-b.
        spectral: Noise share at which SPEED would start, by the law alone and the same quality.
        covering: Lowest noise share that covers each transition's error.
    """

    space: str
    crop_px: int
    pictures: int
    quality: float
    edges: tuple[float, ...]
    power: tuple[float, ...]
    error: Mapping[ScalingSpace, tuple[float, ...]]
    law: tuple[float, float]
    spectral: float
    covering: Mapping[ScalingSpace, float]

    def at(self, quality: float) -> "Levels":
        """The same measurement, for another share that may be wrong."""
        power = np.asarray(self.power)
        return replace(
            self,
            quality=quality,
            spectral=spectral_share(*self.law, quality),
            covering={name: covering_share(power, np.asarray(error), quality) for name, error in self.error.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelsJob:
    """What to measure.

    Attributes:
        space: The autoencoder and its transitions.
        images: Folder of photographs, searched with its subfolders.
        crop_px: Side of the square that is cut out of the middle of each.
        most: Largest number of photographs.
        quality: Share of a band's power that may be wrong.
        output: File of the result; what was measured of each photograph lies beside it until the end.
        say: Told how far it is.
    """

    space: Space
    images: Path
    crop_px: int
    most: int
    quality: float
    output: Path
    say: Say


class _Row(msgspec.Struct, frozen=True):
    """One photograph."""

    picture: str
    power: list[float]
    error: dict[ScalingSpace, list[float]] = field(default_factory=dict[ScalingSpace, list[float]])


def measure_levels(job: LevelsJob) -> Levels:
    """Measure photographs, and write the result; a measurement that was killed goes on where it was.

    Raises:
        CalibrationError: Too few photographs are large enough, the crop does not fit, or a latent is not finite.
        OSError: The output cannot be written.
    """
    _see_crop(job)
    paths = _pictures(job)
    rows: list[_Row] = []
    with followed(job.say) as follower:
        for number, row in enumerate(_rows(job, paths), start=1):
            rows.append(row)
            follower.at(number / len(paths), f"photograph {number} of {len(paths)}")
    found = _levels(job, rows)
    write_whole(job.output, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    _log(job).unlink(missing_ok=True)
    return found


def read_levels(path: Path) -> Levels:
    """Read what an earlier measurement wrote.

    Raises:
        CalibrationError: It is not that.
    """
    try:
        found = read_json(path, Levels)
    except JsonError as error:
        raise CalibrationError(f"{path} {error}; give a file that lssgen-calibrate sigma wrote") from error
    if not all(0 <= share < 1 for share in found.covering.values()):
        raise CalibrationError(f"{path} names noise levels outside 0 to 1; measure again with lssgen-calibrate sigma")
    return found


def put_into(bundle: Bundle, levels: Levels) -> Bundle:
    """Write the levels of a bundle's transitions into its manifest.

    Raises:
        CalibrationError: It has none of these transitions.
        OSError: The manifest cannot be written.
    """
    manifest = bundle.manifest
    graphs = {name.removeprefix("transition_") for name in manifest.graphs}
    fitting = {space: round(share, 4) for space, share in levels.covering.items() if space in graphs}
    if not fitting:
        raise CalibrationError(
            f"{bundle.folder} has none of the transitions that were measured ({', '.join(levels.covering)})"
        )
    said = ", ".join(f"{space} {share:.3f}" for space, share in fitting.items())
    note = (
        f"{_NOTE} {said} (quality {levels.quality:g}, {levels.pictures} photographs of {levels.crop_px} px); "
        "--start-sigma auto starts there."
    )
    defaults = replace(manifest.facts.defaults, covering_sigmas={**manifest.facts.defaults.covering_sigmas, **fitting})
    changed = replace(
        manifest,
        facts=replace(manifest.facts, defaults=defaults),
        notes=(*(one for one in manifest.notes if not one.startswith(_NOTE)), note),
    )
    write_whole(bundle.folder / MANIFEST, manifest_json(changed))
    return read_bundle(bundle.folder)


_NOTE = "Lowest noise levels that cover what transitions get wrong:"


def markdown(levels: Levels) -> str:
    """The measurement as a table: the spectrum, and every transition's error as a share of it."""
    names = list(levels.error)
    lines = ["| cycles per cell | power | " + " | ".join(f"{name} error" for name in names) + " |"]
    lines.append("|---" * (2 + len(names)) + "|")
    for band, power in enumerate(levels.power):
        shares = " | ".join(f"{levels.error[name][band] / power:.3f}" for name in names)
        lines.append(f"| {levels.edges[band]:.4f} to {levels.edges[band + 1]:.4f} | {power:.4g} | {shares} |")
    a, b = levels.law
    lines += [
        "",
        f"{levels.space}: P(f) = {a:.4g} f^-{b:.3f}, {levels.pictures} photographs of {levels.crop_px} px.",
        f"Start that covers all but {levels.quality:g} of a band's power: "
        + ", ".join(f"{name} {share:.3f} ({_decided(levels, name)})" for name, share in levels.covering.items())
        + f"; published 0.75; SPEED's by the spectrum alone {levels.spectral:.3f}.",
    ]
    return "\n".join(lines)


def _decided(levels: Levels, space: ScalingSpace) -> str:
    """The frequencies that decide a transition's level."""
    if not levels.covering[space]:
        return "none is needed"
    band = deciding_band(np.asarray(levels.power), np.asarray(levels.error[space]), levels.quality)
    return f"by {levels.edges[band]:.3f} to {levels.edges[band + 1]:.3f}"


def _see_crop(job: LevelsJob) -> None:
    unit = 2 * job.space.cell_px
    least = job.space.cell_px * LEAST_CELLS
    if job.crop_px % unit or job.crop_px < least:
        raise CalibrationError(
            f"a crop of {job.crop_px} px does not do for latent cells of {job.space.cell_px} px: take a multiple of "
            f"{unit}, {least} or more"
        )


def _pictures(job: LevelsJob) -> list[Path]:
    """Photographs that are large enough.

    Raises:
        CalibrationError: There are too few.
    """
    if not job.images.is_dir():
        raise CalibrationError(f"there is no folder {job.images}; give one with photographs")
    found = sorted(path for path in job.images.rglob("*") if path.suffix.lower() in SUFFIXES)
    fitting: list[Path] = []
    for path in found:
        with suppress(PictureError):
            if min(upright_size(path)) >= job.crop_px:
                fitting.append(path)
    if len(fitting) < LEAST_PICTURES:
        raise CalibrationError(
            f"{len(fitting)} of {len(found)} pictures in {job.images} can be read and are {job.crop_px} px or more "
            f"along both sides; a fit takes {LEAST_PICTURES} at least: give more, or a smaller --crop"
        )
    return fitting[: job.most]


def _rows(job: LevelsJob, paths: Sequence[Path]) -> Iterator[_Row]:
    """What is measured of each photograph: read, where it was measured before, else made and remembered."""
    known = _known(job)
    log = _log(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        if not known and not file.tell():
            file.write(json.dumps(_key(job)).encode() + b"\n")
        for path in paths:
            name = str(path.relative_to(job.images))
            row = known.get(name)
            if row is None:
                row = _row(job, path, name)
                file.write(msgspec.json.encode(row) + b"\n")
                file.flush()
            yield row


def _known(job: LevelsJob) -> dict[str, _Row]:
    """Photographs that were measured before a kill; none where anything that decides their numbers has changed."""
    log = _log(job)
    lines = log.read_bytes().splitlines() if log.is_file() else []
    with suppress(JsonError):
        if lines and decode_json(lines[0], str) == _key(job):
            rows: dict[str, _Row] = {}
            for line in lines[1:]:
                with suppress(JsonError):  # the last line of a killed run may be half of one
                    row = decode_json(line, _Row)
                    rows[row.picture] = row
            return rows
    log.unlink(missing_ok=True)
    return {}


def _log(job: LevelsJob) -> Path:
    return job.output.with_name(f".{job.output.name}.rows")


def _key(job: LevelsJob) -> str:
    made_of = (job.space.identity, sorted(job.space.operators), job.crop_px, EDGES, str(job.images.resolve()))
    return hashlib.sha256(repr(made_of).encode()).hexdigest()


def _row(job: LevelsJob, path: Path, name: str) -> _Row:
    try:
        whole = _cropped(read_picture(path), job.crop_px)
    except PictureError as error:
        raise CalibrationError(f"{error}; take it out of {job.images}") from error
    # As a smaller stage would have painted the same: smoothed, and not every other pixel.
    half = whole.resize((job.crop_px // 2, job.crop_px // 2), Image.Resampling.BICUBIC)
    large, small = (job.space.encode(np.asarray(picture)) for picture in (whole, half))
    return _Row(
        picture=name,
        power=band_power(large).tolist(),
        error={space: band_power(enlarge(small) - large).tolist() for space, enlarge in job.space.operators.items()},
    )


def _cropped(picture: Image.Image, side: int) -> Image.Image:
    """The square in its middle."""
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _levels(job: LevelsJob, rows: Sequence[_Row]) -> Levels:
    power = mean_of([np.asarray(row.power) for row in rows])
    errors: dict[ScalingSpace, Floats] = {
        space: mean_of([np.asarray(row.error[space]) for row in rows]) for space in rows[0].error
    }
    if not (power > 0).all():
        raise CalibrationError(f"the latents of {job.space.name} do not vary at some frequency; are these photographs?")
    found = Levels(
        space=job.space.name,
        crop_px=job.crop_px,
        pictures=len(rows),
        quality=job.quality,
        edges=EDGES,
        power=tuple(power.tolist()),
        error={space: tuple(error.tolist()) for space, error in errors.items()},
        law=law(power),
        spectral=0.0,
        covering={},
    )
    return found.at(job.quality)
