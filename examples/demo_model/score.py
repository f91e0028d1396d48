"""Judge whether a picture shows what its caption says, by measurement: count, colours, shapes, sizes, relation."""

from dataclasses import dataclass

import numpy as np
from scenes import BACKGROUNDS, COLOURS, LONE_RADIUS, RELATIONS, SHAPES, parse, signed_distance

BACKGROUND_TOLERANCE = 40.0
"""Euclidean RGB distance under which a pixel is background."""
SPECK_SHARE = 0.004
"""Regions smaller than this share of the picture are ignored; the smallest shape covers 2 %."""
LEAST_IOU = 0.80
"""Overlap of a region with the best template under which it is not a shape at all."""
TEMPLATE, REACH = 64, 1.1
"""Templates are squares of this many samples, reaching this many square roots of the area to each side."""
GRID = 128
"""Pictures whose side is a multiple of this are averaged down to it first."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which parts of the caption the picture fulfils; with a wrong number of things only `background` can be true."""

    background: bool
    count: bool
    colours: bool
    shapes: bool
    sizes: bool
    relation: bool

    @property
    def right(self) -> bool:
        """True when all of it is right."""
        return self.background and self.count and self.colours and self.shapes and self.sizes and self.relation


@dataclass(frozen=True, slots=True)
class Found:
    """One region of the picture; centre (x, y) and radius in fractions of the side, colour and shape by name."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


def nearest(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    """Name of the palette colour closest to rgb: (3,)."""
    return min(palette, key=lambda name: float(np.square(rgb - np.array(palette[name])).sum()))


def border_colour(picture: np.ndarray) -> np.ndarray:
    """Median colour (3,) of the outermost pixels of picture: (h, w, 3)."""
    edges = [picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]]
    return np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]).astype(np.float32), 0)


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts (4 neighbours) of mask: (h, w) bool, as masks of the same shape without specks."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = labels.copy()
        for axis in (0, 1):
            for flip in (False, True):
                spread = _sweep(spread, axis, flip)
        if np.array_equal(spread, labels):
            break
        labels = spread
    numbers, sizes = np.unique(labels[labels > 0], return_counts=True)
    return [labels == number for number, size in zip(numbers, sizes, strict=True) if size > SPECK_SHARE * mask.size]


def _sweep(labels: np.ndarray, axis: int, flip: bool) -> np.ndarray:
    """Carry the largest label along each unbroken run of `axis`, one row at a time."""
    lines = np.moveaxis(labels, axis, 0)
    order = range(len(lines) - 2, -1, -1) if flip else range(1, len(lines))
    for row in order:
        before = lines[row + 1 if flip else row - 1]
        lines[row] = np.where(lines[row] > 0, np.maximum(lines[row], before), 0)
    return labels


def _normalised(mask: np.ndarray) -> np.ndarray:
    """The mask moved to its centroid and scaled to equal area, as (TEMPLATE, TEMPLATE), nearest neighbour.

    Centroid and area hardly change when a corner is rounded off; a bounding box does.
    """
    rows, columns = np.nonzero(mask)
    line = np.linspace(-REACH, REACH, TEMPLATE) * np.sqrt(len(rows))
    picks = [np.rint(spots.mean() + line).astype(int) for spots in (rows, columns)]
    inside = [(pick >= 0) & (pick < size) for pick, size in zip(picks, mask.shape, strict=True)]
    clipped = [pick.clip(0, size - 1) for pick, size in zip(picks, mask.shape, strict=True)]
    return mask[np.ix_(*clipped)] & inside[0][:, None] & inside[1][None, :]


def _templates() -> dict[str, np.ndarray]:
    """Shape name to its normalised mask (TEMPLATE, TEMPLATE)."""
    line = np.linspace(-1.5, 1.5, 601)
    return {shape: _normalised(signed_distance(shape, line[None, :], line[:, None]) <= 0) for shape in SHAPES}


TEMPLATES = _templates()


def identify(picture: np.ndarray, region: np.ndarray, around: np.ndarray) -> Found:
    """Name a region by its inner colour and by the template that overlaps it best ("none" under LEAST_IOU).

    The outline is where the picture is halfway between the background `around`, (3,), and the inner colour.
    """
    inner = region.copy()
    for _ in range(max(1, region.shape[0] // 64)):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    colour = np.median(picture[inner if inner.any() else region].astype(np.float32), 0)
    towards = (colour - around) / max(1.0, float(np.square(colour - around).sum()))
    region = region & ((picture - around) @ towards > 0.5)
    if not region.any():
        return Found(nearest(colour, COLOURS), "none", 0.5, 0.5, 0.0)
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    form = _normalised(region)
    overlaps = {name: (form & mask).sum() / (form | mask).sum() for name, mask in TEMPLATES.items()}
    best = max(overlaps, key=lambda name: float(overlaps[name]))
    return Found(
        colour=nearest(colour, COLOURS),
        shape=best if overlaps[best] >= LEAST_IOU else "none",
        x=(columns[0] + columns[-1] + 1) / 2 / region.shape[1],
        y=(rows[0] + rows[-1] + 1) / 2 / region.shape[0],
        radius=float(max(height, width)) / 2 / region.shape[0],
    )


def score(picture: np.ndarray, prompt: str) -> Verdict:
    """Compare picture, uint8 (h, w, 3) and square, with the caption `prompt`. Raises ValueError outside the grammar."""
    said = parse(prompt)
    side = picture.shape[0]
    if side > GRID and side % GRID == 0:
        picture = picture.reshape(GRID, side // GRID, GRID, side // GRID, 3).mean((1, 3))
    around = border_colour(picture)
    background = nearest(around, BACKGROUNDS) == said.background and bool(
        np.abs(around - np.array(BACKGROUNDS[said.background])).max() < BACKGROUND_TOLERANCE
    )
    away = np.sqrt(np.square(picture.astype(np.float32) - around).sum(-1)) > BACKGROUND_TOLERANCE
    found = [identify(picture, region, around) for region in regions(away)]
    if len(found) != len(said.things):
        return Verdict(background, False, False, False, False, False)
    relation = True
    if said.relation:
        axis = 0 if RELATIONS[said.relation][0] else 1
        found.sort(key=lambda thing: (thing.x, thing.y)[axis], reverse=sum(RELATIONS[said.relation]) > 0)
        across, along = sorted((abs(found[0].x - found[1].x), abs(found[0].y - found[1].y)))
        relation = along > 2 * across and along == (abs(found[0].x - found[1].x), abs(found[0].y - found[1].y))[axis]
    between = (LONE_RADIUS["small"][1] + LONE_RADIUS["large"][0]) / 2
    pairs = list(zip(found, said.things, strict=True))
    return Verdict(
        background=background,
        count=True,
        colours=all(thing.colour == want.colour for thing, want in pairs),
        shapes=all(thing.shape == want.shape for thing, want in pairs),
        sizes=all(want.size is None or (thing.radius > between) == (want.size == "large") for thing, want in pairs),
        relation=bool(relation),
    )
