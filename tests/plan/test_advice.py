"""What a refusal advises is accepted: sizes, and smallest resolutions."""

import re
from itertools import product

import pytest
from rows import flow_facts

from lssgen.errors import ExportError, PlanError
from lssgen.export.config import checked_resolutions
from lssgen.models.aliases import ALIASES, facts_of_model
from lssgen.plan import ModelFacts, PlanOptions, make_plan
from lssgen.plan.geometry import stage_sizes

SIDES = (1, 8, 16, 100, 257, 512, 768, 1000, 1023, 1025, 1080, 1500, 2047, 2049, 3000, 4097, 16384, 65536)
MODELS = {name: facts_of_model(name) for name in ALIASES}
FURTHER = ({}, {"start_sigma": 1.0}, {"strength": 0.5}, {"min_resolution": 64}, {"shorten": True})


def refusal_of(facts: ModelFacts, **given: object) -> str:
    try:
        stage_sizes(facts, PlanOptions.from_defaults(facts.defaults, **given))
    except PlanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", MODELS)
def test_every_size_that_is_advised_is_accepted(name: str) -> None:
    facts = MODELS[name]
    refused = advised = 0
    for width, height, more in product(SIDES, SIDES[::3], FURTHER):
        said = refusal_of(facts, width=width, height=height, **more)
        if not said or "px" not in said or "gets no step" in said:
            continue
        refused += 1
        for wide, high in re.findall(r"(?:use|or) (\d+) x (\d+)", said):
            advised += 1
            assert not refusal_of(facts, width=int(wide), height=int(high), **more), said
        if smallest := re.search(r"set min_resolution to (\d+)", said):
            assert not refusal_of(
                facts, **{**more, "width": width, "height": height, "min_resolution": int(smallest[1])}
            )
    assert refused
    assert advised


@pytest.mark.parametrize("name", MODELS)
def test_every_resolution_that_an_export_advises_is_accepted(name: str) -> None:
    facts = MODELS[name]
    for width, height in product(SIDES, SIDES[::3]):
        try:
            checked_resolutions(((height, width),), facts)
            continue
        except ExportError as error:
            said = str(error)
        advised = re.findall(r"(?:use|or) (\d+) x (\d+)", said)
        assert advised, said
        for wide, high in advised:
            checked_resolutions(((int(high), int(wide)),), facts)


def test_257_pixels_are_not_enlarged_beyond_what_the_model_knows() -> None:
    demo = MODELS["demo"]
    said = refusal_of(demo, width=257, height=257)
    assert "use 256 x 256" in said
    assert not re.search(r"or \d+ x", said)


@pytest.mark.parametrize("more", [{"start_sigma": 1.0}, {"start_sigma": 0.9, "strength": 0.5}])
def test_a_run_without_smaller_stages_is_not_refused_for_their_sake(more: dict[str, float]) -> None:
    facts = flow_facts("range")
    assert "multiples of 32 px" in refusal_of(facts, height=1040)
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, height=1040, **more))
    assert (plan.height_px, len(plan.stages)) == (1040, 1)
    assert not [note for note in plan.notes if "less than twice" in note]
