"""Steps that take no evaluation: what a plan's rows then compute, and which steps may be cached."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DEFAULTS, diffusion_facts, flow_facts, run_steps, sigmas

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import Plan, PlanOptions, SkipLayerGuidance, Step, make_plan, predicted_speedup, solver_names
from lssgen.plan.caching import FULL, MASKS, OPENING, with_cached
from lssgen.plan.solvers import SOLVERS

PUBLISHED = [alias for alias in ALIASES.values() if not alias.local]
FLOW = flow_facts("range", DEFAULTS)


def planned(facts=FLOW, **asked) -> Plan:
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **asked))


def network(x: np.ndarray, step: Step) -> np.ndarray:
    return np.tanh(0.6 * x) + 0.05 * np.cos(0.01 * step.label)


def one_by_one(steps: Sequence[Step], cached: Sequence[bool], order: int, x: np.ndarray) -> np.ndarray:
    """The same in the plainest way: every step for itself, every estimate kept, those of cached steps extrapolated."""
    estimates: list[np.ndarray] = []
    evaluated: list[int] = []
    for index, step in enumerate(steps):
        if cached[index]:
            near = evaluated[-1]
            far = [one for one in evaluated if steps[one].label != steps[near].label][-1]
            slope = (estimates[near] - estimates[far]) / (steps[near].label - steps[far].label)
            estimates.append(estimates[near] + order * slope * (step.label - steps[near].label))
        else:
            estimates.append(step.h_x * x + step.h_f * network(step.c_in * x, step))
            evaluated.append(index)
        x = step.keep * x + sum(weight * estimates[index - age] for age, weight in enumerate(step.blend))
    return x


def masks(steps: int) -> st.SearchStrategy[tuple[bool, ...]]:
    free = st.lists(st.booleans(), min_size=steps - OPENING - 1, max_size=steps - OPENING - 1)
    return free.map(lambda middle: (False,) * OPENING + tuple(middle) + (False,))


@settings(max_examples=150, deadline=None)
@given(
    alias=st.sampled_from(PUBLISHED),
    number=st.integers(0, 20),
    steps=st.integers(6, 30),
    order=st.sampled_from([0, 1]),
    data=st.data(),
)
def test_rows_with_cached_steps_compute_what_the_steps_compute_one_by_one(alias, number, steps, order, data) -> None:
    facts = alias.facts()
    names = [name for name in solver_names(facts) if SOLVERS[name].evaluations == 1]
    name = names[number % len(names)]
    try:
        plan = planned(facts, num_inference_steps=steps, solver=name, start_sigma=1.0, height=512, width=512)
    except PlanError:
        return  # a checkpoint of few steps has no schedule so long
    (stage,) = plan.stages
    if len(stage.steps) <= OPENING:
        return
    cached = data.draw(masks(len(stage.steps)))
    if name == "pndm":
        cached = (*(False,) * 3, *cached[3:])  # its second timestep comes twice, so a line needs a third evaluation
    rows = with_cached(stage.steps, cached, order)
    assert len(rows) == cached.count(False)
    assert sum(len(row.cached) for row in rows) == cached.count(True)
    start = np.random.default_rng(0).standard_normal(8)
    quiet = [replace(row, noise=None) for row in rows]
    wanted = one_by_one(stage.steps, cached, order, start)
    # float64 both ways; sums in another order, of weights up to about 1e4 where solvers undo earlier moves.
    np.testing.assert_allclose(run_steps(tuple(quiet), start, network), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mask", MASKS)
def test_a_network_whose_output_is_a_line_in_its_timestep_loses_nothing(mask: str) -> None:
    (plain,), (cached,) = (planned(cached_steps=text, start_sigma=1.0).stages for text in ("off", mask))
    start = np.random.default_rng(0).standard_normal(8)
    results = [
        run_steps(stage.steps, start, lambda x, step: np.full_like(x, 0.3 + 0.002 * step.label))
        for stage in (plain, cached)
    ]
    np.testing.assert_allclose(*results, rtol=1e-12)  # float64, sums in another order


@pytest.mark.parametrize(("mask", "evaluated"), [("slow", 18), ("medium", 15), ("fast", 11), ("ultra", 8)])
def test_masks_evaluate_as_many_of_28_steps_as_their_source_says(mask: str, evaluated: int) -> None:
    assert MASKS[mask].cached(28).count(False) == evaluated


@given(mask=st.sampled_from(sorted(MASKS)), steps=st.integers(1, 200))
def test_masks_of_any_length_evaluate_the_first_steps_and_the_last(mask: str, steps: int) -> None:
    cached = MASKS[mask].cached(steps)
    assert len(cached) == steps
    assert not any(cached[:OPENING])
    assert not cached[-1]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("more", [{}, {"hand_off": "auto"}, {"scaling_space": "dct"}], ids=str)
def test_a_stage_ends_where_it_ended_and_costs_what_it_evaluates(mask: str, more: dict[str, Any]) -> None:
    plain, cached = planned(**more), planned(cached_steps=mask, **more)
    for before, after in zip(plain.stages, cached.stages, strict=True):
        assert len(after.steps) + after.cached_steps == len(before.steps)
        assert after.levels[-1] == before.levels[-1]
        assert len(after.levels) == len(after.steps)
        assert set(after.levels) <= set(before.levels)
        assert set(sigmas(after)) | {level for step in after.steps for level in step.cached} == set(sigmas(before))
        assert after.history == 1  # which every step graph carries
        assert (after.gain, after.low_noise) == (before.gain, before.low_noise)
    assert cached.evaluations < plain.evaluations
    assert cached.single_stage_passes == plain.single_stage_passes
    assert predicted_speedup(cached, FLOW) > predicted_speedup(plain, FLOW)


def test_masks_may_be_spelt_out_stage_by_stage() -> None:
    plain = planned(num_inference_steps=8, start_sigma=0.75)
    words = ["ffcfccff", "f" * len(plain.stages[1].steps)]
    plan = planned(num_inference_steps=8, start_sigma=0.75, cached_steps=",".join(words))
    assert [len(step.cached) for step in plan.stages[0].steps] == [0, 1, 2, 0, 0]
    assert plan.stages[1] == plain.stages[1]


def test_a_picture_to_start_from_is_cached_from_where_it_enters() -> None:
    plain, plan = planned(strength=0.6), planned(strength=0.6, cached_steps="medium")
    (stage,) = plan.stages
    assert stage.image == plain.stages[0].image
    assert not stage.steps[0].cached
    assert 0 < stage.cached_steps < len(plain.stages[0].steps) - OPENING


def test_steps_are_evaluated_where_the_guidance_branches_have_just_changed() -> None:
    window = SkipLayerGuidance(start=0.1, stop=0.4, window="stage")
    for stage in planned(skip_layers=window, cached_steps="ultra", num_inference_steps=40).stages:
        known = [step.guidance for step in stage.steps]
        for index, step in enumerate(stage.steps):
            assert not step.cached or known[index - 1] == step.guidance


def test_cached_steps_draw_with_the_step_that_takes_them_along() -> None:
    facts = diffusion_facts("EulerAncestralDiscreteScheduler")
    (stage,) = planned(facts, start_sigma=1.0, num_inference_steps=12).stages
    rows = with_cached(stage.steps, [letter != FULL for letter in "fffccfffffff"])
    group = stage.steps[2:5]
    variance = 0.0
    for step in group:
        assert step.noise is not None
        variance = step.keep**2 * variance + step.noise**2
    assert rows[2].noise == pytest.approx(variance**0.5)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("cfff,fffff", "caches a step that must be evaluated: the first 2"),
        ("fcff,fffff", "caches a step that must be evaluated: the first 2"),
        ("fffc,fffff", "caches a step that must be evaluated: the first 2"),
        ("ffff", "has 1 words, but the run has 2 stages"),
        ("fff,fffff", "has 3 letters for the stage of 512 x 512 px, which takes 4 steps"),
        ("ffff,", "it must be off, slow, medium, fast, ultra"),
        ("sloww", "it must be off, slow, medium, fast, ultra"),
        ("", "it must be off, slow, medium, fast, ultra"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: str, said: str) -> None:
    assert [len(stage.steps) for stage in planned(num_inference_steps=8, shorten=True).stages] == [4, 5]
    with pytest.raises(PlanError, match=said):
        planned(num_inference_steps=8, shorten=True, cached_steps=mask)


def test_a_mask_that_guidance_forbids_is_refused_where_it_was_spelt_out() -> None:
    skip = SkipLayerGuidance(start=0.1, stop=0.5, window="stage")
    with pytest.raises(PlanError, match="of 512 x 512 px where the guidance branches have just changed"):
        planned(num_inference_steps=8, skip_layers=skip, cached_steps="ffffcfff,fffff", shorten=False, start_sigma=0.75)


def test_solvers_that_evaluate_twice_in_a_step_take_no_mask() -> None:
    with pytest.raises(PlanError, match="heun evaluates the network twice in a step; choose another solver"):
        planned(solver="heun", cached_steps="slow")
