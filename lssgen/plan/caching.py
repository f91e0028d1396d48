"""Steps that take no evaluation: their estimate is extrapolated from earlier ones, as numbers in the plan.

A cached step uses, in the place of an estimate of its own, the line through the last two that were evaluated, at its
own timestep: Taylor's first order, of whatever the solver remembers (the network's output, or the clean picture); or,
of order 0, the last one as it is. That is a weighted sum of estimates that the step graph carries anyway, and a step is
affine in the latent and in estimates. So a cached step needs no call at all: it is done in the row of the evaluated
step before it, and where a later step looks back on it, it looks back on the estimates that it was made of. Nothing but
numbers is left for a runtime.

Source: Liu et al. 2025, arXiv 2503.06923 (TaylorSeer, there inside the network); the masks are those of cache-dit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from math import hypot

from lssgen.errors import PlanError
from lssgen.plan.table import Stage, Step

NO_CACHE = "off"
"""Mask of a run in which every step is evaluated."""

FULL, CACHED = "f", "c"
"""Letters of a mask that is spelt out: a step that is evaluated, and one that is not."""

OPENING = 2
"""Steps of every stage that are always evaluated, since a line needs two points."""

Combination = Mapping[int, float]
"""Weights of estimates, by the index of the step that made them."""


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask for schedules of any length.

    Attributes:
        runs: Steps evaluated and then cached, in turn, out of `of`.
        of: Length of the schedule that they were made for.
    """

    runs: tuple[tuple[int, int], ...]
    of: int = 28

    def cached(self, steps: int) -> tuple[bool, ...]:
        """The mask of a stage with so many steps, stretched; what must be evaluated is."""
        found: list[bool] = []
        done = 0
        for index, length in enumerate(chain.from_iterable(self.runs)):
            done += length
            found += [index % 2 == 1] * (round(done * steps / self.of) - len(found))
        return tuple(here and OPENING <= index < steps - 1 for index, here in enumerate(found))


MASKS: Mapping[str, Mask] = {
    "slow": Mask(((8, 1), (3, 2), (3, 2), (2, 2), (1, 3), (1, 0))),
    "medium": Mask(((6, 1), (2, 3), (2, 3), (2, 3), (2, 3), (1, 0))),
    "fast": Mask(((6, 1), (1, 3), (1, 4), (1, 5), (1, 4), (1, 0))),
    "ultra": Mask(((4, 2), (1, 5), (1, 6), (1, 7), (1, 0))),
}
"""Masks by the names that cache-dit gave them, for 28 steps: 18, 15, 11 and 8 of them are evaluated."""


def cached_stages(stages: Sequence[Stage], text: str, order: int, cell_px: int) -> tuple[Stage, ...]:
    """The stages of a run, with cached steps done in the rows before them.

    Args:
        stages: Stages whose steps are all evaluated, smallest first.
        text: What `PlanOptions.cached_steps` says.
        order: Order of the extrapolation, 0 or 1.
        cell_px: Pixels along one side of a latent cell, for messages.

    Raises:
        PlanError: The mask does not fit.
    """
    if text == NO_CACHE:
        return tuple(stages)
    places = [f"the stage of {stage.width * cell_px} x {stage.height * cell_px} px" for stage in stages]
    masks = stage_masks(text, [(len(stage.steps), where) for stage, where in zip(stages, places, strict=True)])
    found = tuple(_cached(stage, mask, order) for stage, mask in zip(stages, masks, strict=True))
    for stage, mask, where in zip(found, masks, places, strict=True):
        # Masks with a name give way; one that was spelt out is not what was asked for.
        if text not in MASKS and stage.cached_steps < sum(mask):
            raise PlanError(
                f"cached_steps caches a step of {where} where the guidance branches have just changed; steps are "
                "extrapolated from two with their own branches, so make those f, or leave skip-layer guidance off"
            )
    return found


def _cached(stage: Stage, cached: Sequence[bool], order: int) -> Stage:
    steps = with_cached(stage.steps, cached, order)
    ends = accumulate(1 + len(step.cached) for step in steps)
    return replace(stage, steps=steps, levels=tuple(stage.levels[end - 1] for end in ends))


def stage_masks(text: str, stages: Sequence[tuple[int, str]]) -> tuple[tuple[bool, ...], ...]:
    """What `PlanOptions.cached_steps` says, stage by stage: True for steps that are not evaluated.

    Args:
        text: A name out of `MASKS`, "off", or a word of f and c for every stage, with commas between them.
        stages: Steps of every stage, and words for where it is, smallest first.

    Raises:
        PlanError: It is neither, or does not fit the stages, or caches a step that must be evaluated.
    """
    if text in MASKS:
        return tuple(MASKS[text].cached(steps) for steps, _ in stages)
    if text == NO_CACHE:
        return tuple((False,) * steps for steps, _ in stages)
    words = text.split(",")
    if set("".join(words)) - {FULL, CACHED} or not all(words):
        raise PlanError(
            f"cached_steps is {text[:40]!r}; it must be {NO_CACHE}, {', '.join(MASKS)}, or for every stage a word of "
            f"{FULL} (evaluated) and {CACHED} (cached), as in fffcfcf,ffcff"
        )
    if len(words) != len(stages):
        raise PlanError(f"cached_steps has {len(words)} words, but the run has {len(stages)} stages; give one for each")
    return tuple(_spelt(word, *stage) for word, stage in zip(words, stages, strict=True))


def _spelt(word: str, steps: int, where: str) -> tuple[bool, ...]:
    if len(word) != steps:
        raise PlanError(f"cached_steps has {len(word)} letters for {where}, which takes {steps} steps; give as many")
    cached = tuple(letter == CACHED for letter in word)
    if any(cached[:OPENING]) or cached[-1]:
        raise PlanError(
            f"cached_steps {word} for {where} caches a step that must be evaluated: the first {OPENING}, which the "
            f"others are extrapolated from, and the last; make them {FULL}"
        )
    return cached


def with_cached(steps: Sequence[Step], cached: Sequence[bool], order: int = 1) -> tuple[Step, ...]:
    """The rows of a stage with some steps done in the rows before them.

    A step that draws noise, and cached steps behind it that do, draw once: a sum of Gaussian numbers is one.

    Args:
        steps: A row for every step.
        cached: True for those that are not to be evaluated. A step at which the guidance branches or their weights are
            not what they were at the two evaluations before it is evaluated all the same.
        order: Order of the extrapolation, 0 or 1.

    Returns:
        A row for every evaluation, at least as many as `cached` has False.
    """
    estimates: list[Combination] = []
    full: list[int] = []
    groups: list[list[int]] = []
    for index, step in enumerate(steps):
        made_of = _line(steps, full, step, order) if cached[index] else None
        if made_of is None:
            full.append(index)
            groups.append([index])
            estimates.append({index: 1.0})
        else:
            groups[-1].append(index)
            estimates.append(made_of)
    return tuple(_row([steps[index] for index in group], group, estimates, full) for group in groups)


def _line(steps: Sequence[Step], full: Sequence[int], at: Step, order: int) -> Combination | None:
    """A cached step's estimate; None where there are no two points for a line."""
    near = full[-1]
    # PNDM evaluates one timestep twice.
    far = next((one for one in reversed(full[:-1]) if steps[one].label != steps[near].label), None)
    if far is None or not steps[near].guidance == steps[far].guidance == at.guidance:
        return None
    ahead = order * (at.label - steps[near].label) / (steps[near].label - steps[far].label)
    return {near: 1 + ahead, far: -ahead}


def _row(group: Sequence[Step], indices: Sequence[int], estimates: Sequence[Combination], full: Sequence[int]) -> Step:
    """The moves of some steps, one after another, as one row of the first."""
    first, keep, noise = group[0], 1.0, 0.0
    weights: dict[int, float] = {}
    for step, index in zip(group, indices, strict=True):
        weights = {made: step.keep * weight for made, weight in weights.items()}
        for age, weight in enumerate(step.blend):
            for made, share in estimates[index - age].items():
                weights[made] = weights.get(made, 0.0) + weight * share
        keep, noise = keep * step.keep, hypot(step.keep * noise, step.noise or 0.0)
    return replace(
        first,
        keep=keep,
        blend=tuple(_by_age(weights, [one for one in full if one <= indices[0]])),
        noise=noise if any(step.noise is not None for step in group) else None,
        next_sigma=group[-1].next_sigma,
        cached=tuple(step.sigma for step in group[1:]),
    )


def _by_age(weights: Combination, full: Sequence[int]) -> Iterator[float]:
    """Weights of the evaluated steps' estimates, newest first, as far back as there is one that counts."""
    oldest = min((made for made, weight in weights.items() if weight), default=full[-1])
    return (weights.get(made, 0.0) for made in reversed(full) if made >= oldest)
