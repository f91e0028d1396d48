from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from lssgen.training.autoencoder import Autoencoder, load_autoencoder
from lssgen.training.cache import EncodeJob, encode_pairs
from lssgen.training.config import PairRecipe
from lssgen.training.latents import Batch, CachedPairs, FreshPairs
from lssgen.training.pictures import RandomCrops, find_pictures

CPU = torch.device("cpu")
RECIPE = PairRecipe(height=32, width=32)
QUIET = [].append


def encoded(job: EncodeJob) -> Batch:
    return encode_pairs(job, QUIET).pairs


@pytest.fixture
def encode(vae: Path, images: Path, tmp_path: Path) -> EncodeJob:
    return EncodeJob(
        crops=RandomCrops(find_pictures(images, RECIPE).paths, RECIPE, 0),
        total=5,
        autoencoder=load_autoencoder(str(vae), CPU),
        device=CPU,
        folder=tmp_path,
        workers=0,
        with_pictures=True,
    )


def test_pairs_are_encoded_once(encode: EncodeJob) -> None:
    first = encoded(encode)
    blind = replace(encode, autoencoder=replace(encode.autoencoder, vae=torch.nn.Identity()))
    again = encoded(blind)
    assert torch.equal(first.high, again.high)
    assert first.pictures.dtype == torch.uint8


@pytest.mark.parametrize(
    "change", [{"total": 4}, {"with_pictures": False}, {"recipe": PairRecipe(height=16, width=16)}, {"sha256": "other"}]
)
def test_other_pairs_have_another_cache(encode: EncodeJob, change: dict[str, object]) -> None:
    encoded(encode)
    crops = RandomCrops(encode.crops.paths, change.pop("recipe", RECIPE), 0)  # type: ignore[arg-type]
    vae: Autoencoder = replace(encode.autoencoder, sha256=change.pop("sha256", encode.autoencoder.sha256))  # type: ignore[arg-type]
    encoded(replace(encode, crops=crops, autoencoder=vae, **change))  # type: ignore[arg-type]
    assert len(list(encode.folder.iterdir())) == 2


def test_a_half_written_shard_is_written_again(encode: EncodeJob) -> None:
    first = encoded(encode)
    (shard,) = encode.folder.glob("*/*.pairs")
    shard.rename(shard.with_name(f".{shard.name}.0123456789abcdef.partial"))
    assert torch.equal(encoded(encode).low, first.low)
    assert list(shard.parent.iterdir()) == [shard]


def test_fresh_pairs_are_what_the_cache_begins_with(encode: EncodeJob) -> None:
    cached = encoded(encode)
    fresh = FreshPairs(crops=encode.crops, autoencoder=encode.autoencoder, device=CPU, workers=0, with_pictures=True)
    second = next(fresh.batches(1, 2))
    assert torch.equal(second.pictures, cached.pictures[2:4])
    assert torch.allclose(second.high, cached.high[2:4], atol=1e-5)  # encoded in batches of another size


def test_batches_can_start_anywhere(encode: EncodeJob) -> None:
    pairs = CachedPairs(pairs=encoded(encode), seed=0, device=CPU)
    through = list(islice(pairs.batches(0, 2), 6))
    assert torch.equal(next(pairs.batches(5, 2)).low, through[5].low)


def test_a_cached_epoch_goes_through_all_pairs(encode: EncodeJob) -> None:
    everything = encoded(encode)
    epoch = next(CachedPairs(pairs=everything, seed=0, device=CPU).batches(1, 5))
    assert torch.allclose(epoch.low.sum(0), everything.low.sum(0), atol=1e-4)  # the same terms in another order


def test_pictures_are_kept_only_for_a_loss_that_looks_at_them(encode: EncodeJob) -> None:
    assert encoded(replace(encode, with_pictures=False)).pictures.shape == (5, 0)


def test_only_missing_shards_are_encoded(encode: EncodeJob) -> None:
    many = replace(encode, total=70)
    first = encoded(many)
    shards = sorted(encode.folder.glob("*/*.pairs"))
    before = shards[0].stat().st_mtime_ns
    shards[1].unlink()
    again = encoded(many)
    assert len(shards) == 3
    assert len(again.low) == 70
    assert torch.equal(again.low, first.low)
    assert shards[0].stat().st_mtime_ns == before
