"""Training pictures and the pairs cut from them: a low-resolution picture and the same at twice the size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from lssgen.errors import TrainingError
from lssgen.training.config import Downscale, PairRecipe

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ORIENTATION, TURNED = 0x0112, 5
"""The EXIF tag for how a camera was held; values from 5 on exchange width and height."""

RESAMPLING: Mapping[Downscale, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """The usable pictures of a folder, in a fixed order, and in words what was left out."""

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
    small = unreadable = 0
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        try:
            size = _upright_size(path)
        except (OSError, UnidentifiedImageError):
            unreadable += 1
            continue
        if size[0] >= width and size[1] >= height:
            fitting.append(path)
        else:
            small += 1
    parts = [f"{len(fitting)} pictures in {folder}"]
    if small:
        parts.append(f"{small} skipped because they are smaller than the crop of {width}x{height} px")
    if unreadable:
        parts.append(f"{unreadable} skipped because they cannot be read as pictures")
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


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """An endless list of pairs: item i depends on the seed and on i alone, so a training run can start anywhere in it.

    Goes through all pictures once in every `len(paths)` items, each time in another order.
    """

    def __init__(self, paths: tuple[Path, ...], recipe: PairRecipe, seed: int) -> None:
        self.paths, self.recipe, self.seed = paths, recipe, seed

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        epoch, index = divmod(position, len(self.paths))
        picture = read_picture(self.paths[shuffled(len(self.paths), self.seed, epoch)[index]])
        height, width = self.recipe.crop
        rng = np.random.default_rng([self.seed, 1, position])
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(picture.height - height + 1))
        pair = pair_from_crop(picture.crop((left, top, left + width, top + height)), self.recipe)
        return pair.low, pair.high


class CentreCrops(Dataset[tuple[Tensor, Tensor]]):
    """One pair from the middle of each picture, for validation."""

    def __init__(self, paths: tuple[Path, ...], recipe: PairRecipe) -> None:
        self.paths, self.recipe = paths, recipe

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        picture = read_picture(self.paths[position])
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
    return Pair(_tensor(low), _tensor(high))


def read_picture(path: Path) -> Image.Image:
    """Raises TrainingError, naming the file, if its contents cannot be decoded."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise TrainingError(f"{path} cannot be decoded: {error}; repair or remove it") from error


def to_range(pictures: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The numbers below `count` in this epoch's order."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION, 1) >= TURNED else (width, height)


def _tensor(image: Image.Image) -> Tensor:
    array: NDArray[Any] = np.array(image)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
