"""Encoded pairs: made fresh for every step, or gone through again and again."""

import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lssgen.training.autoencoder import Autoencoder
from lssgen.training.machine import reader_died
from lssgen.training.pictures import RandomCrops, shuffled, to_range
from lssgen.training.stopping import TOLD


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

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (self.low, self.low_std, self.high, self.pictures)

    def part(self, start: int, stop: int) -> "Batch":
        return Batch(*(t[start:stop] for t in self.tensors))


class Pairs(Protocol):
    """Where the trainer's batches come from."""

    @property
    def undecodable(self) -> set[Path]:
        """Pictures that were passed over, as they cannot be decoded, in the batches up to now."""
        ...

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
    undecodable: set[Path] = field(default_factory=set[Path])

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        for low, high in read_pairs(self.crops, count(first * size), size, self.workers, self.undecodable):
            yield encode_batch(self.autoencoder, low, high, self.device, with_pictures=self.with_pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPairs:
    """A fixed number of pairs, encoded before the first step and gone through in another order in every epoch."""

    pairs: Batch
    seed: int
    device: torch.device
    undecodable: set[Path] = field(default_factory=set[Path])

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        total = len(self.pairs.low)
        for batch in count(first):
            # A batch may lie in two epochs, and in many where pairs are few: none is cut short.
            places = [divmod(position, total) for position in range(batch * size, (batch + 1) * size)]
            rows = torch.tensor([int(shuffled(total, self.seed, epoch)[index]) for epoch, index in places])
            rows = rows.to(self.pairs.low.device)  # the host, or the training device
            yield Batch(*(t[rows].to(self.device) for t in self.pairs.tensors))


@torch.no_grad()
def encode_batch(
    autoencoder: Autoencoder, low: Tensor, high: Tensor, device: torch.device, *, with_pictures: bool
) -> Batch:
    """Encode uint8 pictures, (batch, 3, h, w) and (batch, 3, 2h, 2w)."""
    low_posterior = autoencoder.encode(to_range(low.to(device)))
    high = high.to(device)
    kept = high if with_pictures else high.new_empty(len(high), 0)
    return Batch(low_posterior.mean, low_posterior.std, autoencoder.encode(to_range(high)).mean, kept)


def read_pairs(
    crops: RandomCrops, positions: Iterable[int], size: int, workers: int, undecodable: set[Path]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Low and high pictures, uint8, of these items of `crops`, `size` at a time.

    Args:
        workers: Processes that read; 0 reads in this one.
        undecodable: Takes up the pictures that were passed over on the way.

    Raises:
        TrainingError: No picture can be decoded, or a process that reads has died.
    """
    own = torch.Generator()  # DataLoader draws a seed for its workers; not from the global generator
    # What is there already belongs to somebody else, and is not to be ended with the readers.
    others = set(active_children())
    items = iter(
        DataLoader(
            crops,
            batch_size=size,
            sampler=_Positions(positions),
            num_workers=workers,
            generator=own,
            worker_init_fn=_leave_signals,
        )
    )
    # A program that ends while they read would send them SIGTERM, which they pass over, and wait for them for ever.
    end = Finalize(None, _end, (items, set(active_children()) - others), exitpriority=0)
    try:
        while True:
            try:
                low, high, places, passed = next(items)
            except StopIteration:
                return
            except (OSError, EOFError) as error:  # a process that died while it handed something over
                raise reader_died(error) from error
            for place, count_of in zip(places.tolist(), passed.tolist(), strict=True):
                undecodable.update(crops.passed_over(place, count_of))
            yield low, high
    finally:
        end()


def _end(items: Any, readers: Iterable[BaseProcess]) -> None:
    """End the processes that read now: an error's traceback may keep the loader, which would end them when it goes."""
    for reader in readers:
        with suppress(RuntimeError):  # one of them has died before, which has been told
            # As the loader itself does it, before they are killed: torch takes a killed one for an accident.
            items._shutdown_workers()
        reader.kill()  # it may be busy for longer than the loader waits
        reader.join()


def _leave_signals(worker: int) -> None:
    """Leave it to the process that trains to hear of signals: many who ask it to stop ask its whole group."""
    del worker
    for number in TOLD:
        signal.signal(number, signal.SIG_IGN)


class _Positions(torch.utils.data.Sampler[int]):
    def __init__(self, positions: Iterable[int]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[int]:
        return iter(self.positions)
