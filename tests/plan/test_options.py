"""Choices that change a plan, one at a time."""

import pytest
from rows import DEFAULTS, diffusion_facts, flow_facts

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import ModelFacts, NetworkCost, Plan, PlanOptions, SkipLayerGuidance, make_plan, predicted_speedup


def plan_for(facts: ModelFacts, **given: object) -> Plan:
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **given))


def skipping(plan: Plan) -> list[list[int]]:
    """By stage, the steps that leave layers out."""
    return [[i for i, s in enumerate(stage.steps) if s.guidance[-1][0] == "skip"] for stage in plan.stages]


def test_what_is_not_given_comes_from_the_defaults() -> None:
    options = PlanOptions.from_defaults(DEFAULTS, num_inference_steps=7, height=None)
    assert (options.num_inference_steps, options.height, options.guidance_scale) == (7, 1024, 5.0)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ("published", [list(range(1, 8)), list(range(1, 8))]),
        ("stage", [list(range(1, 4)), list(range(1, 8))]),
        ("first", [list(range(1, 8)), []]),
    ],
)
def test_the_skip_window_opens_where_its_rule_says(window: str, expected: list[list[int]]) -> None:
    skip = SkipLayerGuidance(window=window)
    assert skipping(plan_for(flow_facts("range"), num_inference_steps=40, shorten=True, skip_layers=skip)) == expected


def test_skip_layer_guidance_adds_a_branch_and_moves_its_weight_to_the_positive_one() -> None:
    step = plan_for(flow_facts("range"), guidance_scale=4.5, skip_layers=SkipLayerGuidance()).stages[0].steps[1]
    assert dict(step.guidance) == pytest.approx({"negative": -3.5, "positive": 7.3, "skip": -2.8})
    assert [name for name, _ in step.guidance] == ["negative", "positive", "skip"]


def test_skip_layer_guidance_rests_without_classifier_free_guidance() -> None:
    plan = plan_for(flow_facts("range"), guidance_scale=1.0, skip_layers=SkipLayerGuidance())
    assert all(step.guidance == (("positive", 1.0),) for stage in plan.stages for step in stage.steps)


def test_embedded_guidance_evaluates_one_branch_and_true_guidance_two() -> None:
    facts = flow_facts("even")
    assert plan_for(facts).stages[0].steps[0].guidance == (("positive", 1.0),)
    both = plan_for(facts, true_cfg_scale=4.0).stages[0].steps[0].guidance
    assert both == (("negative", -3.0), ("positive", 4.0))


@pytest.mark.parametrize(("scale", "weights"), [(2.5, (-2.5, 3.5)), (0.0, ()), (0.5, (-0.5, 1.5))])
def test_zimage_counts_guidance_from_the_positive_branch(scale: float, weights: tuple[float, ...]) -> None:
    step = plan_for(ALIASES["z-image"].facts(), guidance_scale=scale).stages[0].steps[0]
    assert tuple(weight for _, weight in step.guidance) == (weights or (1.0,))


def test_steps_beyond_a_truncation_have_one_branch() -> None:
    stages = plan_for(flow_facts("range"), cfg_truncation=0.4).stages
    found = [(1 - step.sigma, len(step.guidance)) for stage in stages for step in stage.steps]
    assert {count for _, count in found} == {1, 2}
    assert all((count == 1) == (way > 0.4) for way, count in found)


def test_start_sigma_one_runs_a_single_stage() -> None:
    (stage,) = plan_for(flow_facts("range"), start_sigma=1.0).stages
    assert (stage.height, len(stage.steps), stage.noise) == (128, 50, 1.0)


@pytest.mark.parametrize(("start", "size"), [(0.75, (1024, 1088)), (1.0, (1040, 1088))])
def test_flux_sizes_are_rounded_down_with_a_note_for_the_stages_that_run(start: float, size: tuple[int, int]) -> None:
    plan = plan_for(flow_facts("even"), height=1040, width=1100, start_sigma=start)
    assert (plan.height_px, plan.width_px) == size
    assert f"1088 x {size[0]} px, not 1100 x 1040" in plan.notes[0]


def test_a_run_that_cannot_be_staged_says_so() -> None:
    assert "One stage only" in plan_for(ALIASES["sdxl"].facts()).notes[0]


def test_shortening_of_the_last_stage_is_told() -> None:
    plan = plan_for(ALIASES["flux-dev"].facts(), height=512, width=512)
    assert any("25 of 50 steps" in note for note in plan.notes)


def test_the_label_mismatch_of_cogview4_is_told_and_can_be_repaired() -> None:
    facts = ALIASES["cogview4"].facts()
    assert any("noised to 0.7550, but its solver starts at 0.9092" in note for note in plan_for(facts).notes)
    for repair in ({"injection": "sigma"}, {"start_rule": "sigma"}):
        plan = plan_for(facts, **repair)
        assert plan.stages[-1].noise == pytest.approx(plan.stages[-1].steps[0].sigma)
        assert not plan.notes


@pytest.mark.parametrize(("alias", "label"), [("sdxl", 681), ("sd15", 681), ("sd21", 681)])
def test_a_start_by_sigma_means_the_same_noise_for_diffusion_as_for_flow(alias: str, label: float) -> None:
    plan = plan_for(ALIASES[alias].facts(), height=1024, width=1024, min_resolution=512, start_rule="sigma")
    stage = plan.stages[-1]
    assert stage.noise / (stage.image + stage.noise) == pytest.approx(0.75, abs=0.02)
    assert stage.steps[0].label == label


def test_a_start_by_sigma_counts_in_the_spread_of_edm_latents() -> None:
    plan = plan_for(ALIASES["playground"].facts(), min_resolution=512, start_rule="sigma")
    sigma = plan.stages[-1].steps[0].sigma
    assert sigma / (sigma + 0.5) == pytest.approx(0.75, abs=0.03)


def test_aligned_pndm_repeats_the_second_timestep_of_a_later_stage() -> None:
    facts = diffusion_facts("PNDMScheduler", skip_prk_steps=True)
    labels = [[step.label for step in plan_for(facts, pndm=p).stages[1].steps] for p in ("published", "aligned")]
    assert labels[0][:4] == [741, 721, 701, 681]
    assert labels[1][:4] == [741, 721, 721, 701]
    assert labels[1][3:] == labels[0][2:]


def test_published_pndm_starts_cold_in_every_stage() -> None:
    plan = plan_for(diffusion_facts("PNDMScheduler", skip_prk_steps=True))
    for stage in plan.stages:
        assert [len(step.blend) for step in stage.steps[:6]] == [1, 2, 3, 4, 5, 4]


@pytest.mark.parametrize(
    ("scheduler", "given", "drawn"),
    [
        ("EulerDiscreteScheduler", {}, {None}),
        ("DDIMScheduler", {}, {None}),
        ("EulerAncestralDiscreteScheduler", {}, {True}),
        ("DDIMScheduler", {"eta": 0.5}, {True}),
        ("LCMScheduler", {}, {True, None}),
    ],
)
def test_only_stochastic_solvers_draw(scheduler: str, given: dict[str, float], drawn: set[object]) -> None:
    for stage in plan_for(diffusion_facts(scheduler), **given).stages:
        assert {None if step.noise is None else True for step in stage.steps} == drawn


def test_the_first_noise_of_sd_is_not_put_on_the_noise_of_later_stages() -> None:
    """The published SD pipeline multiplies both by init_noise_sigma, which Euler-type solvers do not survive."""
    low, high = plan_for(diffusion_facts("EulerDiscreteScheduler", timestep_spacing="leading")).stages
    assert low.noise == pytest.approx(13.158, abs=1e-3)
    assert high.noise == pytest.approx(high.steps[0].sigma)


def test_speed_up_counts_stages_steps_and_branches() -> None:
    facts = flow_facts("range")  # a cost of 1 per cell
    plan = plan_for(facts, num_inference_steps=40, shorten=True)
    assert predicted_speedup(plan, facts) == pytest.approx(40 / (20 / 4 + 21))
    with_skip = plan_for(facts, num_inference_steps=40, shorten=True, skip_layers=SkipLayerGuidance())
    assert predicted_speedup(with_skip, facts) == pytest.approx((2 * 40 + 7) / ((2 * 20 + 7) / 4 + 2 * 21 + 7))


def test_attention_makes_small_stages_cheaper_still() -> None:
    assert NetworkCost(fixed=1, per_cell=2, per_cell_pair=3).flops(10) == 1 + 20 + 300


def test_trailing_timesteps_are_as_many_as_were_asked_for() -> None:
    """In 998 steps of 1000 / 998, rounding makes a 999th, whose label would be -1."""
    facts = diffusion_facts("EulerDiscreteScheduler", timestep_spacing="trailing")
    (stage,) = plan_for(facts, num_inference_steps=998, start_sigma=1.0).stages
    assert (len(stage.steps), stage.steps[-1].label) == (998, 0)


def test_steps_may_be_said_stage_by_stage() -> None:
    facts = flow_facts("range", DEFAULTS)
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, stage_steps=(7, 20), shorten=True))
    assert [stage.schedule_steps for stage in plan.stages] == [7, 20]
    assert not any("steps" in note for note in plan.notes)
    single = PlanOptions.from_defaults(facts.defaults, stage_steps=(7, 20)).in_one_stage()
    assert [stage.schedule_steps for stage in make_plan(facts, single).stages] == [50]


@pytest.mark.parametrize("steps", [(7,), (7, 8, 9)])
def test_steps_for_another_number_of_stages_are_refused(steps: tuple[int, ...]) -> None:
    facts = flow_facts("range", DEFAULTS)
    with pytest.raises(PlanError, match=rf"stage_steps has {len(steps)} numbers, but the run has 2 stages"):
        make_plan(facts, PlanOptions.from_defaults(facts.defaults, stage_steps=steps))
