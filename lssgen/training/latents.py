"""Encoded pairs: made fresh for every step, or once and kept on disk, where a run that was killed finds them again."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from lssgen.training.autoencoder import Autoencoder
from lssgen.training.pictures import RandomCrops, shuffled, to_range

SHARD, READ_TOGETHER = 32, 8
"""Pairs that are written together, and pairs that go through the encoder together (a divisor of the former)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs on the training device.

    Attributes:
        low, low_std: Posterior of the low pictures in model space, (batch, C, h, w).
        high: Posterior mean of the high pictures, (batch, C, 2h, 2w): what the mean square error against samples of
            the posterior leads to as well, only with less noise on the way.
        pictures: The high pictures, uint8 (batch, 3, height, width); (batch, 0) where no loss looks at them.
    """

    low: Tensor
    low_std: Tensor
    high: Tensor
    pictures: Tensor

    def part(self, start: int, stop: int) -> "Batch":
        return Batch(*(t[start:stop] for t in (self.low, self.low_std, self.high, self.pictures)))


class Pairs(Protocol):
    """Where the trainer's batches come from."""

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        """Batches number `first`, `first` + 1, ... of `size` pairs; the same ones whenever they are asked for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshPairs:
    """Every pair is cut and encoded when its turn comes: no pair is seen twice, and the encoder runs in every step."""

    crops: RandomCrops
    autoencoder: Autoencoder
    device: torch.device
    workers: int
    with_pictures: bool

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        for low, high in _loader(self.crops, count(first * size), size, self.workers):
            yield encode_batch(self.autoencoder, low, high, self.device, with_pictures=self.with_pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPairs:
    """A fixed number of pairs, encoded before the first step and gone through in another order in every epoch."""

    pairs: Batch
    seed: int
    device: torch.device

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        total = len(self.pairs.low)
        for batch in count(first):
            places = [divmod(position, total) for position in range(batch * size, (batch + 1) * size)]
            rows = torch.tensor([int(shuffled(total, self.seed, epoch)[index]) for epoch, index in places])
            p = self.pairs
            yield Batch(*(t[rows].to(self.device) for t in (p.low, p.low_std, p.high, p.pictures)))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeJob:
    """What `encode_pairs` works on.

    Attributes:
        crops: Its first `total` items are encoded.
        folder: Cache; pairs of another VAE, other pictures or another recipe land in other folders below it.
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


def encode_pairs(job: EncodeJob) -> Batch:
    """Encode pairs, or find those that an earlier call has written. Kill it at any moment: at most a shard is lost.

    Returns:
        All pairs, in host memory.
    """
    folder = job.folder / _key(job)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, job.total, SHARD)
    missing = [start for start in starts if not _shard(folder, start).exists()]
    positions = [place for start in missing for place in range(start, min(start + SHARD, job.total))]
    batches = _loader(job.crops, positions, READ_TOGETHER, job.workers)
    for start in tqdm(missing, desc="encoding pictures", unit=f" x {SHARD} pairs", disable=None):
        parts = islice(batches, -(-min(SHARD, job.total - start) // READ_TOGETHER))
        whole = _joined(
            [
                encode_batch(job.autoencoder, low, high, job.device, with_pictures=job.with_pictures)
                for low, high in parts
            ]
        )
        temporary = folder / f".{start:07}.part"
        save_file({name: getattr(whole, name).cpu().contiguous() for name in _FIELDS}, temporary)
        temporary.replace(_shard(folder, start))
    shards = [load_file(_shard(folder, start)) for start in starts]
    return _joined([Batch(**{name: shard[name] for name in _FIELDS}) for shard in shards])


@torch.no_grad()
def encode_batch(
    autoencoder: Autoencoder, low: Tensor, high: Tensor, device: torch.device, *, with_pictures: bool
) -> Batch:
    """Encode uint8 pictures, (batch, 3, h, w) and (batch, 3, 2h, 2w)."""
    low_posterior = autoencoder.encode(to_range(low.to(device)))
    high = high.to(device)
    kept = high if with_pictures else high.new_empty(len(high), 0)
    return Batch(low_posterior.mean, low_posterior.std, autoencoder.encode(to_range(high)).mean, kept)


_FIELDS = ("low", "low_std", "high", "pictures")


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:07}.safetensors"


def _joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(batch, name) for batch in batches]) for name in _FIELDS))


def _loader(crops: RandomCrops, positions: Iterable[int], size: int, workers: int) -> Iterator[list[Tensor]]:
    own = torch.Generator()  # DataLoader draws a seed for its workers; not from the global generator
    yield from DataLoader(crops, batch_size=size, sampler=_Positions(positions), num_workers=workers, generator=own)


class _Positions(torch.utils.data.Sampler[int]):
    def __init__(self, positions: Iterable[int]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)


def _key(job: EncodeJob) -> str:
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in job.crops.paths]
    recipe = asdict(job.crops.recipe)
    made_from = [job.autoencoder.sha256, files, recipe, job.crops.seed, job.total, job.with_pictures]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
