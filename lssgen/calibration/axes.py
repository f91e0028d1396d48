"""What a search for schedules varies: a table of axes, each a word of a run and the values that it may have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from lssgen.bundle import Bundle
from lssgen.errors import LssgenError
from lssgen.plan.caching import MASKS, NO_CACHE
from lssgen.plan.options import AUTO
from lssgen.runtime.options import Options, Request, refuse_unknown, request_from_options

Point = tuple[int, ...]
"""A place in the table: the index of a value, axis by axis."""

_TRANSITION = "transition_"


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that schedules differ by.

    Attributes:
        word: Word of a run.
        values: Function from the bundle and the run as it would be without a search to the values, in an order in which
            neighbours are alike.
        said: Function from a value, and the run that the axes before this one make, to what the word says then.
    """

    word: str
    values: Callable[[Bundle, Request], Sequence[Any]]
    said: Callable[[Any, Request], Any] = lambda value, _: value


def _first_stages(bundle: Bundle, plain: Request) -> list[int]:
    """Shortest sides of a first stage: those that the bundle was exported for, and the picture's own, one stage."""
    short = min(plain.plan.height_px, plain.plan.width_px)
    return sorted({min(side) for side in bundle.manifest.resolutions if min(side) < short} | {short})


def _steps(_: Bundle, plain: Request) -> list[int]:
    asked = plain.plan_options.requested_steps
    return sorted({max(1, round(asked * share)) for share in (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2)})


def _small_steps(share: float, run: Request) -> tuple[int, ...]:
    """Steps of every stage, where each has this share of those of the next one."""
    count, steps = len(run.plan.stages), run.plan_options.requested_steps
    return tuple(max(1, round(steps * share**halvings)) for halvings in reversed(range(count)))


def _spaces(bundle: Bundle, plain: Request) -> list[str]:
    made = [name.removeprefix(_TRANSITION) for name in bundle.manifest.graphs if name.startswith(_TRANSITION)]
    own = plain.plan_options.scaling_space
    return sorted(made, key=lambda space: (space != own, space)) or [own]


def _sigmas(bundle: Bundle, plain: Request) -> list[Any]:
    levels = sorted({0.3, 0.4, 0.5, 0.6, 0.75, 0.85, plain.plan_options.start_sigma} - {1.0})
    return [*levels, AUTO] if bundle.manifest.facts.defaults.covering_sigmas else [*levels]


def _always(*values: Any) -> Callable[[Bundle, Request], Sequence[Any]]:
    """The same values for every bundle."""

    def values_of(_: Bundle, __: Request) -> Sequence[Any]:
        return values

    return values_of


AXES: tuple[Axis, ...] = (
    Axis("min_resolution", _first_stages),
    Axis("num_inference_steps", _steps),
    Axis("stage_steps", _always(1.0, 0.75, 0.5, 0.35), _small_steps),
    # One stage says that it is one, for callers who ask for that.
    Axis("start_sigma", _sigmas, lambda sigma, run: sigma if len(run.plan.stages) > 1 else 1.0),
    Axis("scaling_space", _spaces),
    Axis("hand_off", _always(0.0, "auto")),
    Axis("cached_steps", _always(NO_CACHE, *MASKS)),
    Axis("cache_order", _always(1, 0)),
)
"""The axes, in the order in which their words are said."""


class Table:
    """The schedules of a bundle that a search may try.

    Args:
        bundle: What paints.
        fixed: Words that are the same in all runs; an axis whose word is among them has that one value.
        axes: What else differs.

    Attributes:
        plain: The run as it would be without a search.

    Raises:
        LssgenError: That run cannot be carried out, or an axis has a word that no run has.
    """

    def __init__(self, bundle: Bundle, fixed: Options, axes: Sequence[Axis] = AXES) -> None:
        refuse_unknown(axis.word for axis in axes)
        self.plain = request_from_options(bundle, fixed)
        self._bundle = bundle
        self._fixed: dict[str, Any] = {word: value for word, value in fixed.items() if value is not None}
        self._axes = tuple(axis for axis in axes if axis.word not in self._fixed)
        self._values = [tuple(axis.values(bundle, self.plain)) for axis in self._axes]

    @property
    def words(self) -> tuple[str, ...]:
        """Words that its schedules say."""
        return tuple(axis.word for axis in self._axes)

    @property
    def starts(self) -> list[Point]:
        """Where a search begins: the run as it is without one, as near as the table has it, in one stage and in all."""
        staged = [self._nearest(axis, values) for axis, values in zip(self._axes, self._values, strict=True)]
        alone = [
            len(values) - 1 if axis.word == "min_resolution" else index
            for axis, values, index in zip(self._axes, self._values, staged, strict=True)
        ]
        return list(dict.fromkeys((tuple(alone), tuple(staged))))

    def neighbours(self, point: Point) -> list[Point]:
        """Those that differ from a point by one step along one axis."""
        found: list[Point] = []
        for axis, values in enumerate(self._values):
            for index in (point[axis] - 1, point[axis] + 1):
                if 0 <= index < len(values):
                    found.append((*point[:axis], index, *point[axis + 1 :]))
        return found

    def run(self, point: Point) -> tuple[Mapping[str, Any], Request] | None:
        """Its words, and the run that they make; None where that cannot be carried out."""
        words: dict[str, Any] = {}
        try:
            run = self._request(words)
            for axis, values, index in zip(self._axes, self._values, point, strict=True):
                words[axis.word] = axis.said(values[index], run)
                run = self._request(words)
        except LssgenError:  # a stage may get no step, or a solver take no mask
            return None
        return words, run

    def _request(self, words: Mapping[str, Any]) -> Request:
        return request_from_options(self._bundle, cast(Options, {**self._fixed, **words}))

    def _nearest(self, axis: Axis, values: Sequence[Any]) -> int:
        own = getattr(self.plain.plan_options, axis.word)
        return values.index(own) if own in values else 0
