"""Solvers as mathematics: no schedule of a model, no diffusers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import exp, sqrt

import numpy as np
import pytest
from rows import run_steps

from lssgen.plan import Step
from lssgen.plan.levels import Evaluation, Level, with_halves
from lssgen.plan.solvers import SOLVERS, Course, Solver, Tuning
from lssgen.plan.solvers.dpm import dpm_multistep
from lssgen.plan.solvers.first import first_order

MEAN, VARIANCE = 0.3, 0.25  # of the data

# Order of convergence by solver and its own order. The first steps of solvers with a memory have none yet, which leaves
# an error of the second order where one of them is of the first.
ORDERS: list[tuple[str, int, float]] = [
    ("euler", 1, 1),
    ("ddim", 1, 1),
    ("dpm++2m", 2, 2),
    ("dpm++3m", 3, 2),
    ("pndm", 4, 2),
    ("dpm++2s", 2, 2),
    ("dpm++2s", 3, 3),
    ("unipc", 1, 2),
    ("unipc", 2, 3),
    ("unipc", 3, 4),
    ("deis", 2, 2),
    ("deis", 3, 2),
    ("lms", 4, 2),
    ("heun", 2, 2),
    ("kdpm2", 2, 2),
]


def flow(ratio: float) -> Level:
    return Level(1 / (1 + ratio), ratio / (1 + ratio), ratio / (1 + ratio))


def preserving(ratio: float) -> Level:
    return Level(1 / sqrt(1 + ratio**2), ratio / sqrt(1 + ratio**2), ratio)


def exploding(ratio: float) -> Level:
    return Level(1.0, ratio, ratio)


KINDS: dict[str, Callable[[float], Level]] = {"flow": flow, "preserving": preserving, "exploding": exploding}


def evaluations(kind: Callable[[float], Level], steps: int, solver: Solver) -> tuple[Evaluation, ...]:
    """Evenly in log-SNR from noise / image = e^2 to e^-2, for a network that predicts noise, as a solver wants them.

    A label is 10 more than the logarithm of that ratio, which says the level.
    """
    levels = [kind(exp(2 - 4 * i / steps)) for i in range(steps + 1)]

    def evaluation(at: Level, to: Level) -> Evaluation:
        return Evaluation(at, to, 10 - at.log_snr, 1.0, 1 / at.image, -at.noise / at.image)

    found = [evaluation(a, b) for a, b in pairwise(levels)]
    if solver.memory == 4:  # PNDM's warm-up evaluates the second timestep twice
        found = [*found[:2], *found[1:]]
    return solver.expanded(with_halves(levels, found, solver.halves, evaluation))


def rows(name: str, course: tuple[Evaluation, ...], order: int = 2) -> tuple[Step, ...]:
    solver = SOLVERS[name]
    stochastic = "sde" in str(solver.fields.get("algorithm_type"))
    return solver.rows(
        Course(course), Tuning(order=order, stochastic=stochastic, lower_order_final=False, timestep_scaling=1e9)
    )


SLOPES = ("lms", "heun", "kdpm2", "kdpm2-ancestral")


def fits(name: str, kind: str) -> bool:
    """Solvers that integrate slopes by sigma want straight lines in it."""
    return kind == "exploding" or (kind == "flow" and name != "kdpm2-ancestral") or name not in SLOPES


def best_noise(x: np.ndarray, at: Level) -> np.ndarray:
    """The noise that is expected in x, for data that is Gaussian."""
    variance = at.image**2 * VARIANCE + at.noise**2
    return at.noise * (x - at.image * MEAN) / variance


def exact_end(x: np.ndarray, at: Level, to: Level) -> np.ndarray:
    """Where the probability flow carries x: it stays at the same number of standard deviations from the mean."""
    widths = [sqrt(level.image**2 * VARIANCE + level.noise**2) for level in (at, to)]
    return to.image * MEAN + widths[1] / widths[0] * (x - at.image * MEAN)


CONVERGING = [(*order, kind) for order in ORDERS for kind in KINDS if fits(order[0], kind)]


@pytest.mark.parametrize(("name", "order", "expected", "kind"), CONVERGING, ids=lambda value: str(value))
def test_solver_converges_at_its_order_on_gaussian_data(name: str, order: int, expected: float, kind: str) -> None:
    x = np.array([-1.5, 0.2, 2.0])
    counts = np.array([72, 144, 288, 576])  # in twos and in threes, for solvers that make their steps in turns
    errors: list[float] = []
    for count in counts:
        course = evaluations(KINDS[kind], int(count), SOLVERS[name])
        got = run_steps(
            rows(name, course, order), x, lambda h, step, kind=kind: best_noise(h, KINDS[kind](exp(step.label - 10)))
        )
        errors.append(float(np.abs(got - exact_end(x, course[0].level, course[-1].to)).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > expected - 0.35, errors


FITTING = [(name, kind) for name in SOLVERS for kind in KINDS if fits(name, kind)]
DRAWING = [(name, kind) for name, kind in FITTING if SOLVERS[name].draws and name != "lcm"]


@pytest.mark.parametrize(("name", "kind"), FITTING)
def test_a_picture_without_noise_stays_what_it_is(name: str, kind: str) -> None:
    course = evaluations(KINDS[kind], 9, SOLVERS[name])
    picture = np.array([0.7, -1.1])
    got = run_steps(
        rows(name, course), course[0].level.image * picture, lambda _h, _s: 0 * picture, lambda: 0 * picture
    )
    np.testing.assert_allclose(got, course[-1].to.image * picture, rtol=1e-9)


@pytest.mark.parametrize(("name", "kind"), [case for case in FITTING if not SOLVERS[case[0]].draws])
def test_a_perfect_network_leads_to_the_picture_and_its_noise(name: str, kind: str) -> None:
    course = evaluations(KINDS[kind], 9, SOLVERS[name])
    picture, noise = np.array([0.7, -1.1]), np.array([0.4, 2.0])
    x = course[0].level.image * picture + course[0].level.noise * noise
    got = run_steps(rows(name, course), x, lambda _h, _s: noise)
    np.testing.assert_allclose(got, course[-1].to.image * picture + course[-1].to.noise * noise, rtol=1e-9)


@pytest.mark.parametrize(("name", "kind"), DRAWING)
def test_solvers_that_draw_leave_as_much_noise_as_the_level_has(name: str, kind: str) -> None:
    """Old and fresh noise together; the network names what is in x."""
    course = evaluations(KINDS[kind], 5, SOLVERS[name])
    random = np.random.default_rng(0)
    x = course[0].level.noise * random.standard_normal(100_000)
    got = run_steps(
        rows(name, course),
        x,
        lambda h, step: h / KINDS[kind](exp(step.label - 10)).noise,
        lambda: random.standard_normal(len(x)),
    )
    # Of 100,000 numbers the deviation is known to 0.2 %.
    assert np.std(got) == pytest.approx(course[-1].to.noise, rel=0.01)


def test_consistency_models_leave_no_noise_in_their_last_step() -> None:
    steps = rows("lcm", evaluations(preserving, 4, SOLVERS["lcm"]))
    assert [step.noise is None for step in steps] == [False, False, False, True]


def test_the_last_step_of_an_ancestral_solver_draws_noise_and_leaves_it_out() -> None:
    (last,) = evaluations(exploding, 3, SOLVERS["euler"])[-1:]
    assert first_order([replace(last, to=Level(1.0, 0.0, 0.0))], eta=1.0)[-1].noise == 0.0


def test_dpm_solver_falls_back_to_first_order_where_the_log_snr_is_infinite() -> None:
    """Pure noise at one end of a flow, a clean picture at the other."""
    levels = [Level(1 - s, s, s) for s in (1.0, 0.7, 0.4, 0.0)]
    schedule = [Evaluation(a, b, a.sigma, 1.0, 1.0, -a.noise) for a, b in pairwise(levels)]
    steps = dpm_multistep(Course(schedule), Tuning())
    assert [len(step.blend) for step in steps] == [1, 2, 1]
    assert steps[1].blend[1] == 0


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if "flow" in solver.kinds])
def test_every_solver_for_flow_goes_from_pure_noise_to_a_clean_picture(name: str) -> None:
    levels = [Level(1 - s, s, s) for s in (1.0, 0.9, 0.7, 0.4, 0.2, 0.0)]

    def evaluation(at: Level, to: Level) -> Evaluation:
        return Evaluation(at, to, at.sigma, 1.0, 1.0, -at.noise)

    found = with_halves(levels, [evaluation(a, b) for a, b in pairwise(levels)], SOLVERS[name].halves, evaluation)
    for order in (1, 2, 3):
        steps = rows(name, SOLVERS[name].expanded(found), order)
        got = run_steps(steps, 1.5, lambda x, step: (x - 0.3) / step.label, lambda: 0.7)
        assert got == pytest.approx(0.3, abs=1e-9)


def test_pndm_goes_on_from_where_its_warm_up_began() -> None:
    """After two evaluations it has made one step, with the mean of both outputs."""
    schedule = evaluations(preserving, 4, SOLVERS["pndm"])
    outputs = iter((np.array([2.0]), np.array([3.0])))
    got = run_steps(rows("pndm", schedule)[:2], np.array([1.0]), lambda _h, _s: next(outputs))
    (step,) = first_order(schedule[:1])
    np.testing.assert_allclose(got, step.keep * 1.0 + step.blend[0] * 2.5, rtol=1e-12)
