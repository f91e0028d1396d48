"""The cache of encoded pairs is checked when it is read; what is damaged is made again, and said."""

import os
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_damage import flip, full_disk, spoil

from lssgen.errors import TrainingError
from lssgen.models.nets.latent_upsampler import LatentUpSampler
from lssgen.training import cache
from lssgen.training.autoencoder import load_autoencoder
from lssgen.training.cache import EncodeJob, encode_pairs
from lssgen.training.config import PairRecipe, TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.pictures import RandomCrops, find_pictures

CPU = torch.device("cpu")
RECIPE = PairRecipe(height=32, width=32)
QUIET = [].append


@pytest.fixture
def encode(vae: Path, images: Path, tmp_path: Path) -> EncodeJob:
    """Seventy pairs in three shards."""
    return EncodeJob(
        crops=RandomCrops(find_pictures(images, RECIPE).paths, RECIPE, 0),
        total=70,
        autoencoder=load_autoencoder(str(vae), CPU),
        device=CPU,
        folder=tmp_path / "cache",
        workers=0,
        with_pictures=True,
    )


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pairs"))


def _swap(paths: list[Path]) -> None:
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    paths[0].write_bytes(second)
    paths[1].write_bytes(first)


def _pipe(paths: list[Path]) -> None:
    paths[0].unlink()
    os.mkfifo(paths[0])


DAMAGES: dict[str, tuple[Callable[[list[Path]], object], int]] = {
    "a bit of the weights": (lambda paths: flip(paths[1], 0.9), 1),
    "a bit of the hash": (lambda paths: flip(paths[0], 0.0001), 1),
    "a bit of the header": (lambda paths: flip(paths[2], 0.003), 1),
    "truncated": (lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-1]), 1),
    "longer": (lambda paths: paths[0].write_bytes(paths[0].read_bytes() + b"x"), 1),
    "empty": (lambda paths: paths[0].write_bytes(b""), 1),
    "garbage": (lambda paths: paths[0].write_bytes(os.urandom(1000)), 1),
    "two in each other's place": (_swap, 2),
    "a pipe": (_pipe, 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_encoded_again_and_said(encode: EncodeJob, damage: str) -> None:
    first = encode_pairs(encode, QUIET)
    harm, count = DAMAGES[damage]
    harm(shards(encode.folder))
    said: list[str] = []
    again = encode_pairs(encode, said.append)
    assert all(map(torch.equal, again.pairs.tensors, first.pairs.tensors))
    assert f"{count} of 3 files in" in said[0]
    assert "damaged; their pictures are encoded again" in said[0]
    assert encode_pairs(encode, said.append).pairs.low.equal(first.pairs.low)
    assert len(said) == 1


def test_a_flipped_bit_in_the_cache_does_not_change_what_comes_out(job: TrainJob) -> None:
    config = replace(job.config, steps=3)
    stopped = replace(job, config=config, output=job.output.with_name("stopped"))
    train_upsampler(replace(job, config=config), QUIET)
    train_upsampler(stopped, QUIET)
    for file in (*shards(stopped.output), *stopped.output.glob("*.safetensors")):
        flip(file, 0.7)
    (stopped.output / "state.bin").unlink()
    train_upsampler(stopped, QUIET)
    ours, theirs = (LatentUpSampler.from_pretrained(folder).state_dict() for folder in (job.output, stopped.output))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_pictures_that_were_passed_over_are_remembered_with_the_pairs(
    encode: EncodeJob, images: Path, tmp_path: Path
) -> None:
    paths = spoil(images, tmp_path / "spoilt", 4, {2})
    job = replace(encode, crops=RandomCrops(paths, RECIPE, 0))
    assert encode_pairs(job, QUIET).undecodable == {paths[2]}
    assert encode_pairs(job, QUIET).undecodable == {paths[2]}


Usage = namedtuple("Usage", "free")


def test_a_cache_that_the_disk_has_no_room_for_is_refused(encode: EncodeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Usage(free=500_000))
    encode_pairs(encode, QUIET)  # these take 0.43 MB
    with pytest.raises(TrainingError, match=r"^70,000 cached pairs take 0\.3 GB, but there are 0\.0 GB on the disk of"):
        encode_pairs(replace(encode, total=70_000), QUIET)


def test_a_cache_that_the_memory_has_no_room_for_is_refused(encode: EncodeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: 200_000_000)
    with pytest.raises(TrainingError, match=r"but there are 0\.2 GB of memory; give fewer --cached-pairs, or 0"):
        encode_pairs(replace(encode, total=70_000), QUIET)


def test_the_size_of_a_cache_is_foretold(encode: EncodeJob) -> None:
    encode_pairs(encode, QUIET)
    real = sum(shard.stat().st_size for shard in shards(encode.folder))
    assert 70 * cache._pair_bytes(encode) == pytest.approx(real, rel=0.02)


def test_a_full_disk_while_encoding_is_one_line_and_nothing_half_written_stays(job: TrainJob) -> None:
    with full_disk(1000), pytest.raises(TrainingError, match=r"cannot write to .*; make room and run the same command"):
        train_upsampler(job, QUIET)
    assert not shards(job.output)
    assert not list(job.output.rglob("*.partial"))
    assert train_upsampler(job, QUIET).validation.pairs == 2
