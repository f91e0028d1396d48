"""The keywords of a run are those of the records that it is made from."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import msgspec
import numpy as np
import pytest
from toy_bundle import toy_bundle

from lssgen.bundle import read_bundle
from lssgen.choices import flags_of
from lssgen.errors import PlanError, PromptError
from lssgen.plan import PlanOptions, SchedulerChoice, SkipLayerGuidance
from lssgen.runtime import Pipeline
from lssgen.runtime.options import Options, Request, options_from_request, request_from_options
from lssgen.runtime.record import settings_from_file
from lssgen.testing import FakeBackend


def test_options_mirror_request_and_plan_options() -> None:
    declared = {name: get_type_hints(record)[name] for record in (Request, PlanOptions) for name in flags_of(record)}
    declared["skip_layers"] = bool | SkipLayerGuidance
    declared["start_sigma"] = float | Literal["auto"]
    declared["scheduler"] = str | SchedulerChoice | None
    declared["start_sigma"] = float | Literal["auto"]
    assert get_type_hints(Options) == declared
    assert list(Options.__annotations__)[: len(flags_of(Request))] == list(flags_of(Request))


@pytest.mark.parametrize("record", [Request, PlanOptions, SkipLayerGuidance])
def test_everything_that_a_user_may_choose_has_a_flag(record: type) -> None:
    made = {"plan", "plan_options"}  # of a request, from the rest
    assert {field.name for field in fields(record)} - made == set(flags_of(record))


@pytest.mark.parametrize("scheduler", [None, "euler", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}])
def test_a_chosen_scheduler_is_recorded_whole_so_that_a_run_needs_no_file_again(
    tmp_path: Path, scheduler: str | dict[str, object] | None
) -> None:
    chosen = SchedulerChoice(config=scheduler) if isinstance(scheduler, dict) else scheduler
    bundle = toy_bundle(tmp_path)
    given: Options = {"scheduler": chosen, "sigma_schedule": "karras", "scaling_space": "latent"}
    request = request_from_options(bundle, given)
    (tmp_path / "run.json").write_bytes(msgspec.json.encode({"configuration": options_from_request(request)}))
    again = request_from_options(bundle, settings_from_file(tmp_path / "run.json").options)
    assert (again.plan_options, again.plan) == (request.plan_options, request.plan)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_inference_steps": "5"}, "num_inference_steps is '5'; it must be a whole number"),
        ({"num_inference_steps": 5.0}, r"num_inference_steps is 5\.0; it must be a whole number"),
        ({"height": True}, "height is True; it must be a whole number"),
        ({"guidance_scale": "3"}, "guidance_scale is '3'; it must be a number"),
        ({"guidance_scale": [3.0]}, r"guidance_scale is \[3\.0\]; it must be a number"),
        ({"sigmas": 0.5}, r"sigmas is 0\.5; it must be several values, each a number"),
        ({"sigmas": [0.9, "x"]}, "sigmas is .*; it must be several values, each a number"),
        ({"shorten": "no"}, "shorten is 'no'; it must be True or False"),
        ({"solver": 5}, "solver is 5; it must be a text"),
        ({"scaling_space": ["latent"]}, "scaling_space is .*; it must be one of resnet, latent, pixel"),
        ({"negative_prompt": 5}, "negative_prompt is 5; it must be a text or None"),
        ({"skip_layers": "yes"}, "skip_layers is 'yes'; it must be True or False or a SkipLayerGuidance"),
        ({"original_size": "64x64"}, "original_size is '64x64'; it must be 2 values, each a whole number or None"),
        ({"seed": "e" * 999}, r"seed is 'e{39}\.\.\.; it must be a whole number"),
    ],
)
def test_a_value_of_another_kind_is_refused_in_words(toy: Path, options: Any, words: str) -> None:
    with pytest.raises(PlanError, match=f"^{words}"):
        request_from_options(read_bundle(toy), options)


def test_none_counts_as_not_given(toy: Path) -> None:
    bundle = read_bundle(toy)
    nothing: Any = {**dict.fromkeys(Options.__annotations__), "scaling_space": "latent"}
    assert request_from_options(bundle, nothing) == request_from_options(bundle, {"scaling_space": "latent"})


def test_numbers_of_numpy_are_numbers(toy: Path) -> None:
    given: Any = {"num_inference_steps": np.int64(4), "guidance_scale": np.float32(2), "sigmas": [np.float64(0.5)]}
    assert request_from_options(read_bundle(toy), {"scaling_space": "latent", **given}).plan_options.guidance_scale == 2


@pytest.mark.parametrize("name", ["init_image", "mask_image", "on_step", "on_preview"])
def test_what_is_given_beside_the_options_has_its_kind_checked(toy: Path, name: str) -> None:
    given: Any = {name: "x.png"}
    with pytest.raises(PromptError, match=f"{name} is a str; it must be a"):
        Pipeline(read_bundle(toy), FakeBackend({})).paint("a", **given)
