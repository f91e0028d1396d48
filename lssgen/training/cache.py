"""Pairs that are encoded once and kept on disk, where a run that was killed finds them again.

Every file of the cache holds the hash of what was written into it: what is damaged is encoded again.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load, save
from torch import Tensor

from lssgen.durable import clear_folder
from lssgen.errors import TrainingError
from lssgen.machine import free_memory
from lssgen.progress import Say
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.latents import Batch, encode_batch, read_pairs
from lssgen.training.pictures import RandomCrops
from lssgen.training.progress import followed
from lssgen.training.sealed import read_sealed, write_sealed

SHARD, READ_TOGETHER = 32, 8
"""Pairs that are written together, and pairs that go through the encoder together (a divisor of the former)."""

LAYOUT = 3
"""Number that goes up whenever what a shard holds, or how it is made from a picture, changes."""

_FIELDS, _PLACES = ("low", "low_std", "high", "pictures"), "undecodable"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeJob:
    """What `encode_pairs` works on.

    Attributes:
        crops: Pictures, cut; the first `total` items are encoded.
        folder: Cache, which one process at a time may use; pairs of another VAE, other pictures or another recipe
            land in other folders below it.
        workers: Processes that read pictures; 0 reads them in this one.
        with_pictures: Keep the high pictures too, for an image loss.
    """

    crops: RandomCrops
    total: int
    autoencoder: Autoencoder
    device: torch.device
    folder: Path
    workers: int
    with_pictures: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """All pairs, in host memory, and the pictures that were passed over as they cannot be decoded."""

    pairs: Batch
    undecodable: set[Path]


@dataclass(frozen=True, slots=True)
class _Shard:
    start: int
    pairs: Batch
    undecodable: set[Path]


def encode_pairs(job: EncodeJob, say: Say) -> Encoded:
    """Encode pairs, or find those that an earlier call has written. Kill it at any moment: at most a shard is lost.

    Raises:
        TrainingError: There is not enough memory or room on the disk for all, or no picture can be decoded.
        OSError: The cache cannot be written.
    """
    key = _key(job)
    folder = job.folder / key
    folder.mkdir(parents=True, exist_ok=True)
    clear_folder(folder)
    _check_room(job, folder)
    whole: Batch | None = None
    undecodable: set[Path] = set()
    for shard in _shards(job, folder, say):
        if whole is None:
            # Filled shard by shard: joining them at the end would take the memory twice.
            whole = Batch(*(t.new_empty(job.total, *t.shape[1:]) for t in shard.pairs.tensors))
        for all_of, some in zip(whole.tensors, shard.pairs.tensors, strict=True):
            all_of[shard.start : shard.start + len(some)] = some
        undecodable |= shard.undecodable
    assert whole is not None, "there is at least one pair"
    return Encoded(whole, undecodable)


def _shards(job: EncodeJob, folder: Path, say: Say) -> Iterator[_Shard]:
    missing: list[int] = []
    damaged = 0
    for start in range(0, job.total, SHARD):
        path = _path(folder, start)
        if not path.exists():
            missing.append(start)
        elif shard := _read(path, start):
            yield shard
        else:
            missing.append(start)
            damaged += 1
    if damaged:
        say(f"{damaged} of {-(-job.total // SHARD)} files in {folder} are damaged; their pictures are encoded again")
    yield from _encoded(job, folder, missing, say)


def _encoded(job: EncodeJob, folder: Path, missing: list[int], say: Say) -> Iterator[_Shard]:
    undecodable: set[Path] = set()
    positions = (place for start in missing for place in range(start, min(start + SHARD, job.total)))
    # One reader for all shards that are missing: processes take seconds to start.
    batches = read_pairs(job.crops, positions, READ_TOGETHER, job.workers, undecodable)
    done = -(-job.total // SHARD) - len(missing)
    with followed(f"encoding pictures, {SHARD} pairs each:", total=done + len(missing), done=done, say=say) as tell:
        for start in missing:
            # Each shard tells of its own pictures, for runs that find it there.
            undecodable.clear()
            parts = [
                encode_batch(job.autoencoder, low, high, job.device, with_pictures=job.with_pictures)
                for low, high in islice(batches, -(-min(SHARD, job.total - start) // READ_TOGETHER))
            ]
            pairs = Batch(*(torch.cat(columns).cpu() for columns in zip(*(p.tensors for p in parts), strict=True)))
            shard = _Shard(start, pairs, set(undecodable))
            _write(_path(folder, start), shard)
            tell("")
            yield shard


def _path(folder: Path, start: int) -> Path:
    return folder / f"{start:07}.pairs"


def _kind(path: Path) -> str:
    return f"encoded pairs {path.parent.name}/{path.name}"


def _write(path: Path, shard: _Shard) -> None:
    tensors: dict[str, Tensor] = dict(zip(_FIELDS, (t.contiguous() for t in shard.pairs.tensors), strict=True))
    names = json.dumps(sorted(map(str, shard.undecodable)))
    write_sealed(path, _kind(path), save(tensors | {_PLACES: torch.tensor(list(names.encode()), dtype=torch.uint8)}))


def _read(path: Path, start: int) -> _Shard | None:
    """A shard, or None where it is not what was written: then it is made again."""
    try:
        content = read_sealed(path, _kind(path))
    except OSError:
        return None
    if content is None:
        return None
    tensors = load(bytes(content))
    names = cast(list[str], json.loads(bytes(cast(Any, tensors[_PLACES]).tolist())))
    return _Shard(start, Batch(*(tensors[name] for name in _FIELDS)), set(map(Path, names)))


def _check_room(job: EncodeJob, folder: Path) -> None:
    """See that the disk takes the pairs that are missing, and the memory all of them.

    Raises:
        TrainingError: One of them does not.
    """
    size = job.total * _pair_bytes(job)
    there = sum(path.stat().st_size for path in folder.iterdir())
    free, memory = shutil.disk_usage(folder).free, free_memory()
    for needed, room, where in ((size - there, free, f"on the disk of {folder}"), (size, memory, "of memory")):
        if room is not None and needed > room:
            raise TrainingError(
                f"{job.total:,} cached pairs take {size / 1e9:.1f} GB, but there are {room / 1e9:.1f} GB {where}; give "
                "fewer --cached-pairs, or 0 for fresh ones in every step"
            )


def _pair_bytes(job: EncodeJob) -> int:
    """Bytes of a pair: mean and deviation of the low latent, the high one with four times as many cells, a picture."""
    pixels, cell = job.crops.recipe.height * job.crops.recipe.width, job.autoencoder.cell_px
    latents = job.autoencoder.channels * pixels // cell**2 * (1 + 1 + 4) // 4
    return latents * 4 + (3 * pixels if job.with_pictures else 0)


def _key(job: EncodeJob) -> str:
    # Times too: a picture that was painted over may keep its size.
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in job.crops.paths]
    recipe = asdict(job.crops.recipe)
    made_from = [LAYOUT, job.autoencoder.sha256, files, recipe, job.crops.seed, job.total, job.with_pictures]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
