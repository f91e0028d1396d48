"""The world of the demo model: coloured shapes on a plain background, and the sentences that describe them.

A `Description` is what a caption says; a `Scene` adds where things are. Lengths are fractions of the picture's side
and y grows downwards, so one scene is the same picture at every size.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 218, 50),
    "purple": (130, 50, 175),
    "orange": (250, 130, 25),
    "cyan": (50, 200, 225),
    "pink": (250, 125, 190),
}
BACKGROUNDS = {"white": (245, 245, 245), "black": (15, 15, 15), "gray": (128, 128, 128)}
SHAPES = ("circle", "square", "triangle", "star", "diamond")
SIZES = ("small", "large")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""The first thing lies on this side (x, y) of the second."""

HELD_OUT_SHARE = 0.05
PAIR_OFFSET, PAIR_JITTER, PAIR_RADIUS = 0.235, 0.025, (0.155, 0.175)
LONE_JITTER, LONE_RADIUS = 0.05, {"small": (0.11, 0.13), "large": (0.29, 0.33)}


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape; `size` is None where the caption does not say it (in a pair)."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What a caption says: one thing and no relation, or two things and the relation of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str


@dataclass(frozen=True, slots=True)
class Place:
    """Centre (x, y) and radius, in fractions of the picture's side."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A description and one place for each of its things."""

    description: Description
    places: tuple[Place, ...]


def caption(scene: Scene | Description) -> str:
    """The one sentence for this scene: `caption(parse(text)) == text` up to "a orange" (it writes "an orange")."""
    description = scene.description if isinstance(scene, Scene) else scene
    words: list[str] = []
    for number, thing in enumerate(description.things):
        if number:
            words.append(str(description.relation))
        kind = f"{thing.size} {thing.colour}" if thing.size else thing.colour
        words.append(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} {thing.shape}")
    return " ".join(words) + f" on a {description.background} background"


def parse(text: str) -> Description:
    """The description behind `text`. Raises ValueError outside the grammar, naming the first word that does not fit."""
    words = text.lower().split()
    position = 0

    def take(*choices: str) -> str:
        nonlocal position
        for choice in choices:
            length = len(choice.split())
            if " ".join(words[position : position + length]) == choice:
                position += length
                return choice
        found = repr(words[position]) if position < len(words) else "the end"
        raise ValueError(f"caption {text!r}: at word {position + 1} came {found}; expected one of {', '.join(choices)}")

    def take_thing(sizes: tuple[str, ...] = ()) -> Thing:
        take("a", "an")
        word = take(*sizes, *COLOURS)
        size, colour = (word, take(*COLOURS)) if word in sizes else (None, word)
        return Thing(colour, take(*SHAPES), size)

    first = take_thing(SIZES)
    things, relation = (first,), None
    if first.size is None:
        relation = take(*RELATIONS)
        things = (first, take_thing())
    take("on")
    take("a")
    background = take(*BACKGROUNDS)
    take("background")
    if position < len(words):
        raise ValueError(f"caption {text!r}: {' '.join(words[position:])!r} follows the last word; drop it")
    return Description(things, relation, background)


@cache
def all_captions() -> tuple[str, ...]:
    """Every sentence of the grammar in a fixed order: 19 200 pairs and 240 lone things."""
    pairs = product(COLOURS, SHAPES, RELATIONS, COLOURS, SHAPES, BACKGROUNDS)
    lone = product(SIZES, COLOURS, SHAPES, BACKGROUNDS)
    return tuple(
        [caption(Description((Thing(c1, s1), Thing(c2, s2)), rel, bg)) for c1, s1, rel, c2, s2, bg in pairs]
        + [caption(Description((Thing(colour, shape, size),), None, bg)) for size, colour, shape, bg in lone]
    )


def is_held_out(text: str) -> bool:
    """True for about 5 % of the captions, chosen by hash: the model never trains on them."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) < HELD_OUT_SHARE * 2**32


def place(description: Description, rng: np.random.Generator) -> Scene:
    """Give each thing a place: a lone thing near the middle, a pair apart along its relation's axis."""
    if description.relation is None:
        low, high = LONE_RADIUS[str(description.things[0].size)]
        x, y = 0.5 + rng.uniform(-LONE_JITTER, LONE_JITTER, 2)
        return Scene(description, (Place(float(x), float(y), float(rng.uniform(low, high))),))
    side = RELATIONS[description.relation]
    places = []
    for sign in (1, -1):
        x, y = 0.5 + sign * PAIR_OFFSET * np.array(side) + rng.uniform(-PAIR_JITTER, PAIR_JITTER, 2)
        places.append(Place(float(x), float(y), float(rng.uniform(*PAIR_RADIUS))))
    return Scene(description, tuple(places))


@cache
def outline(shape: str) -> np.ndarray:
    """Vertices (n, 2) of a polygon of radius about 1 around the origin. Raises KeyError for the circle."""
    turns = {"triangle": 3, "star": 10, "diamond": 4, "square": 4}[shape]
    angle = 2 * np.pi * np.arange(turns) / turns - np.pi / 2
    reach = {
        "triangle": 1.2,
        "star": np.where(np.arange(10) % 2, 0.5, 1.17),
        "diamond": 1.12,
        "square": 1.24,
    }[shape]
    if shape == "square":
        angle = angle + np.pi / 4
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * np.reshape(reach, (-1, 1))
    return points - (points.max(0) + points.min(0)) / 2


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of a shape of radius 1 at the origin, negative inside. x, y and the result: (...)."""
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    points = outline(shape)
    nearest = np.full(np.broadcast(x, y).shape, np.inf)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, 0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ex * (y - ay) / (ey if ey else 1.0) + ax)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)


def draw(scene: Scene, size_px: int) -> np.ndarray:
    """The scene as uint8 (size_px, size_px, 3), edges antialiased over one pixel."""
    picture = np.empty((size_px, size_px, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.description.background]
    for thing, spot in zip(scene.description.things, scene.places, strict=True):
        reach = 1.25 * spot.radius
        box = [
            slice(max(0, int((c - reach) * size_px) - 1), min(size_px, int((c + reach) * size_px) + 2))
            for c in (spot.y, spot.x)
        ]
        rows, columns = ((np.arange(s.start, s.stop) + 0.5) / size_px for s in box)
        distance = signed_distance(
            thing.shape, (columns[None, :] - spot.x) / spot.radius, (rows[:, None] - spot.y) / spot.radius
        )
        cover = np.clip(0.5 - distance * spot.radius * size_px, 0, 1)[..., None]
        picture[box[0], box[1]] += cover * (np.array(COLOURS[thing.colour]) - picture[box[0], box[1]])
    return np.rint(picture).astype(np.uint8)


def random_scene(rng: np.random.Generator, lone_share: float = 0.1) -> Scene:
    """A scene of a training caption (never a held-out one); `lone_share` of them show one thing."""
    captions = all_captions()
    pairs = len(captions) - len(SIZES) * len(COLOURS) * len(SHAPES) * len(BACKGROUNDS)
    while True:
        low, high = (pairs, len(captions)) if rng.random() < lone_share else (0, pairs)
        text = captions[rng.integers(low, high)]
        if not is_held_out(text):
            return place(parse(text), rng)
