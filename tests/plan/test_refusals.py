"""What cannot run is refused before anything loads, in words."""

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
        ({"height": 500, "width": 512}, "below min_resolution, 512 px.*set min_resolution to 500"),
        ({"height": 1040}, "multiples of 32 px; 1040 x 1024 is not: use 1024 or 1056 for the height and 1024 for"),
        ({"height": 8, "width": 8, "min_resolution": 8}, "use 16 for the height"),
        (
            {"steps": 4, "height": 128, "width": 128, "min_resolution": 128, "shorten": True},
            "128 x 128 px gets no step",
        ),
        ({"start_sigma": 0.0}, "start_sigma is 0; it must lie above 0"),
        ({"start_sigma": 1.2}, "at most 1"),
        ({"start_sigma": float("nan")}, "start_sigma is nan"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"height": -8}, "height is -8"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf; it must be a finite number"),
        ({"scaling_space": "bilinear"}, "'bilinear'; it must be one of resnet, latent, pixel"),
        ({"solver": "heun"}, "'heun' does not fit flow-range .*; choose euler, dpm"),
        ({"solver": "pndm"}, "'pndm' does not fit"),
        ({"eta": 0.5}, "only the ddim solver takes it; this run uses euler"),
        ({"eta": 2.0}, "eta is 2; it must lie in 0 to 1"),
        ({"sigmas": (0.5, 0.8)}, "must fall from level to level"),
        ({"sigmas": (1.0, 0.0)}, "above 0"),
        ({"sigmas": (1.5, 0.5)}, "at most at 1"),
        ({"sigmas": (0.4, 0.2)}, "no level of the schedule in the stage of .* is as noisy as start_sigma 0.75"),
        ({"true_guidance_scale": 3.0}, "classifier-free guidance already; set guidance_scale"),
        ({"pndm": "fixed"}, "pndm is 'fixed'; it must be one of published, aligned"),
    ],
)
def test_an_impossible_request_is_refused_with_advice(given: dict[str, object], words: str) -> None:
    refused(flow_facts("range"), words, **given)


def test_a_side_beyond_the_position_table_is_refused() -> None:
    facts = replace(flow_facts(), longest_side=192)  # cells of 8 px
    refused(facts, "knows positions up to 1536 px a side; 1024 x 1568 is larger", width=1568)
    assert make_plan(facts, PlanOptions.from_defaults(facts.defaults, width=1536)).width_px == 1536


def test_a_share_of_the_steps_that_is_less_than_one_is_refused() -> None:
    refused(diffusion_facts("DDIMScheduler"), "start_sigma 0.3 leaves no step out of 3", steps=3, start_sigma=0.3)


def test_custom_sigmas_are_refused_for_diffusion_models() -> None:
    refused(diffusion_facts("DDIMScheduler"), "custom sigmas fit flow models only", sigmas=(1.0, 0.5))


def test_a_transition_that_the_model_cannot_use_is_refused() -> None:
    facts = ModelFacts(**{f: getattr(flow_facts(), f) for f in ModelFacts.__slots__} | {"scaling_spaces": ("latent",)})
    refused(facts, "cannot be scaled in 'resnet' space; choose latent")


def test_skipped_layers_need_guidance_branches() -> None:
    refused(flow_facts("even"), "no guidance branches", skip_layers=SkipLayerGuidance())


@pytest.mark.parametrize("window", [(0.2, 0.1), (-0.1, 0.5), (0.1, 1.1)])
def test_a_skip_window_outside_the_run_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(PlanError, match="0 <= start < stop <= 1"):
        SkipLayerGuidance(start=window[0], stop=window[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("shift_terminal", 0.1),
        ("invert_sigmas", True),
        ("stochastic_sampling", True),
        ("time_shift_type", "cubic"),
        ("shift", "three"),
        ("base_image_seq_len", 256.5),
        ("use_dynamic_shifting", "yes"),
    ],
)
def test_a_flow_schedule_that_cannot_be_reproduced_names_the_field(field: str, value: object) -> None:
    assert field not in FLOW_CONFIGS["range"] or field == "shift"
    refused(flow_facts("range", **{field: value}), f"field {field} of the FlowMatchEuler.* is {value!r}")


@pytest.mark.parametrize(
    ("scheduler", "field", "value"),
    [
        ("DDIMScheduler", "clip_sample", True),
        ("DDIMScheduler", "thresholding", True),
        ("DDIMScheduler", "rescale_betas_zero_snr", True),
        ("DDIMScheduler", "trained_betas", [0.1]),
        ("DDIMScheduler", "beta_schedule", "squaredcos_cap_v2"),
        ("DDIMScheduler", "prediction_type", "sample"),
        ("EulerDiscreteScheduler", "timestep_spacing", "even"),
        ("EulerDiscreteScheduler", "interpolation_type", "log_linear"),
        ("DPMSolverMultistepScheduler", "solver_order", 3),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++"),
        ("DPMSolverMultistepScheduler", "final_sigmas_type", "sigma_min"),
        ("DPMSolverMultistepScheduler", "lambda_min_clipped", -5.1),
        ("PNDMScheduler", "skip_prk_steps", False),
        ("EDMDPMSolverMultistepScheduler", "sigma_schedule", "exponential"),
    ],
)
def test_a_diffusion_schedule_that_cannot_be_reproduced_names_the_field(
    scheduler: str, field: str, value: object
) -> None:
    refused(diffusion_facts(scheduler, **{field: value}), f"field {field} of the {scheduler}")


def test_fields_that_are_switched_off_do_no_harm() -> None:
    off = {"use_karras_sigmas": False, "shift_terminal": None, "trained_betas": None, "lambda_min_clipped": "-Infinity"}
    for facts in (flow_facts("range", **off), diffusion_facts("EulerDiscreteScheduler", **BETAS | off)):
        assert make_plan(facts, PlanOptions.from_defaults(facts.defaults)).stages


def test_an_unknown_scheduler_is_refused_with_those_that_are_known() -> None:
    refused(diffusion_facts("UniPCMultistepScheduler"), r"UniPC.* cannot be reproduced \(field _class_name\).*DDIM")


def test_more_steps_than_lcm_was_distilled_at_are_refused() -> None:
    refused(diffusion_facts("LCMScheduler"), "LCM was distilled at 50", steps=51)


def test_more_steps_than_lcm_was_distilled_at_are_taken_where_shortening_leaves_fewer() -> None:
    """A stage of a quarter of the base size gets half of the steps: 30 of 60 do not exceed 50."""
    facts = diffusion_facts("LCMScheduler")
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, steps=60, shorten=True, height=512, width=512))
    assert len(plan.stages[0].steps) == 30
    assert plan.single_stage_passes == 2 * 50


def test_more_steps_than_timesteps_are_refused() -> None:
    refused(diffusion_facts("DDIMScheduler"), "trained with 1000 timesteps", steps=1001)


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 1000), ("pndm", 1000), ("dpm++2m", 999)])
def test_an_offset_that_leads_beyond_the_last_timestep_is_refused(solver: str, steps: int) -> None:
    facts = diffusion_facts("DDIMScheduler", timestep_spacing="leading")
    words = rf"{steps} steps begin at timestep 1000, beyond the model's last, 999 \(steps_offset is 1\)"
    refused(facts, words, steps=steps, solver=solver)


def test_a_step_graph_with_too_short_a_memory_is_named() -> None:
    step = Step(label=1, sigma=1, next_sigma=0, keep=1, blend=(1.0, 2.0, 3.0))
    with pytest.raises(PlanError, match="blends 3 estimates, but the exported step graph keeps 2"):
        step.row(1)
