"""FLUX.2's shift, which depends on the tokens of the picture and on the steps of its schedule."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from lssgen.models.aliases import ALIASES
from lssgen.plan import PlanOptions, make_plan
from lssgen.plan.flow import empirical_shift

FACTS = ALIASES["flux2-dev"].facts()


@pytest.mark.parametrize("tokens", [16, 1024, 4096, 4300, 4301, 16384])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 28, 50, 200, 1000])
def test_the_shift_is_that_of_diffusers_to_the_last_bit(tokens: int, steps: int) -> None:
    assert empirical_shift(tokens, steps) == compute_empirical_mu(tokens, steps)


@pytest.mark.parametrize(("size", "steps"), [((1024, 1024), 4), ((512, 768), 50), ((2048, 1536), 28)])
def test_levels_are_those_of_the_pipeline_to_the_last_bit(size: tuple[int, int], steps: int) -> None:
    height, width = size
    plan = make_plan(
        FACTS,
        PlanOptions.from_defaults(
            FACTS.defaults, height=height, width=width, num_inference_steps=steps, start_sigma=1.0, shorten=False
        ),
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(FACTS.scheduler_config))
    tokens = (height // 16) * (width // 16)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
    (stage,) = plan.stages
    assert [step.label for step in stage.steps] == scheduler.timesteps.tolist()
    assert [np.float32(step.sigma) for step in stage.steps] == scheduler.sigmas[:-1].tolist()


def test_every_stage_has_the_shift_of_its_own_tokens_and_steps() -> None:
    plan = make_plan(FACTS, PlanOptions.from_defaults(FACTS.defaults, num_inference_steps=20))
    small, large = plan.stages
    assert (small.schedule_steps, large.schedule_steps) == (10, 20)
    for stage, tokens, index in ((small, 1024, 1), (large, 4096, -1)):
        factor = np.exp(compute_empirical_mu(tokens, stage.schedule_steps))
        level = 1 - 1 / stage.schedule_steps if index == 1 else 1 / stage.schedule_steps
        assert stage.steps[index].sigma == pytest.approx(factor / (factor + 1 / level - 1), rel=1e-6)


def test_a_static_shift_stays_as_it_is() -> None:
    """A configuration may turn the shift by size off: the pipeline's number is then without effect."""
    config = {**FACTS.scheduler_config, "use_dynamic_shifting": False, "shift": 1.0}
    plan = make_plan(
        replace(FACTS, scheduler_config=config),
        PlanOptions.from_defaults(FACTS.defaults, num_inference_steps=4, start_sigma=1.0, shorten=False),
    )
    assert [step.sigma for step in plan.stages[0].steps] == [1.0, 0.75, 0.5, 0.25]
