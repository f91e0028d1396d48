"""Pairs that are cut on the device: the same cuts as those that are read from files, and what does not fit."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_damage import spoil

from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.training import resident as room
from lssgen.training.autoencoder import load_autoencoder
from lssgen.training.config import Downscale, PairRecipe, TrainConfig, TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.pictures import RandomCrops, find_pictures
from lssgen.training.resident import ResidentPairs, read_all

CPU = torch.device("cpu")
QUIET = [].append


def pairs_of(paths: tuple[Path, ...], recipe: PairRecipe, vae: Path) -> ResidentPairs:
    return ResidentPairs(
        resident=read_all(paths, CPU, QUIET),
        recipe=recipe,
        seed=3,
        autoencoder=load_autoencoder(str(vae), CPU),
        device=CPU,
        with_pictures=True,
        bf16=False,
    )


@pytest.mark.parametrize(
    ("downscale", "levels"),
    # Pillow's filters have weights of 8 bits and round twice, across and down; torch's are float32 and round once.
    [("nearest", 0), ("box", 1), ("bilinear", 1), ("bicubic", 1)],
)
def test_pictures_are_those_that_are_read_from_files(
    images: Path, tiny_vae: Path, downscale: Downscale, levels: int
) -> None:
    recipe = PairRecipe(height=32, width=32, downscale=downscale, zoom=1.0)
    paths = find_pictures(images, recipe).paths
    read = RandomCrops(paths, recipe, 3)
    low, high = pairs_of(paths, recipe, tiny_vae).pictures(range(12))
    for position in range(12):
        assert torch.equal(high[position], read[position][1])
        assert (low[position].int() - read[position][0].int()).abs().max() <= levels


def test_a_shrunk_crop_is_the_one_of_the_files_to_a_grey_level_or_two(images: Path, tiny_vae: Path) -> None:
    recipe = PairRecipe(height=16, width=16, zoom=2.0)
    paths = find_pictures(images, recipe).paths
    read = RandomCrops(paths, recipe, 3)
    _, high = pairs_of(paths, recipe, tiny_vae).pictures(range(20))
    for position in range(20):
        assert (high[position].int() - read[position][1].int()).abs().max() <= 2


def test_nearest_targets_repeat_the_pixels_of_the_crop(images: Path, tiny_vae: Path) -> None:
    recipe = PairRecipe(height=32, width=32, target="nearest", zoom=1.0)
    paths = find_pictures(images, recipe).paths
    low, high = pairs_of(paths, recipe, tiny_vae).pictures(range(3))
    assert torch.equal(high, low.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_what_is_encoded_in_advance_is_what_every_step_would_encode(images: Path, vae: Path) -> None:
    recipe = PairRecipe(height=32, width=32)
    pairs = pairs_of(find_pictures(images, recipe).paths, recipe, vae)
    ahead, fresh = pairs.in_advance(4, QUIET), next(pairs.batches(1, 2))
    for kept, made in zip(ahead.part(2, 4).tensors, fresh.tensors, strict=True):
        assert torch.allclose(kept.float(), made.float(), atol=1e-6)  # another batch size, another order of sums


def told_at(step: int) -> Callable[[str], None]:
    """What is called for every sentence; sends SIGTERM when that step's line comes."""

    def say(sentence: str) -> None:
        if f"training: step {step} of" in sentence:
            os.kill(os.getpid(), signal.SIGTERM)

    return say


@pytest.mark.usefixtures("every_line")
@pytest.mark.parametrize("cached_pairs", [5, 0])
def test_a_stopped_training_goes_on_to_the_same_weights(job: TrainJob, cached_pairs: int) -> None:
    whole = replace(job, config=replace(job.config, resident=True, cached_pairs=cached_pairs))
    train_upsampler(whole, QUIET)
    stopped = replace(whole, output=job.output.with_name("stopped"))
    with pytest.raises(KeyboardInterrupt):
        train_upsampler(stopped, told_at(3))
    train_upsampler(stopped, QUIET)
    first, second = (LatentUpSampler.from_pretrained(one.output).state_dict() for one in (whole, stopped))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_pictures_that_cannot_be_decoded_are_named_at_the_end(job: TrainJob, images: Path, tmp_path: Path) -> None:
    paths = spoil(images, tmp_path / "spoilt", 6, {1, 3})
    config = replace(job.config, resident=True)
    said: list[str] = []
    train_upsampler(replace(job, images=tmp_path / "spoilt", validation=str(images), config=config), said.append)
    assert said[-1] == f"pictures left out: 2 that cannot be decoded: {paths[1]}, {paths[3]}"


def test_where_no_picture_can_be_decoded_that_is_one_line(images: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^none of the 2 training pictures can be decoded; repair them or give"):
        read_all(spoil(images, tmp_path, 2, {0, 1}), CPU, QUIET)


def test_more_pictures_than_the_memory_holds_are_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 20_000)
    with pytest.raises(TrainingError, match=r"more pictures than fit into the 0\.0 GB that cpu has .* without --res"):
        read_all(tuple(sorted(images.iterdir())), CPU, QUIET)


def test_a_filter_that_torch_lacks_is_refused() -> None:
    with pytest.raises(TrainingError, match="resident pairs cannot be made with lanczos; give another --downscale"):
        TrainConfig(resident=True, pairs=PairRecipe(downscale="lanczos"))
