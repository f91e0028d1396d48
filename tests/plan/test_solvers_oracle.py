"""The rows against diffusers' schedulers: same levels, same network, same noise, both stages of a run."""

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch
from rows import BETAS, FLOW, diffusion_facts, flow_facts, run_steps
from torch import Tensor

from lssgen.plan import Defaults, ModelFacts, PlanOptions, Stage, Step, make_plan
from lssgen.plan.schedulers import NEAR_STRANGERS, SCHEDULERS
from lssgen.plan.sigmas import beta_quantiles

# diffusers' own code, which NumPy 2 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context"),
    pytest.mark.filterwarnings("ignore:`algorithm_types.*is deprecated:FutureWarning"),
]

SHAPE = (1, 4, 8, 8)
TWO_STAGES = Defaults(
    height=128,
    width=128,
    num_inference_steps=12,
    guidance_scale=1.0,
    min_resolution=64,
    base_height=128,
    base_width=128,
)
EDM = {"sigma_data": 0.5}
OWN_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}

# (name, diffusers class, configuration beyond the betas, arguments of its step)
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("pndm", "PNDMScheduler", {"skip_prk_steps": True}, {}),
    ("pndm-v", "PNDMScheduler", {"skip_prk_steps": True, "prediction_type": "v_prediction"}, {}),
    ("ddim", "DDIMScheduler", {}, {}),
    ("ddim-v", "DDIMScheduler", {"prediction_type": "v_prediction"}, {}),
    ("ddim-one", "DDIMScheduler", {"set_alpha_to_one": True}, {}),
    ("ddim-trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}, {}),
    ("ddim-linspace", "DDIMScheduler", {"timestep_spacing": "linspace"}, {}),
    ("ddim-eta", "DDIMScheduler", {}, {"eta": 0.6}),
    ("ddim-eta-one", "DDIMScheduler", {"set_alpha_to_one": True, "prediction_type": "v_prediction"}, {"eta": 1.0}),
    ("euler-leading", "EulerDiscreteScheduler", {"timestep_spacing": "leading"}, {}),
    ("euler-linspace", "EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, {}),
    (
        "euler-trailing-v",
        "EulerDiscreteScheduler",
        {"timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {},
    ),
    ("ancestral", "EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, {}),
    ("ancestral-v", "EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    ("dpm++", "DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, {}),
    ("dpm++-linspace-v", "DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}, {}),
    ("dpm++-trailing", "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, {}),
    ("lcm", "LCMScheduler", {}, {}),
    ("edm-dpm++", "EDMDPMSolverMultistepScheduler", EDM, {}),
    ("edm-dpm++-v", "EDMDPMSolverMultistepScheduler", EDM | {"prediction_type": "v_prediction"}, {}),
    ("edm-euler", "EDMEulerScheduler", EDM, {}),
    ("edm-euler-exponential", "EDMEulerScheduler", EDM | {"sigma_schedule": "exponential"}, {}),
    ("edm-dpm++3", "EDMDPMSolverMultistepScheduler", EDM | {"solver_order": 3}, {}),
    ("edm-dpm++-sde", "EDMDPMSolverMultistepScheduler", EDM | {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("ddim-zero-snr", "DDIMScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    ("ddim-trained", "DDIMScheduler", {"trained_betas": np.linspace(1e-3, 2e-2, 1000).tolist()}, {}),
    ("ddim-cosine", "DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {}),
    ("ddpm", "DDPMScheduler", {}, {}),
    ("ddpm-v-trailing", "DDPMScheduler", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, {}),
    ("ddpm-linspace", "DDPMScheduler", {"timestep_spacing": "linspace", "variance_type": "fixed_small_log"}, {}),
    ("ddpm-large", "DDPMScheduler", {"variance_type": "fixed_large"}, {}),
    ("ddpm-zero-snr", "DDPMScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    ("euler-karras", "EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    (
        "euler-karras-ends",
        "EulerDiscreteScheduler",
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},
        {},
    ),
    (
        "euler-exponential",
        "EulerDiscreteScheduler",
        {"use_exponential_sigmas": True, "timestep_spacing": "leading"},
        {},
    ),
    ("euler-beta", "EulerDiscreteScheduler", {"use_beta_sigmas": True}, {}),
    ("euler-zero-snr", "EulerDiscreteScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    ("euler-sigma-min", "EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {}),
    (
        "euler-continuous",
        "EulerDiscreteScheduler",
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
        {},
    ),
    ("ancestral-zero-snr", "EulerAncestralDiscreteScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    ("heun", "HeunDiscreteScheduler", {}, {}),
    ("heun-leading-v", "HeunDiscreteScheduler", {"timestep_spacing": "leading", "prediction_type": "v_prediction"}, {}),
    ("heun-karras", "HeunDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("kdpm2", "KDPM2DiscreteScheduler", {}, {}),
    ("kdpm2-karras-v", "KDPM2DiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    ("kdpm2-ancestral", "KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
    ("kdpm2-ancestral-karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("lms", "LMSDiscreteScheduler", {}, {}),
    ("lms-karras-v", "LMSDiscreteScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    ("dpm++1", "DPMSolverMultistepScheduler", {"solver_order": 1}, {}),
    ("dpm++3", "DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    ("dpm++3-upper", "DPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, {}),
    ("dpm++-heun", "DPMSolverMultistepScheduler", {"solver_type": "heun"}, {}),
    ("dpm++-sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    (
        "dpm++-sde-karras",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "solver_type": "heun", "euler_at_final": True},
        {},
    ),
    ("dpm++-karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading"}, {}),
    ("dpm++-exponential", "DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, {}),
    ("dpm++-beta", "DPMSolverMultistepScheduler", {"use_beta_sigmas": True, "solver_order": 3}, {}),
    ("dpm++-lu", "DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {}),
    (
        "dpm++-sigma-min",
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {},
    ),
    (
        "dpm++-euler-final",
        "DPMSolverMultistepScheduler",
        {"final_sigmas_type": "sigma_min", "euler_at_final": True},
        {},
    ),
    ("dpm++-zero-snr", "DPMSolverMultistepScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    (
        "dpm++-cosine",
        "DPMSolverMultistepScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "solver_order": 3},
        {},
    ),
    ("dpm", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {}),
    (
        "dpm-3-v",
        "DPMSolverMultistepScheduler",
        {
            "algorithm_type": "dpmsolver",
            "final_sigmas_type": "sigma_min",
            "solver_order": 3,
            "prediction_type": "v_prediction",
        },
        {},
    ),
    (
        "dpm-sde-heun",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun"},
        {},
    ),
    ("singlestep", "DPMSolverSinglestepScheduler", {}, {}),
    ("singlestep-1", "DPMSolverSinglestepScheduler", {"solver_order": 1}, {}),
    ("singlestep-3", "DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}, {}),
    ("singlestep-3-heun", "DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}, {}),
    (
        "singlestep-heun-v",
        "DPMSolverSinglestepScheduler",
        {"solver_type": "heun", "prediction_type": "v_prediction"},
        {},
    ),
    (
        "singlestep-noise",
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        {},
    ),
    ("unipc", "UniPCMultistepScheduler", {}, {}),
    ("unipc-1", "UniPCMultistepScheduler", {"solver_order": 1}, {}),
    ("unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}, {}),
    # With "zero", diffusers multiplies 0 and infinity in the last step of bh1.
    (
        "unipc-3-bh1",
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh1", "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
        {},
    ),
    ("unipc-noise", "UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}, {}),
    ("unipc-karras-v", "UniPCMultistepScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    ("unipc-exponential", "UniPCMultistepScheduler", {"use_exponential_sigmas": True}, {}),
    ("unipc-stays", "UniPCMultistepScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, {}),
    ("unipc-uncorrected", "UniPCMultistepScheduler", {"disable_corrector": [0, 2, 4]}, {}),
    ("unipc-zero-snr", "UniPCMultistepScheduler", ZERO_SNR | {"timestep_spacing": "trailing"}, {}),
    ("deis", "DEISMultistepScheduler", {}, {}),
    ("deis-1", "DEISMultistepScheduler", {"solver_order": 1}, {}),
    ("deis-3", "DEISMultistepScheduler", {"solver_order": 3, "timestep_spacing": "leading"}, {}),
    ("deis-karras-v", "DEISMultistepScheduler", {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, {}),
    ("lcm-v", "LCMScheduler", {"prediction_type": "v_prediction", "original_inference_steps": 100}, {}),
    ("tcd", "TCDScheduler", {}, {"eta": 0.0}),
]


def network(h: Any, label: float) -> Any:
    """Not linear, and not the same at every level."""
    tanh = torch.tanh if isinstance(h, Tensor) else np.tanh
    return 0.9 * tanh(0.6 * h) + 0.05 * float(np.cos(0.01 * label))


def scheduler_for(name: str, config: dict[str, Any]) -> Any:
    return getattr(diffusers, name).from_config(config if name.startswith("EDM") else BETAS | config)


def in_float64(scheduler: Any) -> None:
    """Have a scheduler work out its weights in float64, from the float32 levels that it keeps.

    Its float32 weights cancel, and UniPC solves systems of them: they come to 2e-4 of a latent.
    """
    for name in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "alphas_cumprod"):
        if isinstance(kept := getattr(scheduler, name, None), Tensor):
            setattr(scheduler, name, kept.double())


def oracle(scheduler: Any, skipped: int, x: Tensor, generator: torch.Generator, arguments: dict[str, Any]) -> Tensor:
    """A pipeline's loop over what is left of a schedule."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for turn, time in enumerate(scheduler.timesteps[skipped:]):
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        out = network(scaled, float(time))
        drawn = {"generator": generator} if takes_generator else {}
        # Of its own, LMS takes the order of a step in the middle of a schedule for which it has no estimates yet.
        order = {"order": min(4, turn + 1)} if isinstance(scheduler, diffusers.LMSDiscreteScheduler) else {}
        x = scheduler.step(out, time, x, return_dict=False, **arguments, **drawn, **order)[0]
    return x


def stages_of(facts: ModelFacts, **given: Any) -> tuple[Stage, ...]:
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **given)).stages


# With 4 steps the later stage begins on the timestep that PNDM repeats.
@pytest.mark.parametrize("steps", [4, 5, 12, 30])
@pytest.mark.parametrize(("name", "kind", "config", "arguments"), CASES, ids=[case[0] for case in CASES])
def test_rows_do_what_the_diffusers_scheduler_does(
    name: str, kind: str, config: dict[str, Any], arguments: dict[str, Any], steps: int
) -> None:
    scheduler = scheduler_for(kind, config)
    stages = stages_of(diffusion_facts(kind, TWO_STAGES, **config), num_inference_steps=steps, **arguments)
    for number, stage in enumerate(stages):
        scheduler.set_timesteps(steps)
        skipped = len(scheduler.timesteps) - len(stage.steps)
        assert (skipped > 0) == (number > 0), name
        in_float64(scheduler)
        labels = scheduler.timesteps[skipped:].double().numpy()
        # Float32 in diffusers, whose logarithms are then interpolated in a table of as many; 1e-3 of 1000 timesteps.
        assert [step.label for step in stage.steps] == pytest.approx(labels, abs=1e-3)

        ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        image, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1)).unsqueeze(1).unbind()
        image, noise = image[0], noise[0]
        if number == 0:
            start = noise * scheduler.init_noise_sigma
            mixed = stage.noise * noise
        else:
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skipped)
            start = scheduler.add_noise(image, noise, scheduler.timesteps[skipped : skipped + 1])
            mixed = stage.image * image + stage.noise * noise
        # Levels are float32 in diffusers and come to 80.
        torch.testing.assert_close(mixed, start, rtol=1e-6, atol=1e-6)

        exact = start.double() if all(step.noise is None for step in stage.steps) else start  # a draw is of its type
        expected = oracle(scheduler, skipped, exact, theirs, arguments)
        got = run_steps(
            stage.steps,
            mixed.double().numpy(),
            lambda h, step: network(h, step.label),
            lambda: torch.randn(SHAPE, generator=ours).double().numpy(),  # noqa: B023 - called before the next turn
        )
        # Some classes compute in float32 all the same, and stochastic ones do here; their latents come to about 60.
        np.testing.assert_allclose(got, expected.double().numpy(), atol=3e-6 * float(expected.abs().max() + 1))
        # A draw too many or too few would move the noise of every later stage.
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("grid", ["range", "even", "labels"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 28, 50])
def test_flow_rows_do_what_the_diffusers_scheduler_does(grid: str, steps: int) -> None:
    facts = flow_facts(grid)
    stage = stages_of(facts, num_inference_steps=steps, start_sigma=1.0, shorten=False)[0]
    scheduler = getattr(diffusers, FLOW).from_config(dict(facts.scheduler_config))
    labels = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
    scheduler.set_timesteps(
        **{
            "range": {"num_inference_steps": steps},
            "even": {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": 1.15},
            "labels": {"sigmas": labels / 1000, "timesteps": labels, "mu": 0.75 * 16**0.5 + 0.25},
        }[grid]
    )
    # To the bit: a later stage's start is found by comparing timesteps.
    assert [step.label for step in stage.steps] == scheduler.timesteps.tolist()
    assert [step.sigma for step in stage.steps] == scheduler.sigmas[:-1].tolist()

    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = oracle(scheduler, 0, x, torch.Generator(), {})
    got = run_steps(stage.steps, x.double().numpy(), lambda h, step: network(h, step.label))
    np.testing.assert_allclose(got, expected.double().numpy(), atol=1e-6 * steps)


FLOW_CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("euler-karras", FLOW, {"shift": 3.0, "use_karras_sigmas": True}),
    ("euler-exponential", FLOW, {"shift": 3.0, "use_exponential_sigmas": True}),
    ("euler-beta", FLOW, {"shift": 3.0, "use_beta_sigmas": True}),
    ("euler-terminal", FLOW, {"shift": 3.0, "shift_terminal": 0.1}),
    ("euler-stochastic", FLOW, {"shift": 3.0, "stochastic_sampling": True}),
    ("heun", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("lcm", "FlowMatchLCMScheduler", {"shift": 3.0}),
    ("unipc", "UniPCMultistepScheduler", OWN_FLOW),
    ("unipc-3", "UniPCMultistepScheduler", OWN_FLOW | {"solver_order": 3}),
    ("unipc-bh1-stays", "UniPCMultistepScheduler", OWN_FLOW | {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("unipc-terminal", "UniPCMultistepScheduler", OWN_FLOW | {"shift_terminal": 0.05}),
    ("dpm++2m", "DPMSolverMultistepScheduler", OWN_FLOW),
    ("dpm++3m", "DPMSolverMultistepScheduler", OWN_FLOW | {"solver_order": 3}),
    ("dpm++2m-sde", "DPMSolverMultistepScheduler", OWN_FLOW | {"algorithm_type": "sde-dpmsolver++"}),
    ("dpm++2s", "DPMSolverSinglestepScheduler", OWN_FLOW),
]


@pytest.mark.parametrize("steps", [4, 7, 28])
@pytest.mark.parametrize(("name", "kind", "config"), FLOW_CASES, ids=[case[0] for case in FLOW_CASES])
def test_rows_on_flow_do_what_the_diffusers_scheduler_does(
    name: str, kind: str, config: dict[str, Any], steps: int
) -> None:
    facts = replace(flow_facts("range", TWO_STAGES), scheduler=kind, scheduler_config=config)
    scheduler = getattr(diffusers, kind).from_config(config)
    for number, stage in enumerate(stages_of(facts, num_inference_steps=steps, start_sigma=0.1)):
        scheduler.set_timesteps(steps)
        skipped = len(scheduler.timesteps) - len(stage.steps)
        assert (skipped > 0) == (number > 0), name
        in_float64(scheduler)
        labels = [float(time) for time in scheduler.timesteps[skipped:]]
        assert [step.label for step in stage.steps] == pytest.approx(labels, abs=1e-4)  # float32 around 1000

        ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        exact = x.double() if all(step.noise is None for step in stage.steps) else x
        expected = oracle(scheduler, skipped, exact, theirs, {})
        got = run_steps(
            stage.steps,
            x.double().numpy(),
            lambda h, step: network(h, step.label),
            lambda: torch.randn(SHAPE, generator=ours).double().numpy(),  # noqa: B023 - called before the next turn
        )
        np.testing.assert_allclose(got, expected.double().numpy(), atol=3e-6 * float(expected.abs().max() + 1))
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_own_flow_levels_shift_with_the_size_as_diffusers_shifts_them(kind: str) -> None:
    """FLUX's pipeline hands the scheduler mu, from the tokens of the picture."""
    config = OWN_FLOW | {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    facts = replace(flow_facts("even", TWO_STAGES), scheduler=kind, scheduler_config=config)
    (stage,) = stages_of(facts, num_inference_steps=9, height=1024, width=1024, start_sigma=1.0)
    scheduler = getattr(diffusers, kind).from_config(config)
    scheduler.set_timesteps(9, mu=1.15)
    assert [step.sigma for step in stage.steps] == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_class_is_known_with_all_its_fields_and_their_defaults(name: str) -> None:
    """A field that a new diffusers adds, or another default, must be looked at."""
    inert = {"dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range"}  # of what is refused as a whole
    inert |= (
        {"num_train_timesteps", "num_train_steps"} if name.startswith("EDM") else set()
    )  # the labels know no number
    record = SCHEDULERS[name]
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    given = {one.name: one.default for one in parameters if one.name not in {"self", "args", "kwargs"} | inert}
    hidden = {one for one in given if one.startswith("_")} | {"upscale_mode", "scale_factors"}
    assert set(given) - hidden <= set(record.fields)
    for field, default in given.items():
        if field in record.fields and field != "disable_corrector":
            assert (record.default(field) or None) == (default or None), field


def test_classes_with_a_nearest_solver_are_those_of_diffusers() -> None:
    assert all(hasattr(diffusers, name) for name in NEAR_STRANGERS)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_beta_quantiles_are_those_of_scipy(steps: int) -> None:
    shares = 1 - np.linspace(0, 1, steps)
    # 1e-14: sixty halvings of the interval, and sixty terms of a series that halve.
    np.testing.assert_allclose(beta_quantiles(shares), scipy.stats.beta.ppf(shares, 0.6, 0.6), atol=1e-14)


def test_another_solver_reads_the_config_as_diffusers_does() -> None:
    """`from_config` fills in the defaults of the class it makes, not those of the class the file is for."""
    config = {"skip_prk_steps": True}
    facts = diffusion_facts("PNDMScheduler", TWO_STAGES, **config)
    made = diffusers.DPMSolverMultistepScheduler.from_config(scheduler_for("PNDMScheduler", config).config)
    made.set_timesteps(10)
    stage = stages_of(facts, num_inference_steps=10, solver="dpm++2m")[0]
    assert [step.label for step in stage.steps] == made.timesteps.tolist()


def test_rows_are_what_float32_keeps_of_them() -> None:
    """The engine gets float32 rows; for every solver they lose no more than float32 itself does."""
    for _, kind, config, arguments in CASES:
        for stage in stages_of(diffusion_facts(kind, TWO_STAGES, **config), **arguments):
            history = 4
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).double().numpy()
            exact = run_steps(stage.steps, x, lambda h, step: network(h, step.label), lambda: x)  # noqa: B023
            short = run_steps(
                tuple(_rounded(step, history) for step in stage.steps),
                x.astype(np.float32),
                lambda h, step: network(h, step.label).astype(np.float32),
                lambda: x.astype(np.float32),  # noqa: B023
            )
            np.testing.assert_allclose(short, exact, atol=2e-5 * float(np.abs(exact).max() + 1))


def _rounded(step: Step, history: int) -> Step:
    label, c_in, h_x, h_f, keep, noise, *blend = step.row(history)
    return Step(
        label=label,
        sigma=step.sigma,
        next_sigma=step.next_sigma,
        c_in=c_in,
        h_x=h_x,
        h_f=h_f,
        keep=keep,
        blend=tuple(blend),
        noise=None if step.noise is None else noise,
    )
