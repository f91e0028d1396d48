import os
import struct
import subprocess
import sys
import zlib
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_damage import spoil

from lssgen.errors import TrainingError
from lssgen.images import read_picture
from lssgen.training.config import PairRecipe
from lssgen.training.latents import read_pairs
from lssgen.training.pictures import CentreCrops, RandomCrops, find_pictures, pair_from_crop, to_range

RECIPE = PairRecipe(height=32, width=32, turns=False)


def test_small_and_broken_pictures_are_skipped_with_their_number(images: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "good.png").write_bytes((images / "0.png").read_bytes())
    Image.new("RGB", (31, 64)).save(tmp_path / "thin.jpg")
    (tmp_path / "no.png").write_text("not a picture")
    (tmp_path / "notes.txt").write_text("")
    found = find_pictures(tmp_path, RECIPE)
    assert [path.name for path in found.paths] == ["good.png"]
    assert "1 skipped because they are smaller than the crop of 32x32 px" in found.note
    assert "1 skipped because they cannot be read or are too large: no.png" in found.note


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
    with pytest.raises(TrainingError, match=r"cut\.png cannot be read: .*; repair or remove it"):
        CentreCrops((tmp_path / "cut.png",), RECIPE)[0]


def _bomb(path: Path) -> None:
    """A small PNG whose header promises 10,000,000,000 pixels."""
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_a_bomb_a_pipe_and_a_folder_with_a_pictures_name_are_skipped(images: Path, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes((images / "0.png").read_bytes())
    _bomb(tmp_path / "bomb.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    found = find_pictures(tmp_path, RECIPE)
    assert [path.name for path in found.paths] == ["good.png"]
    assert "3 skipped because they cannot be read or are too large: bomb.png and others" in found.note


def test_sixteen_bits_of_grey_keep_their_levels(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    _, high, _, _ = RandomCrops((tmp_path / "deep.png",), RECIPE, 0)[0]
    assert torch.equal(high[0], torch.from_numpy(np.rint(levels / 257).astype(np.uint8)))


@pytest.fixture
def spoilt(images: Path, tmp_path: Path) -> tuple[Path, ...]:
    """Four pictures, of which 1.jpg and 2.jpg have good headers and cannot be decoded."""
    return spoil(images, tmp_path, 4, {1, 2})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_decoded_is_passed_over_and_counted(spoilt: tuple[Path, ...], workers: int) -> None:
    undecodable: set[Path] = set()
    whole = PairRecipe(height=36, width=40, turns=False)
    batches = list(read_pairs(RandomCrops(spoilt, whole, 0), range(8), 4, workers, undecodable))
    looks = {high.numpy().tobytes() for _, batch in batches for high in batch}
    assert undecodable == {spoilt[1], spoilt[2]}
    assert len(looks) == 2


LEFT = """
import sys
from pathlib import Path
from lssgen.training.config import PairRecipe
from lssgen.training.latents import read_pairs
from lssgen.training.pictures import RandomCrops, find_pictures

if __name__ == "__main__":
    recipe = PairRecipe(height=32, width=32)
    crops = RandomCrops(find_pictures(Path(sys.argv[1]), recipe).paths, recipe, 0)
    held = read_pairs(crops, range(10**6), 4, 1, set())
    next(held)
"""


def test_a_program_ends_while_processes_still_read(images: Path) -> None:
    """They pass over SIGTERM, by which Python ends what is left of them before it waits for them."""
    subprocess.run([sys.executable, "-c", LEFT, str(images)], timeout=60, check=True)


def test_nobody_reads_on_after_an_error_that_is_kept(spoilt: tuple[Path, ...]) -> None:
    """Its traceback keeps the loader alive, and the program would wait for the loader's processes when it ends."""
    others = set(active_children())
    kept: list[TrainingError] = []
    try:
        list(read_pairs(RandomCrops(spoilt[1:3], RECIPE, 0), range(2), 2, 1, set()))
    except TrainingError as error:
        kept.append(error)
    assert kept
    assert set(active_children()) == others


def test_what_stands_in_depends_on_the_position_alone(spoilt: tuple[Path, ...]) -> None:
    forwards, backwards = RandomCrops(spoilt, RECIPE, 0), RandomCrops(spoilt, RECIPE, 0)
    back = {position: backwards[position] for position in reversed(range(8))}
    for position in range(8):
        assert all(map(np.array_equal, forwards[position], back[position]))


@pytest.mark.parametrize("workers", [0, 1])
def test_where_no_picture_can_be_decoded_that_is_one_line(spoilt: tuple[Path, ...], workers: int) -> None:
    crops = RandomCrops(spoilt[1:3], RECIPE, 0)
    with pytest.raises(TrainingError, match=r"^none of the 2 training pictures can be decoded; .*$") as caught:
        list(read_pairs(crops, range(2), 2, workers, set()))
    assert "\n" not in str(caught.value)


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
