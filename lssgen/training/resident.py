"""Pairs that are cut on the training device, from pictures that lie there decoded: for a GPU, which no reader of files
keeps busy.

The cuts are those of `RandomCrops`; shrinking is torch's, which differs from Pillow's by a rounding here and there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lssgen.errors import TrainingError
from lssgen.images import PictureError, read_picture
from lssgen.machine import cpus, free_memory
from lssgen.progress import Say
from lssgen.training.autoencoder import Autoencoder
from lssgen.training.config import Downscale, PairRecipe
from lssgen.training.latents import Batch, encode_batch
from lssgen.training.pictures import Cut, draw_cut, shuffled, tensor_of
from lssgen.training.progress import followed

ENCODED_TOGETHER = 32
"""Pairs that go through the encoder together where many are encoded in advance."""

Turn = Callable[[Tensor], Tensor]

_TURNS: Mapping[Image.Transpose, Turn] = {
    Image.Transpose.FLIP_LEFT_RIGHT: lambda part: part.flip(-1),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda part: part.flip(-2),
    Image.Transpose.TRANSPOSE: lambda part: part.transpose(-1, -2),
}


def _smoothed(mode: str) -> Turn:
    return lambda high: _as_bytes(F.interpolate(high.float(), scale_factor=0.5, mode=mode, antialias=True))


HALVINGS: Mapping[Downscale, Turn] = {
    "nearest": lambda high: high[..., 1::2, 1::2],  # the cell whose middle is right of, and below, that of the new one
    "box": lambda high: _as_bytes(F.avg_pool2d(high.float(), 2)),
    "bilinear": _smoothed("bilinear"),
    "bicubic": _smoothed("bicubic"),
}
"""Filters that torch has, by name; each takes uint8 (batch, 3, height, width) and halves both sides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentPictures:
    """Decoded pictures, uint8 (3, height, width) each, and those that could not be decoded."""

    pictures: Sequence[Tensor]
    undecodable: set[Path]


def read_all(paths: Sequence[Path], device: torch.device, say: Say) -> ResidentPictures:
    """Decode all pictures and lay them on the device.

    Raises:
        TrainingError: None can be decoded, or they take more memory than there is.
    """
    pictures: list[Tensor] = []
    undecodable: set[Path] = set()
    taken, room = 0, _room(device)
    with (
        ThreadPoolExecutor(min(8, cpus())) as readers,
        followed("reading pictures:", total=len(paths), done=0, say=say) as tell,
    ):
        for path, picture in zip(paths, readers.map(_decoded, paths), strict=True):
            tell("")
            if picture is None:
                undecodable.add(path)
                continue
            taken += picture.numel()
            if room is not None and taken > room:
                readers.shutdown(cancel_futures=True)
                raise TrainingError(
                    f"{path.parent} holds more pictures than fit into the {room / 1e9:.1f} GB that {device} has for "
                    "them; give fewer or smaller ones, or train without --resident"
                )
            pictures.append(picture.to(device))
    if not pictures:
        raise TrainingError(f"none of the {len(paths)} training pictures can be decoded; repair them or give others")
    return ResidentPictures(pictures=pictures, undecodable=undecodable)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentPairs:
    """Every pair is cut and encoded on the device when its turn comes.

    Attributes:
        bf16: Encode under bfloat16 autocast; what comes out is float32.
    """

    resident: ResidentPictures
    recipe: PairRecipe
    seed: int
    autoencoder: Autoencoder
    device: torch.device
    with_pictures: bool
    bf16: bool
    undecodable: set[Path] = field(default_factory=set[Path])

    def batches(self, first: int, size: int) -> Iterator[Batch]:
        self.undecodable.update(self.resident.undecodable)
        for batch in count(first):
            yield self._encoded(range(batch * size, (batch + 1) * size))

    def in_advance(self, total: int, say: Say) -> Batch:
        """The first `total` pairs, encoded together."""
        starts = range(0, total, ENCODED_TOGETHER)
        parts: list[Batch] = []
        with followed("encoding pairs:", total=len(starts), done=0, say=say) as tell:
            for start in starts:
                parts.append(self._encoded(range(start, min(start + ENCODED_TOGETHER, total))))
                tell("")
        return Batch(*(torch.cat(columns) for columns in zip(*(part.tensors for part in parts), strict=True)))

    def _encoded(self, positions: Sequence[int]) -> Batch:
        low, high = self.pictures(positions)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            batch = encode_batch(self.autoencoder, low, high, self.device, with_pictures=self.with_pictures)
        return Batch(batch.low.float(), batch.low_std.float(), batch.high.float(), batch.pictures)

    def pictures(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Low and high pictures, uint8 (batch, 3, h, w) and (batch, 3, 2 h, 2 w)."""
        crops = torch.stack([self._crop(position) for position in positions])
        if self.recipe.target == "nearest":
            return crops, crops.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return HALVINGS[self.recipe.downscale](crops), crops

    def _crop(self, position: int) -> Tensor:
        pictures = self.resident.pictures
        epoch, place = divmod(position, len(pictures))
        picture = pictures[int(shuffled(len(pictures), self.seed, epoch)[place])]
        height, width = picture.shape[1:]
        return _cut(picture, draw_cut(self.recipe, (width, height), self.seed, position), self.recipe.crop)


def _cut(picture: Tensor, cut: Cut, size: tuple[int, int]) -> Tensor:
    part = picture[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    if part.shape[1:] != size:
        part = _as_bytes(F.interpolate(part[None].float(), size=size, mode="bicubic", antialias=True))[0]
    for turn in cut.turns:
        part = _TURNS[turn](part)
    return part


def _as_bytes(picture: Tensor) -> Tensor:
    return picture.round().clamp(0, 255).to(torch.uint8)


def _decoded(path: Path) -> Tensor | None:
    try:
        return tensor_of(read_picture(path))
    except PictureError:
        return None


def _room(device: torch.device) -> int | None:
    """Half of the memory that is free, in bytes: the training needs some too. None where nobody knows."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    return None if free is None else free // 2
