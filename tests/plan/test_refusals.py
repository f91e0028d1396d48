"""What cannot run is refused before anything loads, in words."""

import re
from dataclasses import replace

import pytest
from rows import BETAS, FLOW_CONFIGS, diffusion_facts, flow_facts

from lssgen.errors import PlanError
from lssgen.plan import ModelFacts, PlanOptions, SkipLayerGuidance, Step, make_plan


def refused(facts: ModelFacts, words: str, **given: object) -> None:
    with pytest.raises(PlanError, match=words):
        make_plan(facts, PlanOptions.from_defaults(facts.defaults, **given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"height": 496, "width": 512}, "below min_resolution, 512 px.*set min_resolution to 496"),
        ({"height": 1040}, "multiples of 32 px; 1024 x 1040 is not: use 1024 x 1024 or 1024 x 1056"),
        ({"height": 8, "width": 8, "min_resolution": 8}, "raise min_resolution, which is 8 px, to at least 16 px"),
        (
            {"num_inference_steps": 4, "height": 128, "width": 128, "min_resolution": 128, "shorten": True},
            "128 x 128 px gets no step",
        ),
        ({"start_sigma": 0.0}, "start_sigma is 0; it must lie above 0"),
        ({"start_sigma": 1.2}, "at most 1"),
        ({"start_sigma": float("nan")}, "start_sigma is nan"),
        ({"num_inference_steps": 0}, "steps is 0; it must be at least 1"),
        ({"height": -8}, "height is -8"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf; it must be a finite number"),
        ({"scaling_space": "bilinear"}, "'bilinear'; it must be one of resnet, latent, pixel"),
        ({"solver": "deis"}, "'deis' does not fit flow-range .*; choose euler, dpm"),
        ({"solver": "pndm"}, "'pndm' does not fit"),
        ({"eta": 0.5}, "only the ddim solver takes it; this run uses euler"),
        ({"eta": 2.0}, "eta is 2; it must lie in 0 to 1"),
        ({"sigmas": (0.5, 0.8)}, "must fall from level to level"),
        ({"sigmas": (1.0, 0.0)}, "above 0"),
        ({"sigmas": (1.5, 0.5)}, "at most at 1"),
        ({"sigmas": (0.4, 0.2)}, "no level of the schedule in the stage of .* is as noisy as start_sigma 0.75"),
        ({"true_cfg_scale": 3.0}, "classifier-free guidance already; set guidance_scale"),
        ({"pndm": "fixed"}, "pndm is 'fixed'; it must be one of published, aligned"),
    ],
)
def test_an_impossible_request_is_refused_with_advice(given: dict[str, object], words: str) -> None:
    refused(flow_facts("range"), words, **given)


def test_a_side_beyond_the_position_table_is_refused() -> None:
    facts = replace(flow_facts(), longest_side=192)  # cells of 8 px
    refused(facts, "knows positions up to 1536 px a side; 1568 x 1024 is larger", width=1568)
    assert make_plan(facts, PlanOptions.from_defaults(facts.defaults, width=1536)).width_px == 1536


def test_guidance_until_a_noise_level_is_refused_where_levels_are_no_shares() -> None:
    refused(diffusion_facts("DDIMScheduler"), "cfg_truncation fits flow models only", cfg_truncation=0.5)


def test_a_share_of_the_steps_that_is_less_than_one_is_refused() -> None:
    refused(
        diffusion_facts("DDIMScheduler"),
        "start_sigma 0.3 leaves no step out of 3",
        num_inference_steps=3,
        start_sigma=0.3,
    )


def test_custom_sigmas_are_refused_for_diffusion_models() -> None:
    refused(diffusion_facts("DDIMScheduler"), "custom sigmas fit flow models only", sigmas=(1.0, 0.5))


def test_a_transition_that_the_model_cannot_use_is_refused() -> None:
    facts = ModelFacts(**{f: getattr(flow_facts(), f) for f in ModelFacts.__slots__} | {"scaling_spaces": ("latent",)})
    refused(facts, "cannot be scaled in 'resnet' space; choose latent")


def test_skipped_layers_need_guidance_branches() -> None:
    refused(flow_facts("even"), "no guidance branches", skip_layers=SkipLayerGuidance())


@pytest.mark.parametrize("window", [(0.2, 0.1), (-0.1, 0.5), (0.1, 1.1)])
def test_a_skip_window_outside_the_run_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(
        PlanError, match=r"0 <= start < stop <= 1|start is -0.1; .* at least 0|stop is 1.1; .* at most 1"
    ):
        SkipLayerGuidance(start=window[0], stop=window[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("invert_sigmas", True),
        ("time_shift_type", "cubic"),
        ("shift", "three"),
        ("shift", float("nan")),
        ("shift_terminal", "end"),
        ("base_image_seq_len", 256.5),
        ("num_train_timesteps", 0),
        ("use_dynamic_shifting", "yes"),
    ],
)
def test_a_flow_schedule_that_cannot_be_reproduced_names_the_field(field: str, value: object) -> None:
    assert field not in FLOW_CONFIGS["range"] or field == "shift"
    refused(flow_facts("range", **{field: value}), f"field {field} of the FlowMatchEuler.* is {value!r}")


@pytest.mark.parametrize(
    ("scheduler", "field", "value", "instead"),
    [
        ("DDIMScheduler", "clip_sample", True, "euler"),
        ("DDIMScheduler", "thresholding", True, "euler"),
        ("DDIMScheduler", "trained_betas", [0.1], ""),
        ("DDIMScheduler", "beta_schedule", "sigmoid", ""),
        ("DDIMScheduler", "prediction_type", "sample", ""),
        ("DDPMScheduler", "variance_type", "learned_range", "euler-ancestral"),
        ("EulerDiscreteScheduler", "timestep_spacing", "even", ""),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear", "ddim"),
        ("HeunDiscreteScheduler", "clip_sample", True, "kdpm2"),
        ("DPMSolverMultistepScheduler", "solver_order", 4, "dpm++2m"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver+++", "dpm++2m"),
        ("DPMSolverMultistepScheduler", "thresholding", True, "euler"),
        ("DPMSolverSinglestepScheduler", "algorithm_type", "sde-dpmsolver++", "dpm++2m"),
        ("UniPCMultistepScheduler", "solver_p", {"_class_name": "DDIMScheduler"}, "dpm++2m"),
        ("PNDMScheduler", "skip_prk_steps", False, "deis"),
        ("PNDMScheduler", "timestep_spacing", "trailing", "deis"),
        ("EDMDPMSolverMultistepScheduler", "sigma_schedule", "linear", ""),
    ],
)
def test_a_diffusion_schedule_that_cannot_be_reproduced_names_the_field_and_what_works(
    scheduler: str, field: str, value: object, instead: str
) -> None:
    given = {"skip_prk_steps": True} | {field: value} if scheduler.startswith("PNDM") else {field: value}
    facts = diffusion_facts(scheduler, **given)
    words = f"field {field} of the {scheduler}.*"
    name = re.escape(instead)
    refused(facts, words + (f"the nearest that works is --scheduler {name}$" if instead else "it must be"))
    if instead:
        assert make_plan(facts, PlanOptions.from_defaults(facts.defaults, scheduler=instead)).stages


def test_an_sde_of_third_order_is_refused() -> None:
    facts = diffusion_facts("DPMSolverMultistepScheduler", solver_order=3, algorithm_type="sde-dpmsolver++")
    refused(facts, r"solver_order .* must be 1 or 2 for an SDE.*--scheduler dpm\+\+2m$")


def test_dpm_solver_of_the_noise_must_end_above_a_clean_picture() -> None:
    facts = diffusion_facts("DPMSolverMultistepScheduler", algorithm_type="dpmsolver")
    refused(facts, r"final_sigmas_type .* is 'zero', .* must be sigma_min for dpmsolver; .*--scheduler dpm\+\+2m$")


def test_flow_levels_ask_for_a_network_that_predicts_flow() -> None:
    refused(diffusion_facts("UniPCMultistepScheduler", use_flow_sigmas=True), "prediction_type .* flow_prediction")


def test_fields_that_the_class_does_not_read_do_no_harm() -> None:
    """diffusers passes over them too."""
    facts = diffusion_facts("EulerAncestralDiscreteScheduler", use_karras_sigmas=True, clip_sample=True)
    plain = diffusion_facts("EulerAncestralDiscreteScheduler")
    plans = [make_plan(one, PlanOptions.from_defaults(one.defaults)) for one in (facts, plain)]
    assert plans[0].stages == plans[1].stages


def test_fields_that_are_switched_off_do_no_harm() -> None:
    off = {"use_karras_sigmas": False, "shift_terminal": None, "trained_betas": None, "lambda_min_clipped": "-Infinity"}
    for facts in (flow_facts("range", **off), diffusion_facts("EulerDiscreteScheduler", **BETAS | off)):
        assert make_plan(facts, PlanOptions.from_defaults(facts.defaults)).stages


@pytest.mark.parametrize(
    ("scheduler", "instead"),
    [
        ("DPMSolverSDEScheduler", "dpm++2m-sde"),
        ("SASolverScheduler", "dpm++2m-sde"),
        ("IPNDMScheduler", "pndm"),
        ("MadeUpScheduler", "dpm++2m"),
    ],
)
def test_an_unknown_scheduler_is_refused_with_the_nearest_that_works(scheduler: str, instead: str) -> None:
    facts = diffusion_facts(scheduler)
    name = re.escape(instead)
    refused(facts, rf"{scheduler} cannot be reproduced \(field _class_name\).* --scheduler {name}; known are .*DDIM")
    assert make_plan(facts, PlanOptions.from_defaults(facts.defaults, scheduler=instead)).stages


def test_more_steps_than_lcm_was_distilled_at_are_refused() -> None:
    refused(diffusion_facts("LCMScheduler"), "LCM was distilled at 50", num_inference_steps=51)


def test_more_steps_than_lcm_was_distilled_at_are_taken_where_shortening_leaves_fewer() -> None:
    """A stage of a quarter of the base size gets half of the steps: 30 of 60 do not exceed 50."""
    facts = diffusion_facts("LCMScheduler")
    plan = make_plan(
        facts, PlanOptions.from_defaults(facts.defaults, num_inference_steps=60, shorten=True, height=512, width=512)
    )
    assert len(plan.stages[0].steps) == 30
    assert plan.single_stage_passes == 2 * 50


def test_more_steps_than_timesteps_are_refused() -> None:
    refused(diffusion_facts("DDIMScheduler"), "trained with 1000 timesteps", num_inference_steps=1001)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 1000), ("pndm", 1000), ("dpm++2m", 999)])
def test_an_offset_that_leads_beyond_the_last_timestep_is_refused(solver: str, steps: int) -> None:
    facts = diffusion_facts("DDIMScheduler", timestep_spacing="leading")
    words = rf"{steps} steps begin at timestep 1000, beyond the model's last, 999 \(steps_offset is 1\)"
    refused(facts, words, num_inference_steps=steps, solver=solver)


def test_a_step_graph_with_too_short_a_memory_is_named() -> None:
    step = Step(label=1, sigma=1, next_sigma=0, keep=1, blend=(1.0, 2.0, 3.0))
    with pytest.raises(PlanError, match="blends 3 estimates, but the exported step graph keeps 2"):
        step.row(1)
