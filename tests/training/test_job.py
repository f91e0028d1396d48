import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lssgen import paths
from lssgen.errors import TrainingError, UpsamplerError
from lssgen.models.nets.installed import installed_upsampler, vae_sha256
from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config
from lssgen.training.config import PairRecipe, TrainJob
from lssgen.training.job import TrainResult, train_upsampler
from lssgen.training.report import contact_sheet

QUIET = [].append


def test_a_job_ends_with_an_installed_checkpoint_and_its_report(job: TrainJob, vae: Path) -> None:
    said: list[str] = []
    result = train_upsampler(job, said.append)
    sha256 = vae_sha256(vae / "vae")
    assert result.folder == installed_upsampler(sha256) == paths.upsamplers() / sha256[:16]
    assert "10 pictures in" in said[0]
    for folder in (job.output, result.folder):
        assert LatentUpSampler.from_pretrained(folder).config.in_channels == 4
        card = json.loads((folder / "lssgen.json").read_text())
        assert (card["vae_sha256"], card["scaling_factor"], card["shift_factor"]) == (sha256, 1.5, 0.1)
        assert card["trained_on"].startswith("8 pictures from images")
        assert Image.open(folder / "contact_sheet.png").width == 5 * 32 + 4 * 4
    report = json.loads((result.folder / "report.json").read_text())
    assert [row["method"] for row in report["rows"]][-2:] == ["upsampler", "true latent"]
    assert report["rows"][-1]["latent_mse"] == 0
    assert "| upsampler |" in (result.folder / "report.md").read_text()


def test_a_finished_job_is_not_trained_again(job: TrainJob) -> None:
    first = train_upsampler(job, QUIET)
    said: list[str] = []
    again = train_upsampler(job, said.append)
    assert said[-1] == "going on after step 6 of 6"
    assert again.validation.rows == first.validation.rows


def test_nothing_is_installed_where_that_is_not_wanted(job: TrainJob) -> None:
    result: TrainResult = train_upsampler(replace(job, install=False), QUIET)
    assert result.folder == job.output
    assert not paths.upsamplers().exists()


def test_a_new_upsampler_takes_the_place_of_the_installed_one(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    second = replace(job, output=job.output.with_name("second"), config=replace(job.config, seed=1))
    folder = train_upsampler(second, QUIET).folder
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == (
        second.output / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_tiny_autoencoder_a_non_square_crop_and_fresh_pairs_work(job: TrainJob, tiny_vae: Path) -> None:
    config = replace(job.config, pairs=PairRecipe(height=16, width=32), cached_pairs=0, steps=2, bf16=True)
    result = train_upsampler(replace(job, vae=str(tiny_vae), config=config), QUIET)
    assert result.validation.pairs == 2


def test_training_can_go_on_from_another_upsampler(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    config = replace(job.config, steps=1, learning_rate=1e-12, weight_decay=0.0, ema=0.0)
    more = replace(job, output=job.output.with_name("more"), shape="", start_from=str(job.output), config=config)
    train_upsampler(more, QUIET)
    before, after = (LatentUpSampler.from_pretrained(folder).state_dict() for folder in (job.output, more.output))
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)


def test_zero_steps_measure_an_upsampler_and_keep_what_is_known_of_it(job: TrainJob) -> None:
    first = train_upsampler(replace(job, licence="mine"), QUIET)
    config = replace(job.config, steps=0)
    again = replace(job, output=job.output.with_name("again"), shape="", start_from=str(job.output), config=config)
    assert train_upsampler(again, QUIET).validation.rows == first.validation.rows
    before, after = (json.loads((folder / "lssgen.json").read_text()) for folder in (job.output, again.output))
    assert after == before
    assert after["licence"] == "mine"


def test_zero_steps_from_nothing_are_refused(job: TrainJob) -> None:
    with pytest.raises(TrainingError, match="0 steps train nothing; give --start-from"):
        train_upsampler(replace(job, config=replace(job.config, steps=0)), QUIET)


def test_an_upsampler_for_other_channels_is_no_start(job: TrainJob, tmp_path: Path) -> None:
    LatentUpSampler(published_config(16)).save_pretrained(tmp_path / "wide")
    with pytest.raises(UpsamplerError, match=r"turns 16 latent channels into 16, but .* has 4"):
        train_upsampler(replace(job, shape="", start_from=str(tmp_path / "wide")), QUIET)


def test_validation_pictures_can_have_their_own_folder(job: TrainJob, images: Path) -> None:
    assert train_upsampler(replace(job, validation=str(images)), QUIET).validation.pairs == 10


def test_one_picture_is_not_enough(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "one/a.png")
    with pytest.raises(TrainingError, match="one usable picture; training needs another one to validate on"):
        train_upsampler(replace(job, images=tmp_path / "one"), QUIET)


def test_an_output_that_cannot_be_written_is_refused(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write to"):
        train_upsampler(replace(job, output=tmp_path / "file/out"), QUIET)


def test_a_device_that_is_not_there_is_refused(job: TrainJob) -> None:
    with pytest.raises(TrainingError, match="device 'quantum' cannot be used"):
        train_upsampler(replace(job, device="quantum"), QUIET)


def test_the_contact_sheet_shows_each_picture_in_its_column() -> None:
    black, white = torch.full((2, 3, 8, 8), -1.0), torch.full((2, 3, 8, 8), 1.0)
    sheet = contact_sheet({"a": black, "b": white})
    assert sheet.getpixel((1, 16)) == sheet.getpixel((1, 30)) == (0, 0, 0)
    assert sheet.getpixel((13, 30)) == (255, 255, 255)


def test_options_of_the_job_that_make_no_sense_are_refused(job: TrainJob) -> None:
    with pytest.raises(TrainingError, match="save_every is 0, but must be 1 or more"):
        replace(job, save_every=0)
