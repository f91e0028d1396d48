"""DPM-Solver and DPM-Solver++: orders 1 to 3, from the memory of earlier steps or from steps made again."""

from dataclasses import dataclass
from itertools import pairwise
from math import expm1, inf, log, sqrt

from lssgen.plan.levels import Evaluation, Level
from lssgen.plan.solvers.moves import Move, back_by, step
from lssgen.plan.solvers.tuning import Course, Tuning
from lssgen.plan.table import Step

Weights = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Integral:
    """A step's exponential integral: x' = base * x + level * D0 + slope * D1 + curve * D2 + fresh * e.

    D0 is an estimate, D1 and D2 its first and second derivative by log-SNR in units of the step. The second order may
    take half of `level` for `slope` ("midpoint").
    """

    base: float
    level: float
    slope: float
    curve: float
    fresh: float

    def second(self, tuning: Tuning) -> float:
        return self.level / 2 if tuning.variant == "midpoint" else self.slope


def _integral(at: Level, to: Level, tuning: Tuning, *, higher: bool) -> _Integral:
    """The integral of a step; with derivatives only where the log-SNR is finite and moves (`higher`)."""
    images = tuning.predicts == "image"
    decay = at.image * to.noise / (to.image * at.noise)  # e^-h, for a step of h in log-SNR
    growth = decay if images else 1 / decay
    base, scale = (to.noise / at.noise, to.image) if images else (to.image / at.image, to.noise)
    fresh = 0.0
    if tuning.stochastic and images:
        # The SDE lets go of x by another e^-h, and draws afresh the noise that this costs. max: rounding, in very short
        # steps.
        base, growth, fresh = base * decay, growth**2, to.noise * sqrt(max(0.0, 1 - decay**2))
    elif tuning.stochastic:
        scale, fresh = 2 * scale, to.noise * sqrt(max(0.0, growth**2 - 1))
    level = scale * (1 - growth)
    if not higher:
        return _Integral(base, level, 0.0, 0.0, fresh)
    # expm1 and not exp - 1, which loses its digits in the short steps of long schedules.
    z = log(growth)
    return _Integral(base, level, -scale * (expm1(z) / z - 1), -scale * ((expm1(z) - z) / z**2 - 1 / 2), fresh)


def dpm_multistep(course: Course, tuning: Tuning) -> tuple[Step, ...]:
    """Extrapolate the estimate from the last ones, linearly or quadratically in log-SNR.

    Source: Lu et al. 2022, arXiv 2206.00927 and 2211.01095 (algorithm 2), as in diffusers' DPMSolverMultistepScheduler.
    """
    steps: list[Step] = []
    for index, evaluation in enumerate(course.left):
        known = course.known(index, course.order(index, tuning))
        integral = _integral(evaluation.level, evaluation.to, tuning, higher=len(known) > 1)
        move = Move(integral.base, _multistep_weights(integral, evaluation.to, known, tuning))
        fresh = integral.fresh if tuning.stochastic else None
        steps.append(step(evaluation, move, of=tuning.predicts, noise=fresh))
    return tuple(steps)


def _multistep_weights(integral: _Integral, to: Level, known: list[Level], tuning: Tuning) -> Weights:
    """Weights of the estimates at the known levels, newest first."""
    if len(known) == 1:
        return (integral.level,)
    whole = to.log_snr - known[0].log_snr
    near = whole / (known[0].log_snr - known[1].log_snr)  # 0 where the older level is pure noise
    if len(known) == 2:
        lean = near * integral.second(tuning)
        return (integral.level + lean, -lean)
    # With d0 = near (m0 - m1) and d1 = far (m1 - m2): D1 = d0 + share (d0 - d1), D2 = inverse (d0 - d1).
    far = whole / (known[1].log_snr - known[2].log_snr)
    share, inverse = far / (near + far), near * far / (near + far)
    bend = integral.slope * share + integral.curve * inverse
    on_d0 = integral.slope + bend
    return (integral.level + on_d0 * near, -on_d0 * near - bend * far, bend * far)


def dpm_singlestep(course: Course, tuning: Tuning) -> tuple[Step, ...]:
    """Steps of first order and, from where they began, steps of higher order: 1, 2, 1, 2 or 1, 2, 3, 1, 2, 3.

    Source: Lu et al. 2022, arXiv 2206.00927, as in diffusers' DPMSolverSinglestepScheduler.
    """
    orders = _orders(len(course.left) + len(course.cut), tuning, clean=not course.left[-1].to.noise)[len(course.cut) :]
    steps: list[Step] = []
    moves: list[Move] = []
    for index, evaluation in enumerate(course.left):
        known = _restarted(
            [course.left[index - back].level for back in range(min(orders[index], index + 1))], evaluation
        )
        integral = _integral(known[-1], evaluation.to, tuning, higher=len(known) > 1)
        weights = _singlestep_weights(integral, evaluation.to, known, tuning)
        moves.append(Move(integral.base, weights).after(back_by(moves, len(known) - 1)))
        steps.append(step(evaluation, moves[-1], of=tuning.predicts))
    return tuple(steps)


def _restarted(known: list[Level], evaluation: Evaluation) -> list[Level]:
    """Levels that a step looks back on to where it begins anew, newest first; only its own where that has no slope."""
    snrs = [level.log_snr for level in (evaluation.to, *known)]
    moves = all(later > earlier for later, earlier in pairwise(snrs[1:])) and snrs[0] > snrs[-1] > -inf
    return known if moves else known[:1]


def _orders(steps: int, tuning: Tuning, *, clean: bool) -> list[int]:
    """Order of every step of a full schedule; `clean` where it ends on a clean picture."""
    order = tuning.order
    # diffusers switches lower_order_final on by itself where the end is clean or the steps do not divide.
    if not (tuning.lower_order_final or clean or steps % order):
        return list(range(1, order + 1)) * (steps // order)
    # diffusers' get_order_list: what whole runs of 1 to `order` leave over, with first order last.
    rest = {1: [1], 2: [1, 1] if steps % 2 == 0 else [1], 3: ([1, 2, 1], [1], [1, 2])[steps % 3]}[order]
    orders = list(range(1, order + 1)) * ((steps - len(rest)) // order) + rest
    return [*orders[:-1], 1] if clean else orders


def _singlestep_weights(integral: _Integral, to: Level, known: list[Level], tuning: Tuning) -> Weights:
    """Weights of the estimates, newest first; the oldest is D0, and the step begins at its level."""
    if len(known) == 1:
        return (integral.level,)
    whole = to.log_snr - known[-1].log_snr
    near = (known[0].log_snr - known[-1].log_snr) / whole
    if len(known) == 2:
        lean = integral.second(tuning) / near
        return (lean, integral.level - lean)
    if tuning.variant == "midpoint":
        # diffusers' midpoint form of the third order takes D1 from the newest estimate alone, and no D2.
        return (integral.slope / near, 0.0, integral.level - integral.slope / near)
    # With d0 = (m1 - m2) / far and d1 = (m0 - m2) / near: D1 = (near d0 - far d1) / gap, D2 = 2 (d1 - d0) / gap.
    far = (known[1].log_snr - known[-1].log_snr) / whole
    gap = near - far
    newest = (2 * integral.curve - integral.slope * far) / gap / near
    middle = (integral.slope * near - 2 * integral.curve) / gap / far
    return (newest, middle, integral.level - newest - middle)
