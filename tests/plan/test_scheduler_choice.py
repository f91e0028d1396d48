"""The scheduler is the user's to choose: by name, by file, and how it spreads its levels."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rows import BETAS, diffusion_facts, flow_facts, sigmas

from lssgen.errors import PlanError
from lssgen.models.aliases import ALIASES
from lssgen.plan import ModelFacts, Plan, PlanOptions, SchedulerChoice, make_plan
from lssgen.plan.planner import chosen_facts
from lssgen.plan.sampling import described, sampling_of
from lssgen.plan.schedulers import SCHEDULERS

SDXL = ALIASES["sdxl"].facts()


def plan_for(facts: ModelFacts, **given: Any) -> Plan:
    return make_plan(facts, PlanOptions.from_defaults(facts.defaults, **given))


def solver_of(facts: ModelFacts, **given: Any) -> str:
    return sampling_of(chosen_facts(facts, PlanOptions.from_defaults(facts.defaults, **given))).name


@pytest.mark.parametrize(
    ("text", "solver", "rule"),
    [
        ("euler", "euler", "own"),
        ("Euler a", "euler-ancestral", "own"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral", "own"),
        ("UniPCMultistepScheduler", "unipc", "own"),
        ("UniPCMultistep", "unipc", "own"),
        ("uni_pc", "unipc", "own"),
        ("DPM++ 2M Karras", "dpm++2m", "karras"),
        ("dpm++2m-sde-karras", "dpm++2m-sde", "karras"),
        ("dpmpp_2m_sde", "dpm++2m-sde", "own"),
        ("DPMSolverMultistepScheduler", "dpm", "own"),
        ("heun-exponential", "heun", "exponential"),
        ("DPM2 a", "kdpm2-ancestral", "own"),
        ("euler-beta", "euler", "beta"),
    ],
)
def test_names_are_those_of_solvers_and_of_diffusers_classes(text: str, solver: str, rule: str) -> None:
    assert SchedulerChoice.from_text(text) == SchedulerChoice(solver=solver, sigma_schedule=rule)


def test_a_name_that_does_not_exist_is_refused_with_a_guess() -> None:
    with pytest.raises(PlanError, match=r"no scheduler called 'eular' \(did you mean euler\?\); give a diffusers sch"):
        SchedulerChoice.from_text("eular")


@pytest.mark.parametrize("place", ["scheduler_config.json", "other.json", "scheduler/scheduler_config.json"])
def test_a_file_or_its_folder_takes_the_place_of_the_checkpoints(tmp_path: Path, place: str) -> None:
    config = BETAS | {"_class_name": "UniPCMultistepScheduler", "solver_order": 3}
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(b"\xef\xbb\xbf" + json.dumps(config).encode())  # with an editor's byte order mark
    plan = plan_for(SDXL, scheduler=str(tmp_path / place if place == "other.json" else tmp_path))
    assert plan.stages == plan_for(diffusion_facts("UniPCMultistepScheduler", SDXL.defaults, **config)).stages
    assert plan.stages[0].history == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not what it should be"),
        (b"[" * 100_000, "is not what it should be"),
        (b"\xff\xfe", "is not what it should be"),
        (b"[]", "is not what it should be"),
        (b'{"_class_name": 3}', "names no _class_name"),
        (b" " * (1 << 21), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_what_is_not_a_configuration_is_refused_in_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "scheduler_config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanError, match=words) as refused:
        SchedulerChoice.from_text(str(file))
    assert "\n" not in str(refused.value)


HOSTILE_FIELDS = sorted(SCHEDULERS["DPMSolverMultistepScheduler"].fields)


@pytest.mark.parametrize("hostile", [[1, 2], {"a": {}}, "x" * 5000, 1e400, -3, 1e-320, 10**30, True])
@pytest.mark.parametrize("field", HOSTILE_FIELDS)
def test_odd_values_of_fields_are_refused_or_harmless(field: str, hostile: object) -> None:
    config = BETAS | {"_class_name": "DPMSolverMultistepScheduler", field: hostile}
    try:
        plan_for(SDXL, scheduler=SchedulerChoice(config=config))
    except PlanError as refused:
        assert len(str(refused)) < 400  # noqa: PT017 - a refusal is one of the two outcomes


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scheduler_config.json")
    with pytest.raises(PlanError, match="cannot be read"):
        SchedulerChoice.from_text(str(tmp_path))


def test_a_scheduler_of_another_kind_of_model_is_refused() -> None:
    flow = SchedulerChoice(config={"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    with pytest.raises(PlanError, match="samples models of flow matching, and sdxl was trained on a table of betas"):
        plan_for(SDXL, scheduler=flow)
    with pytest.raises(PlanError, match="samples models of a table of betas, and flow-range was trained on flow"):
        plan_for(flow_facts(), scheduler=SchedulerChoice(config=BETAS | {"_class_name": "DDIMScheduler"}))


def test_two_words_for_one_thing_must_agree() -> None:
    assert solver_of(SDXL, scheduler="unipc", solver="unipc") == "unipc"
    with pytest.raises(PlanError, match="'unipc' and solver for 'ddim'; give one"):
        plan_for(SDXL, scheduler="unipc", solver="ddim")
    with pytest.raises(PlanError, match="karras sigmas and sigma_schedule for beta; give one"):
        plan_for(SDXL, scheduler="unipc-karras", sigma_schedule="beta")


@pytest.mark.parametrize(
    ("scheduler", "config", "name"),
    [
        ("DPMSolverMultistepScheduler", {}, "dpm++2m"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpm++3m"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m-sde"),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, "dpm"),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "restart"),
    ],
)
def test_a_configuration_is_called_by_its_solver(scheduler: str, config: dict[str, Any], name: str) -> None:
    facts = flow_facts(**config) if scheduler.startswith("Flow") else diffusion_facts(scheduler, **config)
    assert solver_of(facts) == name


def test_timesteps_may_be_spaced_otherwise_than_the_checkpoint_says() -> None:
    own, trailing = (plan_for(SDXL, num_inference_steps=4, **more) for more in ({}, {"timestep_spacing": "trailing"}))
    assert [step.label for step in own.stages[0].steps] == [751, 501, 251, 1]
    assert [step.label for step in trailing.stages[0].steps] == [999, 749, 499, 249]


@pytest.mark.parametrize("rule", ["karras", "exponential", "beta"])
def test_sigmas_may_be_spread_by_a_rule_and_back(rule: str) -> None:
    spread = plan_for(SDXL, sigma_schedule=rule)
    assert sigmas(spread.stages[0]) != sigmas(plan_for(SDXL).stages[0])
    assert sigmas(spread.stages[0])[:1] == pytest.approx(sigmas(plan_for(SDXL).stages[0])[:1])
    karras = diffusion_facts("EulerDiscreteScheduler", use_karras_sigmas=True)
    plain = diffusion_facts("EulerDiscreteScheduler")
    assert plan_for(karras, sigma_schedule="default").stages == plan_for(plain).stages
    assert plan_for(plain, sigma_schedule="karras").stages == plan_for(karras).stages


def test_playground_may_have_exponential_sigmas() -> None:
    facts = ALIASES["playground"].facts()
    assert plan_for(facts, sigma_schedule="exponential").stages != plan_for(facts).stages
    with pytest.raises(PlanError, match="karras and exponential sigmas, and no beta"):
        plan_for(facts, sigma_schedule="beta")


@pytest.mark.parametrize(
    ("facts", "given", "words"),
    [
        (SDXL, {"scheduler": "ddim-karras"}, "DDIMScheduler takes no sigma_schedule; choose one of .* euler, dpm"),
        (SDXL, {"scheduler": "dpm++2s", "timestep_spacing": "trailing"}, "takes no timestep_spacing; choose one of"),
        (flow_facts(), {"timestep_spacing": "trailing"}, "takes no timestep_spacing; leave it out"),
        (SDXL, {"timestep_spacing": "even"}, "timestep_spacing is 'even'; it must be one of own, leading"),
        (SDXL, {"sigma_schedule": "lu"}, "sigma_schedule is 'lu'; it must be one of own, default, karras"),
        (SDXL, {"scheduler": "restart"}, "'restart' does not fit sdxl"),
    ],
)
def test_what_the_chosen_class_does_not_take_is_refused(facts: ModelFacts, given: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        plan_for(facts, **given)


def test_few_steps_from_far_below_the_highest_level_are_told_with_the_remedy() -> None:
    (note,) = [note for note in plan_for(SDXL, num_inference_steps=1).notes if "first step" in note]
    assert "noise level of 0.0413, far below the training's highest, 14.6; --timestep-spacing trailing" in note
    for given in ({"num_inference_steps": 20}, {"num_inference_steps": 1, "timestep_spacing": "trailing"}):
        assert not [note for note in plan_for(SDXL, **given).notes if "first step" in note]


def test_a_later_stage_that_starts_from_pure_noise_is_told() -> None:
    plan = plan_for(flow_facts(), num_inference_steps=3, sigma_schedule="karras")
    assert any("what the stages before it painted is lost" in note for note in plan.notes)


def test_a_scheduler_that_takes_the_network_for_another_is_told() -> None:
    config = BETAS | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    notes = plan_for(SDXL, scheduler=SchedulerChoice(config=config)).notes
    assert any("output for v_prediction, the checkpoint's own for epsilon" in note for note in notes)


@pytest.mark.parametrize(
    ("facts", "given", "words"),
    [
        (SDXL, {}, "EulerDiscreteScheduler, solver euler, epsilon, leading timesteps"),
        (SDXL, {"scheduler": "unipc-karras"}, "UniPCMultistepScheduler, solver unipc, .* karras sigmas"),
        (ALIASES["playground"].facts(), {}, r"solver dpm\+\+2m, epsilon, karras sigmas 80 to 0.002"),
        (ALIASES["flux-dev"].facts(), {}, "solver euler, shift by size"),
    ],
)
def test_a_schedule_is_told_in_words(facts: ModelFacts, given: dict[str, Any], words: str) -> None:
    options = PlanOptions.from_defaults(facts.defaults, **given)
    assert re.search(words, described(chosen_facts(facts, options)))
