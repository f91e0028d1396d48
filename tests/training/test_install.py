"""An upsampler is installed if it is worth having; if it is not, that is said with the numbers."""

from dataclasses import replace
from math import nan
from pathlib import Path

import pytest
from PIL import Image

from lssgen import paths
from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.training import job as job_module
from lssgen.training.config import TrainJob
from lssgen.training.install import shortcoming
from lssgen.training.job import train_upsampler
from lssgen.training.report import BICUBIC, PIXELS, UPSAMPLER, Row, Validation

QUIET = [].append


def validation(ours: tuple[float, float]) -> Validation:
    """Of an upsampler with this latent error and PSNR; bicubic has (0.1, 27), the way through pixels (0.02, 30)."""
    numbers = {BICUBIC: (0.1, 27.0), PIXELS: (0.02, 30.0), UPSAMPLER: ours}
    rows = (
        Row(method=name, latent_mse=mse, relative_mse=mse, psnr_db=psnr, ssim=0.9)
        for name, (mse, psnr) in numbers.items()
    )
    return Validation(tuple(rows), 10, Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("ours", [(0.01, 31.0), (0.01, 27.0), (0.1, 30.0), (0.02, 30.0)])
def test_what_is_as_good_as_bicubic_and_in_one_of_the_two_as_the_way_through_pixels_is_worth_having(
    ours: tuple[float, float],
) -> None:
    assert not shortcoming(validation(ours))


@pytest.mark.parametrize("ours", [(0.01, 26.9), (0.11, 31.0)])
def test_what_is_worse_than_bicubic_in_one_of_the_two_is_not(ours: tuple[float, float]) -> None:
    """The first is what training on latents alone came to: nearer to the true latents, and blurred once decoded."""
    words = shortcoming(validation(ours))
    assert '"bicubic on the latent"' in words
    assert "decode" not in words


def test_what_is_worse_than_bicubic_is_told_with_all_numbers() -> None:
    assert shortcoming(validation((0.2, 25.0))) == (
        "on 10 validation pictures it does worse (latent MSE 0.2, PSNR 25.00 dB) than "
        '"bicubic on the latent" (latent MSE 0.1, PSNR 27.00 dB) and '
        '"decode, bicubic, encode" (latent MSE 0.02, PSNR 30.00 dB)'
    )


def test_what_is_worse_than_the_way_through_pixels_is_not_worth_having() -> None:
    words = shortcoming(validation((0.05, 29.0)))
    assert "bicubic on the latent" not in words
    assert '"decode, bicubic, encode"' in words


@pytest.mark.parametrize("ours", [(nan, 31.0), (nan, nan)])
def test_numbers_that_are_none_are_no_use(ours: tuple[float, float]) -> None:
    assert shortcoming(validation(ours))


def test_an_upsampler_that_does_worse_than_none_is_not_installed(job: TrainJob) -> None:
    careful = replace(job, install_anyway=False)
    result = train_upsampler(careful, QUIET)
    assert "it does worse" in result.refused
    assert result.folder == job.output
    assert (job.output / "report.md").exists()
    assert not paths.upsamplers().exists()
    again = train_upsampler(replace(careful, install_anyway=True), QUIET)
    assert not again.refused
    assert LatentUpSampler.from_pretrained(again.folder)


def test_an_upsampler_that_is_worth_having_is_installed(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "shortcoming", lambda _: "")
    result = train_upsampler(replace(job, install_anyway=False), QUIET)
    assert result.folder.parent == paths.upsamplers()


def test_an_upsampler_that_is_kept_is_replaced_by_none_that_is_worse(job: TrainJob) -> None:
    place = train_upsampler(job, QUIET).folder
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    other = replace(job, output=job.output.with_name("b"), config=replace(job.config, seed=1), install_anyway=False)
    assert train_upsampler(other, QUIET).refused
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_an_upsampler_whose_last_step_exploded_is_refused(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    from lssgen.training.state import read_state, write_state

    path: Path = job.output / "state.bin"
    state = read_state(path, job_module.torch.device("cpu"))
    assert state is not None
    next(iter(state["average"].values())).fill_(nan)
    write_state(path, state)
    with pytest.raises(TrainingError, match=r"the weights are no longer finite; try a smaller --learning-rate"):
        train_upsampler(job, QUIET)
