"""What stands behind the upsamplers that are shipped: the photographs, the judging, and the pictures in the pages."""

import sys
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import upsamplers as judging
from lssgen.training.report import contact_sheet

ROOM = Path(__file__).parents[2] / "examples" / "upsamplers"


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """Imports of the example's own modules."""
    monkeypatch.syspath_prepend(ROOM)
    yield import_module
    for name in ("photographs", "side_by_side", "ship"):
        sys.modules.pop(name, None)


def test_every_photograph_has_an_author_and_a_licence_and_is_used_once(room: Any) -> None:
    table = room("photographs").photographs()
    assert len({one.name for one in table}) == len(table) == 45
    assert sum(one.use == "held out" for one in table) == 10
    assert {one.use for one in table} == {"train", "held out"}
    assert all(one.author and one.licence for one in table)


def test_what_the_pages_show_may_be_shown(room: Any) -> None:
    about = {one.name: one for one in room("photographs").photographs()}
    shown = room("side_by_side")
    assert all(about[name].licence.startswith(shown.FREE) for name in shown.SHOWN)
    assert all(about[name].use == "held out" for name in shown.SHOWN)


def test_pictures_of_the_pages_are_cut_at_the_right_places(room: Any) -> None:
    """Every cell of the sheet has a colour of its own."""
    cut = room("side_by_side")
    ways, names = ["bilinear", *cut.WAYS], ["first", *cut.SHOWN, "last"]
    columns = {
        way: torch.stack([torch.full((3, 8, 8), (column * 10 + row) / 127.5 - 1) for row in range(len(names))])
        for column, way in enumerate(ways)
    }
    made = cut.side_by_side(contact_sheet(columns), ways, names)
    step = 8 + cut.GAP_PX
    for column, way in enumerate(cut.WAYS):
        for row, name in enumerate(cut.SHOWN):
            grey = ways.index(way) * 10 + names.index(name)
            assert made.getpixel((column * step + 4, cut.CAPTION_PX + row * step + 4)) == (grey, grey, grey)


def test_a_cosine_that_is_embedded_is_the_same_cosine_at_twice_the_size() -> None:
    def wave(side: int) -> torch.Tensor:
        return torch.cos(torch.pi * 3 * (torch.arange(side) + 0.5) / side).expand(1, 1, side, side)

    torch.testing.assert_close(judging.dct_embedded(wave(8)), wave(16), atol=1e-5, rtol=0)


def test_large_photographs_are_shrunk_and_small_ones_cut_to_whole_cells(tmp_path: Path) -> None:
    Image.new("RGB", (2100, 2048)).save(tmp_path / "large.png")
    Image.new("RGB", (451, 300)).save(tmp_path / "small.png")
    shapes = {name: tuple(photo.shape) for name, photo in judging.photographs(tmp_path).items()}
    assert shapes == {"large": (3, 1024, 1024), "small": (3, 288, 448)}


def test_the_true_latent_is_without_fault() -> None:
    generator = torch.Generator().manual_seed(0)
    latent, picture = torch.randn(1, 4, 16, 16, generator=generator), torch.rand(1, 3, 128, 128, generator=generator)
    found = judging.judged(latent, latent, picture, picture, picture.flip(-1))
    assert (found.error, found.cast, found.detail) == (0, 0, 1)


def test_a_cast_and_a_blur_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    latent, photo = torch.randn(1, 4, 16, 16, generator=generator), torch.rand(1, 3, 128, 128, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(photo, 3, 1, 1)
    assert judging.judged(latent, latent, photo + 0.1, photo, photo).cast == pytest.approx(25.5, rel=1e-4)
    assert judging.judged(latent, latent, blurred, photo, photo).detail < 0.3


def test_a_mosaic_is_seen_in_its_column() -> None:
    noise = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    stones = noise * 0.5 + 0.25 * (torch.arange(256) % 4 == 0)
    found = judging.grids(contact_sheet({"noise": noise, "stones": stones}), ("noise", "stones"))
    assert found["noise"] == pytest.approx(1, abs=0.15)  # white noise has the same energy everywhere
    assert found["stones"] > 5  # across is 1, since the stones are columns
