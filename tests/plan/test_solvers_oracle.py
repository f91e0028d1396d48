"""The rows against diffusers' schedulers: same levels, same network, same noise, both stages of a run."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from rows import BETAS, FLOW, diffusion_facts, flow_facts, run_steps
from torch import Tensor

from lssgen.plan import Defaults, ModelFacts, PlanOptions, Stage, Step, make_plan

# diffusers' own code, which NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

SHAPE = (1, 4, 8, 8)
TWO_STAGES = Defaults(
    height=128, width=128, steps=12, guidance_scale=1.0, min_resolution=64, base_height=128, base_width=128
)
EDM = {"sigma_data": 0.5}

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
]


def network(h: Any, label: float) -> Any:
    """Not linear, and not the same at every level."""
    tanh = torch.tanh if isinstance(h, Tensor) else np.tanh
    return 0.9 * tanh(0.6 * h) + 0.05 * float(np.cos(0.01 * label))


def scheduler_for(name: str, config: dict[str, Any]) -> Any:
    return getattr(diffusers, name).from_config(config if name.startswith("EDM") else BETAS | config)


def oracle(scheduler: Any, skipped: int, x: Tensor, generator: torch.Generator, arguments: dict[str, Any]) -> Tensor:
    """A pipeline's loop over what is left of a schedule."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    for time in scheduler.timesteps[skipped:]:
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        out = network(scaled, float(time))
        drawn = {"generator": generator} if takes_generator else {}
        x = scheduler.step(out, time, x, return_dict=False, **arguments, **drawn)[0]
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
    stages = stages_of(diffusion_facts(kind, TWO_STAGES, **config), steps=steps, **arguments)
    for number, stage in enumerate(stages):
        scheduler.set_timesteps(steps)
        skipped = len(scheduler.timesteps) - len(stage.steps)
        assert (skipped > 0) == (number > 0), name
        labels = scheduler.timesteps[skipped:].double().numpy()
        # EDM's labels are logarithms, which torch takes in float32.
        assert [step.label for step in stage.steps] == pytest.approx(labels, abs=2e-6)

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

        expected = oracle(scheduler, skipped, start, theirs, arguments)
        got = run_steps(
            stage.steps,
            mixed.double().numpy(),
            lambda h, step: network(h, step.label),
            lambda: torch.randn(SHAPE, generator=ours).double().numpy(),  # noqa: B023 - called before the next turn
        )
        # diffusers computes in float32 and cancels weights of up to 1 / 0.07 in every step; latents come to about 60.
        np.testing.assert_allclose(got, expected.double().numpy(), atol=3e-5 * float(expected.abs().max() + 1))
        # A draw too many or too few would move the noise of every later stage.
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("grid", ["range", "even", "labels"])
@pytest.mark.parametrize("steps", [1, 4, 7, 20, 28, 50])
def test_flow_rows_do_what_the_diffusers_scheduler_does(grid: str, steps: int) -> None:
    facts = flow_facts(grid)
    stage = stages_of(facts, steps=steps, start_sigma=1.0, shorten=False)[0]
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


def test_another_solver_reads_the_config_as_diffusers_does() -> None:
    """`from_config` fills in the defaults of the class it makes, not those of the class the file is for."""
    config = {"skip_prk_steps": True}
    facts = diffusion_facts("PNDMScheduler", TWO_STAGES, **config)
    made = diffusers.DPMSolverMultistepScheduler.from_config(scheduler_for("PNDMScheduler", config).config)
    made.set_timesteps(10)
    stage = stages_of(facts, steps=10, solver="dpm++2m")[0]
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
