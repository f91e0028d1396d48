"""How many stages a picture takes, how large they are and how many steps each gets.

Source: LSSGen, arXiv 2507.16154, and the behaviour of its published pipelines.
"""

from dataclasses import dataclass
from math import log2

from lssgen.errors import PlanError
from lssgen.plan.facts import ModelFacts
from lssgen.plan.options import PlanOptions


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
    """
    doublings = _doublings(options)
    unit = facts.cell_px * facts.align * 2**doublings
    height, width = _fitting(options.height, unit), _fitting(options.width, unit)
    if (height, width) != (options.height, options.width) and facts.oversize == "refuse":
        raise PlanError(
            f"{facts.name} in {doublings + 1} stage{'s' if doublings else ''} needs sides that are multiples of "
            f"{unit} px; {options.height} x {options.width} is not: use {_nearest(options.height, unit)} for the "
            f"height and {_nearest(options.width, unit)} for the width"
        )
    if not height or not width:
        raise PlanError(f"{facts.name} needs sides of at least {unit} px; got {options.height} x {options.width}")
    longest = facts.longest_side * facts.cell_px
    if longest and max(height, width) > longest:
        raise PlanError(
            f"{facts.name} knows positions up to {longest} px a side; {height} x {width} is larger: ask for a smaller "
            "picture"
        )
    if options.start_sigma == 1:
        doublings = 0
    sizes: list[StageSize] = []
    for halvings in reversed(range(doublings + 1)):
        cells = (height // facts.cell_px >> halvings, width // facts.cell_px >> halvings)
        steps = _steps(cells, facts.cell_px, options)
        if steps < 1:
            raise PlanError(
                f"the stage of {cells[0] * facts.cell_px} x {cells[1] * facts.cell_px} px gets no step out of "
                f"{options.requested_steps}: ask for more steps, do not shorten, or raise min_resolution"
            )
        sizes.append(StageSize(*cells, steps))
    return tuple(sizes)


def size_notes(facts: ModelFacts, options: PlanOptions, sizes: tuple[StageSize, ...]) -> tuple[str, ...]:
    """What a user should know about the sizes, one sentence each."""
    notes: list[str] = []
    last = sizes[-1]
    made = (last.height * facts.cell_px, last.width * facts.cell_px)
    if made != (options.height, options.width):
        notes.append(
            f"The picture will be {made[0]} x {made[1]} px, not {options.height} x {options.width}: sides are rounded "
            f"down to multiples of {facts.cell_px * facts.align * 2 ** _doublings(options)} px."
        )
    if len(sizes) == 1 and options.start_sigma < 1:
        notes.append(
            f"One stage only: the short side of {min(options.height, options.width)} px is less than twice "
            f"min_resolution ({options.min_resolution} px)."
        )
    if last.steps < options.requested_steps:
        notes.append(
            f"The last stage gets {last.steps} of {options.requested_steps} steps, because its area is below half of "
            f"{options.base_height} x {options.base_width} px; turn shortening off to keep all."
        )
    return tuple(notes)


def _doublings(options: PlanOptions) -> int:
    """How often the size may be halved before the short side falls below `min_resolution`."""
    short = min(options.height, options.width)
    if short < options.min_resolution:
        raise PlanError(
            f"{options.height} x {options.width} px is below min_resolution, {options.min_resolution} px: "
            f"ask for a larger picture, or set min_resolution to {short} or less"
        )
    return (short // options.min_resolution).bit_length() - 1


def _steps(cells: tuple[int, int], cell_px: int, options: PlanOptions) -> int:
    """Steps of a stage: fewer by the binary logarithm of how much smaller than the base size it is, at most all."""
    n = options.requested_steps
    if not options.shorten:
        return n
    wider = options.base_width / (cell_px * cells[1])
    higher = options.base_height / (cell_px * cells[0])
    return int(n // log2(max(2, wider * higher)))


def _fitting(size: int, unit: int) -> int:
    return size // unit * unit


def _nearest(size: int, unit: int) -> str:
    below = _fitting(size, unit)
    if below == size:
        return f"{size}"
    return f"{below} or {below + unit}" if below else f"{unit}"
