"""Training pictures and the pairs cut from them: a low-resolution picture and the same at twice the size."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lssgen.errors import TrainingError
from lssgen.images import PictureError, read_picture, upright_size
from lssgen.training.config import Downscale, PairRecipe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

RESAMPLING: Mapping[Downscale, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """The usable pictures of a folder, in a fixed order, and in words what was left out.

    That a picture can be decoded shows only when it is.
    """

    folder: Path
    paths: tuple[Path, ...]
    note: str


def find_pictures(folder: Path, recipe: PairRecipe) -> Pictures:
    """List the pictures below `folder` that are large enough. Reads headers only.

    Raises:
        TrainingError: There is no such folder, or no picture in it fits.
    """
    if not folder.is_dir():
        raise TrainingError(f"no folder {folder}; give the folder with the training pictures")
    height, width = recipe.crop
    fitting: list[Path] = []
    small = 0
    unreadable: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            size = upright_size(path)
        except PictureError:
            unreadable.append(path)
            continue
        if size[0] >= width and size[1] >= height:
            fitting.append(path)
        else:
            small += 1
    parts = [f"{len(fitting)} pictures in {folder}"]
    if small:
        parts.append(f"{small} skipped because they are smaller than the crop of {width}x{height} px")
    if unreadable:
        first = unreadable[0].relative_to(folder)
        more = " and others" if len(unreadable) > 1 else ""
        parts.append(f"{len(unreadable)} skipped because they cannot be read or are too large: {first}{more}")
    if not fitting:
        raise TrainingError(
            f"no usable {'; '.join(parts).removeprefix('0 ')}; "
            f"training needs {', '.join(SUFFIXES)} of at least {width}x{height} px (or a smaller --crop)"
        )
    return Pictures(folder, tuple(fitting), "; ".join(parts))


@dataclass(frozen=True, slots=True)
class Pair:
    """uint8 pictures, (3, height / 2, width / 2) and (3, height, width)."""

    low: Tensor
    high: Tensor


class RandomCrops(Dataset[tuple[Tensor, Tensor, int, int]]):
    """An endless list of pairs: item i depends on the seed, on i and on the pictures alone, so a training run can start
    anywhere in it.

    Goes through all pictures once in every `len(paths)` items, each time in another order. A picture that cannot be
    decoded is passed over: the next one in that order stands in for it.

    An item is low and high picture, uint8, its number, and the number of pictures that were passed over for it.
    """

    def __init__(self, paths: tuple[Path, ...], recipe: PairRecipe, seed: int) -> None:
        self.paths, self.recipe, self.seed = paths, recipe, seed
        self._known_bad: set[int] = set()

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, int, int]:
        for passed, index in enumerate(self._order(position)):
            if index in self._known_bad:
                continue
            try:
                pair = self._cut(_large_enough(self.paths[index], self.recipe), position)
            except TrainingError:
                # Each process remembers its own, so that a damaged picture is not decoded once an epoch.
                self._known_bad.add(index)
            else:
                return pair.low, pair.high, position, passed
        # Said by `passed_over`: an error of one of DataLoader's processes would arrive as a traceback.
        high = torch.zeros(3, self.recipe.height, self.recipe.width, dtype=torch.uint8)
        return high[:, ::2, ::2], high, position, len(self.paths)

    def passed_over(self, position: int, count: int) -> list[Path]:
        """The first `count` pictures of those that are tried for an item.

        Raises:
            TrainingError: These are all.
        """
        if count == len(self.paths):
            raise TrainingError(f"none of the {count} training pictures can be decoded; repair them or give others")
        return [self.paths[index] for index in islice(self._order(position), count)]

    def _order(self, position: int) -> Iterator[int]:
        count = len(self.paths)
        epoch, first = divmod(position, count)
        order = shuffled(count, self.seed, epoch)
        return (int(order[(first + further) % count]) for further in range(count))

    def _cut(self, picture: Image.Image, position: int) -> "Pair":
        cut = draw_cut(self.recipe, picture.size, self.seed, position)
        part = picture.crop((cut.left, cut.top, cut.left + cut.width, cut.top + cut.height))
        height, width = self.recipe.crop
        if part.size != (width, height):
            part = part.resize((width, height), Image.Resampling.BICUBIC)
        for turn in cut.turns:
            part = part.transpose(turn)
        return pair_from_crop(part, self.recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What becomes of a picture: a part of it, in pixels, which is shrunk to the crop's size, and then turned."""

    left: int
    top: int
    width: int
    height: int
    turns: tuple[Image.Transpose, ...]


TURNS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE)
"""All eight ways to lay a square are some of these, one after another."""


def draw_cut(recipe: PairRecipe, size: tuple[int, int], seed: int, position: int) -> Cut:
    """The cut of item `position`, from a picture of that width and height, which hold the crop."""
    height, width = recipe.crop
    # 1 and 0 (`shuffled`) keep the two streams apart that begin with one seed.
    rng = np.random.default_rng([seed, 1, position])
    zoom = min(recipe.zoom ** rng.random(), size[0] / width, size[1] / height)
    part = (int(width * zoom), int(height * zoom))
    left, top = (int(rng.integers(whole - side + 1)) for whole, side in zip(size, part, strict=True))
    known = TURNS if height == width else TURNS[:2]  # a transposed crop would have another shape
    turns = tuple(turn for turn in known if recipe.turns and rng.integers(2))
    return Cut(left=left, top=top, width=part[0], height=part[1], turns=turns)


class CentreCrops(Dataset[tuple[Tensor, Tensor]]):
    """One pair from the middle of each picture, for validation."""

    def __init__(self, paths: tuple[Path, ...], recipe: PairRecipe) -> None:
        self.paths, self.recipe = paths, recipe

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        picture = _large_enough(self.paths[position], self.recipe)
        height, width = self.recipe.crop
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        pair = pair_from_crop(picture.crop((left, top, left + width, top + height)), self.recipe)
        return pair.low, pair.high


def pair_from_crop(crop: Image.Image, recipe: PairRecipe) -> Pair:
    """Make the pair from a crop of `recipe.crop` size."""
    if recipe.target == "nearest":
        low, high = crop, crop.resize((recipe.width, recipe.height), Image.Resampling.NEAREST)
    else:
        low, high = crop.resize((recipe.width // 2, recipe.height // 2), RESAMPLING[recipe.downscale]), crop
    return Pair(tensor_of(low), tensor_of(high))


def is_decodable(path: Path, recipe: PairRecipe) -> bool:
    """Whether a picture's contents can be decoded, which is more than its header says."""
    try:
        _large_enough(path, recipe)
    except TrainingError:
        return False
    return True


def _large_enough(path: Path, recipe: PairRecipe) -> Image.Image:
    """A picture that a crop fits into.

    Raises:
        TrainingError: It cannot be decoded, or is smaller than when it was found.
    """
    try:
        picture = read_picture(path)
    except PictureError as error:
        raise TrainingError(f"{error}; repair or remove it") from error
    height, width = recipe.crop
    if picture.width < width or picture.height < height:
        raise TrainingError(f"{path} is smaller than the crop of {width}x{height} px; it has changed since the start")
    return picture


def to_range(pictures: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


# Every item asks for its epoch's order, and a batch may lie in two epochs.
@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers below `count` in this epoch's order."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def tensor_of(image: Image.Image) -> Tensor:
    array: NDArray[Any] = np.array(image)  # a copy: Pillow's memory is read-only, which torch warns of
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
