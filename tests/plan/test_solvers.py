"""Solvers as mathematics: no schedule of a model, no diffusers."""

from collections.abc import Callable
from itertools import pairwise
from math import exp, sqrt

import numpy as np
import pytest
from rows import run_steps

from lssgen.plan import Step
from lssgen.plan.levels import Ask, Level
from lssgen.plan.solvers import dpmpp_2m, first_order, lcm, pndm

MEAN, VARIANCE = 0.3, 0.25  # of the data


def doubled(plan: tuple[Ask, ...]) -> tuple[Ask, ...]:
    """PNDM's warm-up evaluates the second timestep twice."""
    return (*plan[:2], *plan[1:])


def whole_pndm(plan: tuple[Ask, ...]) -> tuple[Step, ...]:
    return pndm(doubled(plan))


SOLVERS: dict[str, tuple[Callable[..., tuple[Step, ...]], int]] = {
    "euler, ddim": (first_order, 1),
    "dpm++2m": (dpmpp_2m, 2),
    "pndm": (whole_pndm, 2),  # the formula is of order 4, its warm-up of order 2
}


def flow(ratio: float) -> Level:
    return Level(1 / (1 + ratio), ratio / (1 + ratio), ratio / (1 + ratio))


def preserving(ratio: float) -> Level:
    return Level(1 / sqrt(1 + ratio**2), ratio / sqrt(1 + ratio**2), ratio)


def exploding(ratio: float) -> Level:
    return Level(1.0, ratio, ratio)


KINDS: dict[str, Callable[[float], Level]] = {"flow": flow, "preserving": preserving, "exploding": exploding}


def asks(kind: Callable[[float], Level], steps: int, spread: float = 2.0) -> tuple[Ask, ...]:
    """Evenly in log-SNR from noise / image = e^spread to e^-spread, for a network that predicts noise."""
    levels = [kind(exp(spread - 2 * spread * i / steps)) for i in range(steps + 1)]
    return tuple(
        Ask(a, b, float(i), 1.0, 1 / a.image, -a.noise / a.image) for i, (a, b) in enumerate(pairwise(levels), 1)
    )


def best_noise(x: np.ndarray, at: Level) -> np.ndarray:
    """The noise that is expected in x, for data that is Gaussian."""
    variance = at.image**2 * VARIANCE + at.noise**2
    return at.noise * (x - at.image * MEAN) / variance


def exact_end(x: np.ndarray, at: Level, to: Level) -> np.ndarray:
    """Where the probability flow carries x: it stays at the same number of standard deviations from the mean."""
    widths = [sqrt(level.image**2 * VARIANCE + level.noise**2) for level in (at, to)]
    return to.image * MEAN + widths[1] / widths[0] * (x - at.image * MEAN)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("name", SOLVERS)
def test_solver_converges_at_its_order_on_gaussian_data(name: str, kind: Callable[[float], Level]) -> None:
    solver, order = SOLVERS[name]
    x = np.array([-1.5, 0.2, 2.0])
    counts = np.array([32, 64, 128, 256])
    errors: list[float] = []
    for count in counts:
        plan = asks(kind, int(count))
        got = run_steps(solver(plan), x, lambda h, step, plan=plan: best_noise(h, plan[int(step.label) - 1].level))
        errors.append(float(np.abs(got - exact_end(x, plan[0].level, plan[-1].to)).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.3), errors


def lcm_far_away(plan: tuple[Ask, ...]) -> tuple[Step, ...]:
    """LCM at timesteps so large that its boundary condition does not mix x into the picture."""
    return lcm(plan, timestep_scaling=1e9)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("solver", [first_order, dpmpp_2m, whole_pndm, lcm_far_away])
def test_a_perfect_network_leads_to_the_picture_and_its_noise(
    solver: Callable[..., tuple[Step, ...]], kind: Callable[[float], Level]
) -> None:
    plan = asks(kind, 9)
    picture, noise = np.array([0.7, -1.1]), np.array([0.4, 2.0])
    x = plan[0].level.image * picture + plan[0].level.noise * noise
    got = run_steps(solver(plan), x, lambda _h, _s: noise, lambda: noise)
    end = plan[-1].to
    # LCM leaves the noise out of its last step.
    expected = end.image * picture + (0 if solver is lcm_far_away else end.noise * noise)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_replaces_as_much_of_the_old(eta: float, kind: Callable[[float], Level]) -> None:
    """A perfect network keeps old and fresh noise apart; together they have the level's variance."""
    plan = asks(kind, 6)
    for ask, step in zip(plan, first_order(plan, eta=eta), strict=True):
        (gain,) = step.blend
        old = step.keep * ask.level.noise + gain  # the network names the noise itself
        assert step.noise is not None
        assert old**2 + step.noise**2 == pytest.approx(ask.to.noise**2, rel=1e-9)
        assert step.noise > 0


def test_the_last_step_of_an_ancestral_solver_draws_noise_and_leaves_it_out() -> None:
    plan = asks(exploding, 3)
    last = Ask(plan[-1].level, Level(1.0, 0.0, 0.0), 0.0, 1.0, 1.0, -plan[-1].level.noise)
    assert first_order((*plan[:-1], last), eta=1.0)[-1].noise == 0.0


def test_dpm_solver_falls_back_to_first_order_where_the_log_snr_is_infinite() -> None:
    """Pure noise at one end of a flow, a clean picture at the other."""
    levels = [Level(1 - s, s, s) for s in (1.0, 0.7, 0.4, 0.0)]
    plan = [Ask(a, b, a.sigma, 1.0, 1.0, -a.noise) for a, b in pairwise(levels)]
    assert [len(step.blend) for step in dpmpp_2m(plan)] == [1, 2, 1]
    assert dpmpp_2m(plan)[1].blend[1] == 0


def test_pndm_goes_on_from_where_its_warm_up_began() -> None:
    """After two evaluations it has made one step, with the mean of both outputs."""
    plan = asks(preserving, 4)
    outputs = iter((np.array([2.0]), np.array([3.0])))
    got = run_steps(whole_pndm(plan)[:2], np.array([1.0]), lambda _h, _s: next(outputs))
    (step,) = first_order(plan[:1])
    np.testing.assert_allclose(got, step.keep * 1.0 + step.blend[0] * 2.5, rtol=1e-12)
