"""Levels of Qwen-Image: a shift that goes on growing with the picture, and levels that end at a terminal one."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import PlanOptions, make_plan

FACTS = ALIASES["qwen-image"].facts()


def published(height: int, width: int, steps: int) -> Any:
    """Levels as QwenImagePipeline has them made, by its formulas and diffusers' scheduler."""
    config = FACTS.scheduler_config
    tokens = height // 16 * (width // 16)
    slope = (0.9 - 0.5) / (8192 - 256)
    scheduler = FlowMatchEulerDiscreteScheduler(**{k: v for k, v in config.items() if k != "_class_name"})
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=tokens * slope + 0.5 - slope * 256)
    return scheduler.sigmas.numpy()


@pytest.mark.parametrize(
    ("height", "width", "steps"), [(1024, 1024, 50), (1328, 1328, 50), (928, 1664, 20), (1664, 1664, 50), (512, 512, 4)]
)
def test_levels_are_those_of_diffusers(height: int, width: int, steps: int) -> None:
    """To float32's last digits: 1664 px are 10816 tokens, beyond the 8192 of the configuration."""
    options = PlanOptions.from_defaults(
        FACTS.defaults, height=height, width=width, num_inference_steps=steps, start_sigma=1.0
    )
    (stage,) = make_plan(FACTS, options).stages
    levels = [step.sigma for step in stage.steps] + [stage.steps[-1].next_sigma]
    assert levels == pytest.approx(published(height, width, steps), rel=1e-6, abs=1e-7)
    assert levels[-2] == pytest.approx(0.02, rel=1e-5)


def test_a_later_stage_has_the_levels_of_its_own_size_from_the_start_on() -> None:
    options = PlanOptions.from_defaults(FACTS.defaults)
    first, second = make_plan(FACTS, options).stages
    assert [step.sigma for step in first.steps] == pytest.approx(published(512, 512, 50)[:-1], rel=1e-6)
    whole = published(1024, 1024, 50)[:-1]
    started = [level for level in whole if level >= 0.75][-1:] + [level for level in whole if level < 0.75]
    assert [step.sigma for step in second.steps] == pytest.approx(started, rel=1e-6)


def test_a_single_step_that_would_have_to_end_at_the_terminal_level_is_refused() -> None:
    """diffusers divides zero by zero there, and paints nothing but NaN."""
    with pytest.raises(PlanError, match=r"ends at a level of 0\.02 .*ask for more steps"):
        make_plan(FACTS, PlanOptions.from_defaults(FACTS.defaults, num_inference_steps=1, start_sigma=1.0))


def test_levels_of_the_author_are_used_where_the_user_gives_none() -> None:
    facts = replace(FACTS, defaults=replace(FACTS.defaults, sigmas=(1.0, 0.8, 0.5), start_sigma=1.0))
    (own,) = make_plan(facts, PlanOptions.from_defaults(facts.defaults)).stages
    (given,) = make_plan(facts, PlanOptions.from_defaults(facts.defaults, sigmas=(1.0, 0.5))).stages
    assert (len(own.steps), len(given.steps)) == (3, 2)
