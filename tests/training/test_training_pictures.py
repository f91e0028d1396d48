from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lssgen.errors import TrainingError
from lssgen.training.config import PairRecipe
from lssgen.training.pictures import CentreCrops, RandomCrops, find_pictures, pair_from_crop, read_picture, to_range

RECIPE = PairRecipe(height=32, width=32)


def test_small_and_broken_pictures_are_skipped_with_their_number(images: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "good.png").write_bytes((images / "0.png").read_bytes())
    Image.new("RGB", (31, 64)).save(tmp_path / "thin.jpg")
    (tmp_path / "no.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("")
    found = find_pictures(tmp_path, RECIPE)
    assert [path.name for path in found.paths] == ["good.png"]
    assert "1 skipped because they are smaller than the crop of 32x32 px" in found.note
    assert "1 skipped because they cannot be read as pictures" in found.note


def test_a_folder_in_which_nothing_fits_is_refused(images: Path) -> None:
    with pytest.raises(TrainingError, match=r"no usable pictures in .*; 10 skipped because they are smaller"):
        find_pictures(images, PairRecipe(height=64, width=64))


def test_the_nearest_target_needs_only_half_the_size(images: Path) -> None:
    assert len(find_pictures(images, PairRecipe(height=64, width=64, target="nearest")).paths) == 10


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no folder .*nowhere"):
        find_pictures(tmp_path / "nowhere", RECIPE)


def test_a_phone_picture_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    assert len(find_pictures(tmp_path, PairRecipe(height=64, width=32)).paths) == 1
    assert read_picture(tmp_path / "turned.jpg").size == (32, 64)


def test_a_truncated_picture_is_named(images: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes((images / "0.png").read_bytes()[:-400])
    with pytest.raises(TrainingError, match=r"cut\.png cannot be decoded"):
        read_picture(tmp_path / "cut.png")


def test_item_depends_on_seed_and_position_alone(images: Path) -> None:
    paths = find_pictures(images, RECIPE).paths
    first, again, other = (RandomCrops(paths, RECIPE, seed) for seed in (0, 0, 1))
    _ = first[3], first[99]
    assert torch.equal(first[7][1], again[7][1])
    assert not all(torch.equal(first[i][1], other[i][1]) for i in range(4))


def test_every_epoch_goes_through_all_pictures(images: Path) -> None:
    paths = find_pictures(images, RECIPE).paths
    whole = PairRecipe(height=32, width=40)
    looks = {RandomCrops(paths, whole, 0)[i][1][:, 16, 0].numpy().tobytes() for i in range(len(paths))}
    assert len(looks) == len(paths)


def test_box_averages_two_by_two_pixels() -> None:
    crop = Image.fromarray(np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 4)
    pair = pair_from_crop(crop, PairRecipe(height=4, width=4, downscale="box"))
    expected = pair.high.float().unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert torch.equal(pair.low.float(), expected)


def test_nearest_target_repeats_every_pixel_of_the_crop() -> None:
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    pair = pair_from_crop(crop, PairRecipe(height=8, width=12, target="nearest"))
    assert torch.equal(pair.high, pair.low.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_validation_crops_come_from_the_middle(images: Path) -> None:
    path = images / "0.png"
    _, high = CentreCrops((path,), RECIPE)[0]
    middle = np.array(Image.open(path))[2:34, 4:36]
    assert torch.equal(high, torch.from_numpy(middle).permute(2, 0, 1))


@pytest.mark.parametrize("recipe", [PairRecipe(height=32, width=40), PairRecipe(height=8, width=32)])
def test_crops_that_do_not_halve_into_cells_are_refused(recipe: PairRecipe) -> None:
    with pytest.raises(TrainingError, match="do not halve into whole latent cells of 8 px; give multiples of 16"):
        recipe.check(8)


def test_black_and_white_are_the_ends_of_the_range() -> None:
    assert to_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
