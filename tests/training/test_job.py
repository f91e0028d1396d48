import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from training_damage import spoil

from lssgen import paths
from lssgen.durable import locked
from lssgen.errors import TrainingError, UpsamplerError
from lssgen.models.nets.installed import installed_upsampler, vae_sha256, vae_weights_file
from lssgen.models.nets.latent_upsampler import LatentUpSampler, published_config
from lssgen.training import job as job_module
from lssgen.training import machine
from lssgen.training.config import PairRecipe, TrainJob
from lssgen.training.job import TrainResult, train_upsampler
from lssgen.training.report import contact_sheet
from lssgen.training.stopping import TOLD

QUIET = [].append


def test_a_job_ends_with_an_installed_checkpoint_and_its_report(job: TrainJob, vae: Path) -> None:
    said: list[str] = []
    result = train_upsampler(job, said.append)
    sha256 = vae_sha256(vae_weights_file(vae / "vae"))
    assert result.folder == installed_upsampler(sha256) == paths.upsamplers() / sha256[:16]
    assert "10 pictures in" in said[0]
    for folder in (job.output, result.folder):
        assert LatentUpSampler.from_pretrained(folder).config.in_channels == 4
        card = json.loads((folder / "lssgen.json").read_text())
        assert (card["vae_sha256"], card["scaling_factor"], card["shift_factor"]) == (sha256, 1.5, 0.1)
        assert card["trained_on"].startswith("8 pictures from images")
        with Image.open(folder / "contact_sheet.png") as sheet:
            assert sheet.width == 5 * 32 + 4 * 4
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
    result: TrainResult = train_upsampler(replace(job, install=False, install_anyway=False), QUIET)
    assert result.folder == job.output
    assert not paths.upsamplers().exists()


def test_a_new_upsampler_takes_the_place_of_the_installed_one(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    second = replace(job, output=job.output.with_name("second"), config=replace(job.config, seed=1))
    folder = train_upsampler(second, QUIET).folder
    assert (folder / "diffusion_pytorch_model.safetensors").read_bytes() == (
        second.output / "diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert [p.name for p in folder.parent.iterdir() if p.suffix != ".lock"] == [folder.name]


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


def test_an_output_that_another_training_writes_into_is_refused(job: TrainJob) -> None:
    with (
        locked(job.output / ".lock"),
        pytest.raises(TrainingError, match=r"another training is writing into .*; wait for it, or give another"),
    ):
        train_upsampler(job, QUIET)


def test_what_a_killed_training_left_is_cleared_away(job: TrainJob) -> None:
    job.output.mkdir(parents=True)
    (job.output / ".state.bin.0123456789abcdef.partial").write_bytes(b"half")
    place = train_upsampler(job, QUIET).folder
    assert not list(job.output.rglob("*.partial"))
    place.rename(place.with_name(f".{place.name}.0123456789abcdef.old.partial"))  # killed between two renames
    train_upsampler(job, QUIET)
    assert [p.name for p in place.parent.iterdir() if p.suffix != ".lock"] == [place.name]


@pytest.mark.parametrize("cached_pairs", [6, 0])
def test_pictures_that_cannot_be_decoded_are_said_at_the_end_and_in_the_report(
    job: TrainJob, images: Path, tmp_path: Path, cached_pairs: int
) -> None:
    paths = spoil(images, tmp_path / "spoilt", 6, {1, 3})
    job = replace(
        job, images=tmp_path / "spoilt", validation=str(images), config=replace(job.config, cached_pairs=cached_pairs)
    )
    words = f"2 that cannot be decoded: {paths[1]}, {paths[3]}"
    for _ in range(2):  # the second time from the state alone
        said: list[str] = []
        train_upsampler(job, said.append)
        assert said[-1] == f"pictures left out: {words}"
        assert json.loads((job.output / "report.json").read_text())["conditions"]["left out"] == words
        assert words in (job.output / "report.md").read_text()


def test_validation_pictures_that_cannot_be_decoded_are_left_out(job: TrainJob, images: Path, tmp_path: Path) -> None:
    spoil(images, tmp_path / "val", 4, {0})
    said: list[str] = []
    assert train_upsampler(replace(job, validation=str(tmp_path / "val")), said.append).validation.pairs == 3
    assert "1 validation pictures are left out because they cannot be decoded" in said


def test_validation_pictures_of_which_none_can_be_decoded_are_refused_at_once(
    job: TrainJob, images: Path, tmp_path: Path
) -> None:
    spoil(images, tmp_path / "val", 2, {0, 1})
    with pytest.raises(TrainingError, match=r"none of the 2 validation pictures can be decoded, .*0\.jpg for one"):
        train_upsampler(replace(job, validation=str(tmp_path / "val")), QUIET)
    assert not job.output.exists()


def test_more_threads_and_processes_than_cpus_are_cut_down_and_that_is_said(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lssgen.machine.cpus", lambda: 1)
    before = torch.get_num_threads()
    said: list[str] = []
    try:
        train_upsampler(replace(job, threads=99_999, workers=10**9), said.append)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert "99999 threads are asked for, but this machine has 1 CPU; using 1" in said
    assert any("processes that read pictures are asked for, but this machine has 1 CPU; using 1" in one for one in said)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), MemoryError()])
def test_too_little_memory_is_one_line(job: TrainJob, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(job_module, "_pictures", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(
        TrainingError, match=r"^not enough memory \(.*\); give a smaller --batch with more --accumulate"
    ):
        train_upsampler(job, QUIET)


def test_a_batch_that_no_machine_can_hold_is_one_line() -> None:
    with pytest.raises(TrainingError, match="not enough memory"), machine.told_plainly():
        torch.empty(2**60, dtype=torch.uint8)


def tell_readers(number: int) -> Callable[[str], None]:
    """What is called for every sentence; sends a signal to the processes that read pictures, once."""
    told: list[int] = []

    def say(sentence: str) -> None:
        if "training: step 1 of" in sentence and not told:
            told.extend(cast(int, child.pid) for child in multiprocessing.active_children())
            for pid in told:
                os.kill(pid, number)

    return say


@pytest.mark.usefixtures("every_line")
@pytest.mark.parametrize("number", TOLD)
def test_a_signal_to_the_whole_group_does_not_end_the_processes_that_read_pictures(job: TrainJob, number: int) -> None:
    config = replace(job.config, cached_pairs=0)
    alone = train_upsampler(replace(job, config=config), QUIET)
    told = replace(job, config=config, workers=1, output=job.output.with_name("told"))
    assert train_upsampler(told, tell_readers(number)).validation.rows == alone.validation.rows


@pytest.mark.usefixtures("every_line")
def test_a_process_that_dies_is_one_line(job: TrainJob) -> None:
    job = replace(job, config=replace(job.config, cached_pairs=0, steps=500), workers=1)
    with pytest.raises(TrainingError, match=r"^a process that reads pictures has died \(.*\); give fewer --workers"):
        train_upsampler(job, tell_readers(signal.SIGKILL))


def test_folders_whose_names_are_not_text_are_no_problem(job: TrainJob, images: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(images, odd)
    train_upsampler(replace(job, images=odd), QUIET)
    assert "pictures from caf\\udce9" in (job.output / "report.md").read_text()


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "cuda:99999999999999999999", "meta:x", "", "cpu:-1", "mps"])
def test_a_device_that_is_not_there_is_refused(job: TrainJob, device: str) -> None:
    with pytest.raises(TrainingError, match=f"^device '{device}' cannot be used: .*; give cpu, cuda or auto$"):
        train_upsampler(replace(job, device=device), QUIET)


def test_the_contact_sheet_shows_each_picture_in_its_column() -> None:
    black, white = torch.full((2, 3, 8, 8), -1.0), torch.full((2, 3, 8, 8), 1.0)
    sheet = contact_sheet({"a": black, "b": white})
    assert sheet.getpixel((1, 16)) == sheet.getpixel((1, 30)) == (0, 0, 0)
    assert sheet.getpixel((13, 30)) == (255, 255, 255)
