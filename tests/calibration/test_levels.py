"""Noise levels from photographs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn
from toy_bundle import toy_in_stages

from lssgen.bundle import Bundle, read_bundle, verify
from lssgen.calibration.bundle_space import BundleSpace
from lssgen.calibration.levels import LEAST_PICTURES, LevelsJob, markdown, measure_levels, put_into, read_levels
from lssgen.calibration.spectra import EDGES, band_power, centres, covering_share, deciding_band, law, spectral_share
from lssgen.engines.registry import open_backend
from lssgen.errors import CalibrationError
from lssgen.plan import PlanOptions, make_plan
from lssgen.plan.facts import ScalingSpace
from lssgen.ports import Array

CROP = 256


def field(seed: int, side: int, a: float, b: float, channels: int = 3) -> NDArray[np.float64]:
    """(C, side, side) of a power law: coefficients of deviation sqrt(a f^-b)."""
    rows, columns = np.meshgrid(*[np.arange(side) / (2 * side)] * 2, indexing="ij")
    frequency = np.maximum(np.hypot(rows, columns), 1 / (2 * side))
    white = np.random.default_rng(seed).standard_normal((channels, side, side))
    return idctn(white * np.sqrt(a * frequency**-b), axes=(1, 2), norm="ortho")


def _doubled(latent: Array) -> Array:
    return latent.repeat(2, 1).repeat(2, 2)


class Means:
    """An autoencoder whose cells are means of 8 x 8 pixels, and two ways to the next size."""

    name, identity, cell_px = "means", "1", 8

    def __init__(self) -> None:
        self.encoded = 0
        self.fails_after = 10_000

    @property
    def operators(self) -> Mapping[ScalingSpace, Callable[[Array], Array]]:
        return {"latent": _doubled, "dct": lambda latent: 0 * _doubled(latent)}

    def encode(self, picture: NDArray[np.uint8]) -> Array:
        self.encoded += 1
        if self.encoded > self.fails_after:
            raise KeyboardInterrupt
        height, width, _ = picture.shape
        cells = picture.reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3), dtype=np.float32)
        return cells.transpose(2, 0, 1) / 64 - 2

    def close(self) -> None: ...


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "inside").mkdir(parents=True)
    for number in range(LEAST_PICTURES):
        picture = np.clip(field(number, CROP + 8, 4.0, 2.0).transpose(1, 2, 0) + 128, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / ("inside" if number % 2 else ".") / f"{number}.png")
    return folder


@pytest.fixture
def job(photographs: Path, tmp_path: Path) -> LevelsJob:
    return LevelsJob(
        space=Means(),
        images=photographs,
        crop_px=CROP,
        most=64,
        quality=0.05,
        output=tmp_path / "out" / "means.sigma.json",
        say=lambda _: None,
    )


@pytest.mark.parametrize("side", [64, 128])
def test_a_power_law_is_found_again_at_every_size(side: int) -> None:
    """In cycles per cell its constants do not depend on the size, as the mean over eight latents of four channels."""
    power = np.mean([band_power(field(seed, side, 0.0156, 1.72, 4)) for seed in range(8)], axis=0)
    a, b = law(power)
    assert (a, b) == pytest.approx((0.0156, 1.72), rel=0.06)
    assert a * centres() ** -b == pytest.approx(power, rel=0.3)  # a few coefficients in the lowest bands


def test_bands_are_means_of_squared_coefficients_by_frequency() -> None:
    """Against SciPy's transform and a loop."""
    latent = np.random.default_rng(0).standard_normal((2, 32, 48)).astype(np.float32)
    squares = (dctn(latent.astype(float), axes=(1, 2), norm="ortho") ** 2).mean(0)
    for band, (low, high) in enumerate(zip(EDGES, (*EDGES[1:-1], 9), strict=False)):
        inside = [
            squares[row, column]
            for row in range(32)
            for column in range(48)
            if low <= np.hypot(row / 64, column / 96) < high
        ]
        assert band_power(latent)[band] == pytest.approx(np.mean(inside))


@pytest.mark.parametrize("quality", [0.02, 0.05, 0.3])
def test_at_the_level_that_covers_an_error_wieners_filter_leaves_the_share_that_may_be_wrong(quality: float) -> None:
    rng = np.random.default_rng(0)
    power, error = rng.uniform(0.1, 5, 10), rng.uniform(0.2, 5, 10)
    share = covering_share(power, error, quality)

    def left(share: float) -> float:
        ratio = share / (1 - share)
        return float(((power / (power + ratio**2)) ** 2 * error / power).max())

    assert left(share) == pytest.approx(quality)
    assert left(0.9 * share) > quality > left(1.1 * share)
    alone = [covering_share(power[[band]], error[[band]], quality) for band in range(10)]
    assert deciding_band(power, error, quality) == int(np.argmax(alone))


def test_an_error_that_is_small_enough_needs_no_noise() -> None:
    assert covering_share(np.ones(3), np.full(3, 0.04), 0.05) == 0.0


def test_speeds_own_level_is_that_of_its_constants_for_flux() -> None:
    """A = 203.615097 and b = 1.915461 per picture of 128 cells, d = 0.05: t = 0.718, aligned 0.836."""
    b = 1.915461
    assert spectral_share(203.615097 * 128**-b, b, 0.05) == pytest.approx(0.836, abs=1e-3)


def test_what_is_measured_is_the_difference_from_the_whole_pictures_latent(job: LevelsJob) -> None:
    found = measure_levels(job)
    assert (found.pictures, found.crop_px) == (LEAST_PICTURES, CROP)
    # An operator that gives nothing is wrong by all there is.
    assert found.error["dct"] == pytest.approx(found.power)
    assert found.covering["dct"] > found.covering["latent"] > 0
    assert found.covering["dct"] == covering_share(np.asarray(found.power), np.asarray(found.error["dct"]), 0.05)
    assert read_levels(job.output) == found
    assert [path.name for path in job.output.parent.iterdir()] == [job.output.name]
    for said in ("(by 0.", "| cycles per cell |", "8 photographs of 256 px", "published 0.75", "SPEED"):
        assert said in markdown(found)


def test_a_measurement_that_was_killed_goes_on_and_ends_with_the_same_numbers(job: LevelsJob, tmp_path: Path) -> None:
    space = Means()
    space.fails_after = 7
    with pytest.raises(KeyboardInterrupt):
        measure_levels(replace(job, space=space))
    assert not job.output.exists()
    again = Means()
    found = measure_levels(replace(job, space=again))
    assert again.encoded == 2 * LEAST_PICTURES - 6  # three photographs were done
    assert found == measure_levels(replace(job, output=tmp_path / "other.json"))


def test_another_crop_begins_anew(job: LevelsJob, photographs: Path) -> None:
    for path in photographs.rglob("*.png"):
        with Image.open(path) as picture:
            large = picture.resize((800, 800))
        large.save(path)
    space = Means()
    space.fails_after = 4
    with pytest.raises(KeyboardInterrupt):
        measure_levels(replace(job, space=space))
    again = Means()
    assert measure_levels(replace(job, space=again, crop_px=512)).crop_px == 512
    assert again.encoded == 2 * LEAST_PICTURES


def test_too_few_photographs_are_refused_with_how_many_it_takes(job: LevelsJob, photographs: Path) -> None:
    (photographs / "0.png").unlink()
    with pytest.raises(CalibrationError, match=r"7 of 7 pictures in .* a fit takes 8 at least: give more"):
        measure_levels(job)
    assert not job.output.exists()


def test_pictures_smaller_than_the_crop_do_not_count(job: LevelsJob, photographs: Path) -> None:
    Image.new("RGB", (CROP - 1, 900)).save(photographs / "0.png")
    (photographs / "2.png").write_bytes(b"not a picture")
    with pytest.raises(CalibrationError, match=r"6 of 8 pictures in .* can be read and are 256 px or more along both"):
        measure_levels(job)


@pytest.mark.parametrize(("crop", "said"), [(264, "a multiple of 16, 256 or more"), (128, "256 or more")])
def test_a_crop_that_does_not_fit_is_refused(job: LevelsJob, crop: int, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        measure_levels(replace(job, crop_px=crop))


def test_a_folder_that_is_not_there_is_refused(job: LevelsJob, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there is no folder"):
        measure_levels(replace(job, images=tmp_path / "none"))


def test_pictures_of_one_grey_are_no_photographs(job: LevelsJob, photographs: Path) -> None:
    for path in photographs.rglob("*.png"):
        Image.new("RGB", (CROP, CROP), "grey").save(path)
    with pytest.raises(CalibrationError, match="do not vary"):
        measure_levels(job)


@pytest.mark.parametrize("text", ["", "{}", "[1]"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "levels.json").write_text(text)
    with pytest.raises(CalibrationError, match="give a file that lssgen-calibrate sigma wrote"):
        read_levels(tmp_path / "levels.json")


@pytest.fixture
def bundle(toy: Path, tmp_path: Path) -> Bundle:
    return toy_in_stages(toy, tmp_path / "toy")


def test_a_bundles_own_graphs_are_measured_and_auto_starts_there(bundle: Bundle, job: LevelsJob) -> None:
    space = BundleSpace(bundle, open_backend("onnxruntime", threads=1), CROP)
    picture = np.random.default_rng(0).integers(0, 256, (CROP // 2, CROP // 2, 3), np.uint8)
    latent = space.encode(picture)
    assert latent.shape == (4, CROP // 16, CROP // 16)
    means = picture.reshape(16, 8, 16, 8, 3).mean((1, 3)).transpose(2, 0, 1)
    assert latent[:3] == pytest.approx((means - 128) / 32, abs=1e-4)
    # Weights 1 and 0: the operator alone, which keeps a constant.
    assert space.operators["latent"](np.full_like(latent, 0.5)) == pytest.approx(0.5)
    found = measure_levels(replace(job, space=space))
    space.close()
    changed = put_into(bundle, found)
    verify(changed)
    facts = changed.manifest.facts
    assert facts.defaults.covering_sigmas == {"latent": round(found.covering["latent"], 4)}
    assert sum(note.startswith("Lowest noise levels") for note in put_into(changed, found).manifest.notes) == 1
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, start_sigma="auto", num_inference_steps=200))
    assert plan.stages[1].noise == pytest.approx(found.covering["latent"], abs=0.02)


def test_levels_of_other_transitions_are_not_put_into_a_bundle(bundle: Bundle, job: LevelsJob) -> None:
    found = measure_levels(job)
    other = replace(found, covering={"pixel": 0.5})
    with pytest.raises(CalibrationError, match=r"has none of the transitions that were measured \(pixel\)"):
        put_into(bundle, other)
    assert read_bundle(bundle.folder).manifest == bundle.manifest
