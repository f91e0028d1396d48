"""The control picture's columns of a plan."""

from dataclasses import replace
from typing import Any

import pytest

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES, facts_of_model
from lssgen.plan import ModelFacts, Plan, PlanOptions, make_plan
from lssgen.plan.facts import Control

STEERED = [name for name in ALIASES if name != "demo"]


def facts(name: str, modes: int = 0) -> ModelFacts:
    return replace(facts_of_model(name), control=Control(modes=modes))


def planned(model: ModelFacts, **asked: Any) -> Plan:
    return make_plan(model, PlanOptions.from_defaults(model.defaults, **asked))


def scales(plan: Plan) -> list[list[float]]:
    return [[step.control[0] for step in stage.steps] for stage in plan.stages]


def kept(count: int, start: float, end: float) -> list[float]:
    """As diffusers' pipelines write it, for every timestep."""
    return [1.0 - float(i / count < start or (i + 1) / count > end) for i in range(count)]


@pytest.mark.parametrize("name", STEERED)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.7), (0.5, 1.0), (0.0, 0.35)])
def test_a_run_in_one_stage_keeps_the_steps_that_diffusers_keeps(name: str, start: float, end: float) -> None:
    asked: dict[str, Any] = {"control_guidance_start": start, "control_guidance_end": end}
    plan = planned(facts(name), start_sigma=1.0, num_inference_steps=10, **asked)
    (stage,) = scales(plan)
    assert stage == kept(len(stage), start, end)


@pytest.mark.parametrize("name", STEERED)
def test_the_scale_stands_in_every_step_and_in_its_row(name: str) -> None:
    plan = planned(facts(name), controlnet_conditioning_scale=0.5)
    assert all(scale == 0.5 for stage in scales(plan) for scale in stage)
    step = plan.stages[0].steps[0]
    assert step.row(4)[-1] == 0.5
    assert len(step.row(4)) == 7 + 4 + 1


@pytest.mark.parametrize("solver", ["own", "heun"])
def test_later_stages_are_steered_in_the_same_part_of_their_schedule(solver: str) -> None:
    model = facts("sdxl")
    asked: dict[str, Any] = {"min_resolution": 512, "num_inference_steps": 20, "control_guidance_end": 0.5}
    plan = planned(model, solver=solver, **asked)
    first, last = scales(plan)
    assert len(last) < len(first)
    assert first[len(first) - len(last) :] == last


def test_a_union_is_told_the_kind_of_the_picture_in_a_column_each() -> None:
    plan = planned(facts("sdxl", modes=3), control_mode=1, controlnet_conditioning_scale=0.25)
    assert plan.stages[0].steps[0].control == (0.25, 0.0, 1.0, 0.0)


def test_models_without_a_controlnet_have_no_such_columns() -> None:
    plan = planned(facts_of_model("sdxl"))
    assert all(step.control == () for stage in plan.stages for step in stage.steps)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"control_guidance_start": -0.1}, "control_guidance_start is -0.1; it must be at least 0"),
        ({"control_guidance_end": 1.1}, "control_guidance_end is 1.1; it must be at most 1"),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.6}, "the start must lie below the end"),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale is nan"),
        ({"control_mode": -1}, "control_mode is -1; it must be at least 0"),
        ({"control_mode": 3}, "knows the kinds 0 to 2"),
    ],
)
def test_numbers_outside_their_range_are_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        planned(facts("sdxl", modes=3), **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"controlnet_conditioning_scale": 0.5},
        {"control_guidance_start": 0.1},
        {"control_guidance_end": 0.9},
        {"control_mode": 0},
    ],
)
def test_a_model_without_a_controlnet_refuses_choices_about_it(asked: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="has no ControlNet: export it with --controlnet"):
        planned(facts_of_model("sdxl"), **asked)


def test_a_controlnet_of_one_kind_refuses_a_mode() -> None:
    with pytest.raises(PlanError, match="knows one kind of picture only"):
        planned(facts("sdxl"), control_mode=0)
