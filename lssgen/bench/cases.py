"""What is measured: runs of a bundle that differ in size, steps, batch and number of stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as counting
from itertools import islice, permutations, product
from typing import Any, cast

from lssgen.choices import choice, refuse_outside
from lssgen.engines.demand import MOST_BATCH
from lssgen.errors import BenchError
from lssgen.plan.options import MOST_SIDE_PX, MOST_STEPS
from lssgen.runtime import Options

PROMPT = "a red star above a blue circle on a white background"
"""Prompt of every case that names none."""

STAGED = "staged"
"""Word in the name of a case that another one beside it does in one stage."""

_GRID = "what to measure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        runs: Timed pictures, or batches, of every case.
        warmup: Runs before them that are not timed.

    Raises:
        BenchError: Too few runs to say anything.
    """

    runs: int = choice(20, help="timed runs of every case", metavar="N", least=3, most=1_000_000)
    warmup: int = choice(2, help="runs before them, which do not count", metavar="N", least=1, most=10_000)

    def __post_init__(self) -> None:
        refuse_outside(self, BenchError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Every combination of these is a case; empty leaves the bundle's own.

    Attributes:
        sizes: (height, width) of pictures in pixels.
        steps: Steps of the full schedule.
        batches: Pictures painted together.
        engines: Names of engines; empty: the one that the command was given.
        single: True where every case is measured in one stage too.
    """

    sizes: tuple[tuple[int, int], ...] = choice(
        (), help="picture sizes in pixels", group=_GRID, least=1, most=MOST_SIDE_PX, unset="the model's own"
    )
    steps: tuple[int, ...] = choice(
        (), help="steps of the full schedule", metavar="N,...", group=_GRID, least=1, most=MOST_STEPS,
        unset="the model's own",
    )  # fmt: skip
    batches: tuple[int, ...] = choice(
        (1,), help="pictures painted together", metavar="N,...", group=_GRID, least=1, most=MOST_BATCH
    )
    engines: tuple[str, ...] = choice(
        (), name="--on", help="engines, each with the options that it has", metavar="NAME,...", group=_GRID,
        unset="that of --engine",
    )  # fmt: skip
    single: bool = choice(False, help="measure every case in one stage too", group=_GRID)

    def __post_init__(self) -> None:
        refuse_outside(self, BenchError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of run.

    Attributes:
        name: Words that tell it from the others: "256x256, 20 steps, batch 1, staged".
        options: Options of the run.
        engine: Name of the engine; empty: the one of the whole measurement.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    engine: str = ""

    @property
    def run_options(self) -> Options:
        return cast(Options, dict(self.options))


def cases_of(grid: Grid, shared: Mapping[str, Any]) -> tuple[Case, ...]:
    """The cases of a grid, each once, in the order in which they are measured.

    Args:
        grid: What differs.
        shared: Options that every run has; they are in every case's name, so that nothing takes it for another.

    Raises:
        BenchError: One of these options is a side of the grid.
    """
    _refuse_twice(grid, shared)
    stages = ((STAGED, {}), ("one stage", {"start_sigma": 1.0})) if grid.single else (("", {}),)
    found: dict[str, Case] = {}
    places = (grid.sizes or (None,), grid.steps or (None,), grid.batches, stages, grid.engines or ("",))
    for size, steps, batch, (kind, cut), engine in product(*places):
        own: dict[str, Any] = dict(cut)
        if size is not None:
            own |= {"height": size[0], "width": size[1]}
        if steps is not None:
            own["num_inference_steps"] = steps
        own |= {"batch": batch, "num_images": batch}
        words = [
            f"{size[1]}x{size[0]}" if size else "",
            f"{steps} steps" if steps else "",
            f"batch {batch}",
            kind,
            engine,
            *(f"{name} {value}" for name, value in shared.items() if name not in own),
        ]
        name = ", ".join(filter(None, words))
        found[name] = Case(name=name, options={**shared, **own}, engine=engine)
    return tuple(found.values())


def _refuse_twice(grid: Grid, shared: Mapping[str, Any]) -> None:
    sides = {
        "--batches": ("batch", "num_images"),
        "--sizes": ("height", "width") if grid.sizes else (),
        "--steps": ("num_inference_steps",) if grid.steps else (),
    }
    for flag, names in sides.items():
        for name in names:
            if name in shared:
                raise BenchError(f"{name} is a side of the grid; say it with {flag} alone, and not with --set too")


def wordings(prompt: str, count: int) -> Sequence[str]:
    """A prompt in so many wordings: the same words in other orders.

    A pipeline remembers the prompts that it has encoded, so repeating one would measure a run without its text
    encoder; and another prompt could have another length. Few words have few orders: then they come again with a blank
    more at the end, which encoders hardly notice and pipelines do.
    """
    orders = list(islice(_orders(prompt), count))
    return list(islice((order + " " * blanks for blanks in counting() for order in orders), count))


def _orders(prompt: str) -> Iterator[str]:
    """The orders of its words, each once: a word that comes twice makes some of them alike."""
    seen: set[str] = set()
    for words in permutations(prompt.split()):
        order = " ".join(words)
        if order not in seen:
            seen.add(order)
            yield order
