"""What holds for every plan, whatever is asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import flow_facts, run_steps, sigmas

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import Plan, PlanOptions, make_plan, predicted_speedup, solver_names
from lssgen.plan.solvers import SOLVERS

PUBLISHED = [alias for alias in ALIASES.values() if not alias.local]

options = st.fixed_dictionaries(
    {
        "height": st.integers(1, 40).map(lambda blocks: blocks * 64) | st.integers(8, 3000),
        "width": st.integers(1, 40).map(lambda blocks: blocks * 64) | st.integers(8, 3000),
        "num_inference_steps": st.integers(1, 60) | st.sampled_from([500, 998, 999, 1000, 1001]),
        "start_sigma": st.floats(0.01, 1.0),
        "min_resolution": st.sampled_from([64, 128, 256, 512, 1024]),
        "shorten": st.booleans(),
        "start_rule": st.sampled_from(["published", "sigma"]),
        "timestep_spacing": st.sampled_from(["own", "own", "leading", "trailing", "linspace"]),
        "sigma_schedule": st.sampled_from(["own", "own", "default", "karras", "exponential", "beta"]),
        "scaling_space": st.sampled_from(["resnet", "dct", "selflift"]),
        "hand_off": st.sampled_from(["own", "own", "auto"]) | st.floats(0, 0.99),
    }
)


@settings(max_examples=300, deadline=None)
@given(alias=st.sampled_from(PUBLISHED), asked=options, number=st.integers(0, 20))
def test_every_plan_keeps_the_laws_of_stages_or_is_refused(alias, asked, number) -> None:
    facts = alias.facts()
    names = solver_names(facts)
    asked["solver"] = names[number % len(names)]
    try:
        plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, **asked))
    except PlanError as error:
        assert len(str(error)) > 30  # noqa: PT017 - a refusal is one of the two outcomes
        return
    check_sizes(plan, facts.align, asked)
    solver = SOLVERS[asked["solver"]]
    for index, stage in enumerate(plan.stages):
        assert stage.history <= solver.memory
        assert len(stage.steps) <= solver.evaluations * stage.schedule_steps + (asked["solver"] == "pndm")
        assert solver.draws or asked["solver"] == "dpm" or all(step.noise is None for step in stage.steps)
        levels = sigmas(stage)
        # KDPM2's middle level equals its neighbour where labels repeat, but for the last bit of a float64.
        assert all(above >= below * (1 - 1e-14) for above, below in pairwise(levels))
        assert len(stage.levels) == len(stage.steps) >= 1
        assert (stage.image == 0) == (index == 0 or stage.noise == 1)
        for step in stage.steps:
            assert sum(weight for _, weight in step.guidance) == pytest.approx(1)
            assert step.row(alias.record.history).shape == (7 + alias.record.history,)
            assert np.isfinite(step.row(alias.record.history)).all()
    assert predicted_speedup(plan, facts) > 0


def check_sizes(plan: Plan, align: int, asked: dict[str, int]) -> None:
    first, last = plan.stages[0], plan.stages[-1]
    for small, large in pairwise(plan.stages):
        assert (large.height, large.width) == (2 * small.height, 2 * small.width)
    assert first.height % align == 0
    assert first.width % align == 0
    if len(plan.stages) > 1:
        short = plan.cell_px * min(first.height, first.width)
        assert asked["min_resolution"] - plan.cell_px * align < short < 2 * asked["min_resolution"]
    assert 0 <= asked["height"] - plan.cell_px * last.height < plan.cell_px * align * 2**9
    assert 0 <= asked["width"] - plan.cell_px * last.width < plan.cell_px * align * 2**9


@pytest.mark.parametrize(("size", "stages"), [(1024, 2), (1023, 1), (1536, 2), (2048, 3), (2047, 2), (4096, 4)])
def test_a_stage_is_added_whenever_the_short_side_doubles(size: int, stages: int) -> None:
    facts = flow_facts("even")
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, height=size, width=4096, min_resolution=512))
    assert len(plan.stages) == stages


@pytest.mark.parametrize(
    ("height", "width", "steps"), [(512, 512, 5), (768, 768, 10), (512, 768, 7), (640, 640, 7), (256, 256, 2)]
)
def test_small_stages_are_shortened_by_the_binary_logarithm_of_their_area(height: int, width: int, steps: int) -> None:
    facts = flow_facts("range")
    asked = {
        "height": height,
        "width": width,
        "num_inference_steps": 10,
        "shorten": True,
        "min_resolution": min(height, width),
    }
    (stage,) = make_plan(facts, PlanOptions.from_defaults(facts.defaults, **asked)).stages
    assert stage.schedule_steps == steps


@pytest.mark.parametrize("grid", ["range", "even", "labels"])
@pytest.mark.parametrize("solver", [name for name, solver in SOLVERS.items() if "flow" in solver.kinds])
def test_a_perfect_flow_network_ends_every_stage_on_its_picture(grid: str, solver: str) -> None:
    facts = flow_facts(grid)
    asked = {"num_inference_steps": 12, "solver": solver, "injection": "sigma"}
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, **asked))
    picture, noise = 0.7, -1.3
    for stage in plan.stages:
        x = stage.image * picture + stage.noise * noise
        end = run_steps(stage.steps, x, lambda x, step: (x - picture) / step.sigma, lambda: 0.4)
        assert end == pytest.approx(picture)


def test_custom_sigmas_replace_the_grid_and_are_thinned_out_in_shortened_stages() -> None:
    facts = flow_facts("even")
    own = (1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1)
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, sigmas=own, shorten=True, start_sigma=0.3))
    low, high = plan.stages
    assert (low.schedule_steps, high.schedule_steps) == (4, 8)
    assert [stage.steps[0].sigma == 1 for stage in plan.stages] == [True, False]
    whole = make_plan(facts, PlanOptions.from_defaults(facts.defaults, sigmas=own, start_sigma=1.0)).stages[0]
    shifted = [2.718281828459045**1.15 / (2.718281828459045**1.15 + 1 / s - 1) for s in own]
    assert [step.sigma for step in whole.steps] == pytest.approx(shifted, rel=1e-6)
