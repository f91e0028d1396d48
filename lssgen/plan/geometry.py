"""How many stages a picture takes, how large they are and how many steps each gets.

Source: LSSGen, arXiv 2507.16154, and the behaviour of its published pipelines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice, product
from math import log2

from lssgen.errors import PlanError
from lssgen.plan.facts import ModelFacts
from lssgen.plan.options import MOST_PIXELS, MOST_SIDE_PX, PlanOptions


@dataclass(frozen=True, slots=True)
class StageSize:
    """One stage before it has a schedule.

    Attributes:
        height, width: Latent size in cells.
        steps: Length of its full schedule.
    """

    height: int
    width: int
    steps: int


def stage_sizes(facts: ModelFacts, options: PlanOptions) -> tuple[StageSize, ...]:
    """Sizes and step counts of all stages, smallest first.

    Every stage doubles the one before in both axes. The first one's short side is at least `min_resolution`, and less
    than twice that.

    Raises:
        PlanError: The picture is smaller than `min_resolution` or its size does not divide, or a stage gets no steps.
            The sizes that it advises are accepted.
    """
    if fault := _fault(facts, options):
        raise PlanError(f"{fault}: {_advice(facts, options)}")
    sizes = _sizes(facts, options)
    if options.stage_steps and len(options.stage_steps) != len(sizes):
        raise PlanError(
            f"stage_steps has {len(options.stage_steps)} numbers, but the run has {len(sizes)} stages; give one for "
            "each"
        )
    for size in sizes:
        if size.steps < 1:
            raise PlanError(
                f"the stage of {size.width * facts.cell_px} x {size.height * facts.cell_px} px gets no step out of "
                f"{options.requested_steps}: ask for more steps, do not shorten, or raise min_resolution"
            )
    return sizes


def _sizes(facts: ModelFacts, options: PlanOptions) -> tuple[StageSize, ...]:
    """The stages of a picture whose size has no fault, of steps perhaps none."""
    unit = _unit(facts, options)
    height, width = _fitting(options.height, unit) // facts.cell_px, _fitting(options.width, unit) // facts.cell_px
    cells = [(height >> halvings, width >> halvings) for halvings in reversed(range(_doublings(options) + 1))]
    said = options.stage_steps
    # Numbers of steps for more or fewer stages are refused by `stage_sizes`, and do not matter to a size's faults.
    steps = said if len(said) == len(cells) else [_steps(size, facts.cell_px, options) for size in cells]
    return tuple(StageSize(*size, each) for size, each in zip(cells, steps, strict=True))


def _fault(facts: ModelFacts, options: PlanOptions) -> str:
    """Why a picture cannot have this size; empty where it can."""
    asked = f"{options.width} x {options.height}"
    if min(options.height, options.width) < options.min_resolution:
        return f"{asked} px is below min_resolution, {options.min_resolution} px"
    unit, stages = _unit(facts, options), _doublings(options) + 1
    height, width = _fitting(options.height, unit), _fitting(options.width, unit)
    if (height, width) != (options.height, options.width) and facts.oversize == "refuse":
        several = f"{stages} stages" if stages > 1 else "1 stage"
        return f"{facts.name} in {several} needs sides that are multiples of {unit} px; {asked} is not"
    if not height or not width:
        return f"{facts.name} needs sides of at least {unit} px; got {asked}"
    longest = facts.longest_side * facts.cell_px
    if longest and max(height, width) > longest:
        return f"{facts.name} knows positions up to {longest} px a side; {width} x {height} is larger"
    return ""


def _advice(facts: ModelFacts, options: PlanOptions) -> str:
    """What to ask for instead, of which `_fault` finds nothing wrong."""
    ways: list[str] = []
    asked, most = (options.height, options.width), facts.longest_side * facts.cell_px or MOST_SIDE_PX
    near = nearest_sizes(asked, lambda size: _accepted(facts, options, size), _unit_of(facts), most)
    if near:
        ways.append("use " + " or ".join(f"{width} x {height}" for height, width in near))
    short = min(options.height, options.width)
    if short < options.min_resolution and _runs(facts, replace(options, min_resolution=short)):
        ways.append(f"set min_resolution to {short}")
    if not ways and options.min_resolution < _unit_of(facts):
        ways.append(f"raise min_resolution, which is {options.min_resolution} px, to at least {_unit_of(facts)} px")
    return ", or ".join(ways) or "ask for another size, for more steps, or for fewer stages by a larger min_resolution"


def _runs(facts: ModelFacts, options: PlanOptions) -> bool:
    return not _fault(facts, options) and all(size.steps > 0 for size in _sizes(facts, options))


def _accepted(facts: ModelFacts, options: PlanOptions, size: tuple[int, int]) -> bool:
    """Whether a picture may have a size, without being made smaller."""
    height, width = size
    if height * width > MOST_PIXELS:
        return False
    asked = replace(options, height=height, width=width)
    unit = _unit(facts, asked) if min(size) >= options.min_resolution else 1
    return height % unit == width % unit == 0 and _runs(facts, asked)


def nearest_sizes(
    asked: tuple[int, int], accepted: Callable[[tuple[int, int]], bool], unit: int, most: int
) -> list[tuple[int, int]]:
    """The accepted sizes nearest to the one that was asked for: one that is not larger, and one that is not smaller.

    Args:
        asked: (height, width) in pixels.
        accepted: Whether a size will do.
        unit: Smallest number of pixels by which accepted sides differ; others differ by 2, 4, 8, ... times as many.
        most: Largest number of pixels that a side may have.
    """
    height, width = asked
    nearest_first = sorted(
        product(_candidates(height, unit, most), _candidates(width, unit, most)),
        key=lambda size: (abs(size[0] - height) + abs(size[1] - width), size),
    )
    smaller = [size for size in nearest_first if size[0] <= height and size[1] <= width]
    larger = [size for size in nearest_first if size[0] >= height and size[1] >= width]
    found = [next(filter(accepted, sizes), None) for sizes in (smaller, larger)]
    both = [size for size in found if size is not None]
    return list(dict.fromkeys(both)) or list(islice(filter(accepted, nearest_first), 1))


def _candidates(side: int, unit: int, most: int) -> list[int]:
    """Multiples of the unit around a side, and of 2, 4, 8, ... units, as far as they may be sides."""
    found: set[int] = set()
    step = unit
    while step <= most:
        below = min(side, most) // step * step
        found |= {below, below + step, step}
        step *= 2
    return sorted(side for side in found if 0 < side <= most)


def size_notes(facts: ModelFacts, options: PlanOptions, sizes: tuple[StageSize, ...]) -> tuple[str, ...]:
    """What a user should know about the sizes, one sentence each."""
    notes: list[str] = []
    last = sizes[-1]
    made = (last.width * facts.cell_px, last.height * facts.cell_px)
    if made != (options.width, options.height):
        notes.append(
            f"The picture will be {made[0]} x {made[1]} px, not {options.width} x {options.height}: sides are rounded "
            f"down to multiples of {_unit(facts, options)} px."
        )
    if len(sizes) == 1 and not _is_one_stage(options):
        notes.append(
            f"One stage only: the short side of {min(options.height, options.width)} px is less than twice "
            f"min_resolution ({options.min_resolution} px)."
        )
    if last.steps < options.requested_steps and not options.stage_steps:
        notes.append(
            f"The last stage gets {last.steps} of {options.requested_steps} steps, because its area is below half of "
            f"{options.base_width} x {options.base_height} px; turn shortening off to keep all."
        )
    return tuple(notes)


def _unit_of(facts: ModelFacts) -> int:
    """Pixels of which every stage's sides are multiples."""
    return facts.cell_px * facts.align


def _unit(facts: ModelFacts, options: PlanOptions) -> int:
    """Pixels of which the picture's sides are multiples, so that they can be halved for every stage that runs."""
    return _unit_of(facts) * 2 ** _doublings(options)


def _is_one_stage(options: PlanOptions) -> bool:
    """Whether the run has the last stage only: without later ones, or from a picture that enters there."""
    return options.start_sigma == 1 or options.strength <= options.start_sigma


def _doublings(options: PlanOptions) -> int:
    """How often the size may be halved before the short side falls below `min_resolution`, for the stages that run."""
    if _is_one_stage(options):
        return 0
    # floor(log2), in whole numbers: a float's logarithm may fall short of a power of two.
    return max(0, (min(options.height, options.width) // options.min_resolution).bit_length() - 1)


def _steps(cells: tuple[int, int], cell_px: int, options: PlanOptions) -> int:
    """Steps of a stage: fewer by the binary logarithm of how much smaller than the base size it is, at most all."""
    n = options.requested_steps
    if not options.shorten:
        return n
    wider = options.base_width / (cell_px * cells[1])
    higher = options.base_height / (cell_px * cells[0])
    # log2(2) is 1, all steps; for less it would ask for more than all, and for 1 divide by zero.
    # Floats are floored and then cut to int, as published: 10 steps at 512 x 768 are 10 // 1.415 = 7.
    return int(n // log2(max(2, wider * higher)))


def _fitting(size: int, unit: int) -> int:
    return size // unit * unit
