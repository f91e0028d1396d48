"""Which sizes a graph is compiled for."""

from dataclasses import replace
from pathlib import Path

import pytest

from lssgen.bundle import read_bundle
from lssgen.engines.demand import Demand, Extent, Profile, fixed, profiles_of, token_axes
from lssgen.errors import BuildError
from lssgen.manifest import Gates, Graph, Manifest, Tokens
from lssgen.ports import Port


@pytest.fixture
def manifest(toy: Path) -> Manifest:
    """Two resolutions: 32 and 64 px."""
    return read_bundle(toy).manifest


def sizes(manifest: Manifest, graph: str, demand: Demand = Demand()) -> list[dict[str, int]]:  # noqa: B008 - frozen
    return [{axis: e.best for axis, e in p.axes.items()} for p in profiles_of(manifest, demand)[graph]]


def with_step(manifest: Manifest, step: Graph) -> Manifest:
    return replace(manifest, graphs={**manifest.graphs, "step": step})


def test_the_step_has_a_profile_for_each_resolution(manifest: Manifest) -> None:
    common = {"batch": 1, "branches": 2}
    assert sizes(manifest, "step") == [{**common, "height": 4, "width": 4}, {**common, "height": 8, "width": 8}]


def test_a_transition_goes_from_one_resolution_to_its_double(manifest: Manifest) -> None:
    assert sizes(manifest, "transition_latent") == [
        {"batch": 1, "height": 4, "width": 4, "next_height": 8, "next_width": 8}
    ]


def test_a_bundle_of_one_resolution_has_no_transition(manifest: Manifest) -> None:
    assert "transition_latent" not in profiles_of(manifest, Demand(resolutions=((64, 64),)))


def test_pictures_are_decoded_where_no_larger_stage_follows(manifest: Manifest) -> None:
    demand = Demand(resolutions=((32, 32), (64, 64), (32, 48)))
    assert [(p["picture_height"], p["picture_width"]) for p in sizes(manifest, "decode", demand)] == [
        (64, 64),
        (32, 48),
    ]


def test_prompts_and_pictures_go_one_at_a_time_whatever_the_batch(manifest: Manifest) -> None:
    demand = Demand(batches=(1, 4))
    assert {p["batch"] for name in ("text", "decode", "encode") for p in sizes(manifest, name, demand)} == {1}
    assert [p["batch"] for p in sizes(manifest, "transition_latent", demand)] == [1, 4]


def test_branches_are_those_of_the_models_guidance(manifest: Manifest) -> None:
    def branches(manifest: Manifest, demand: Demand = Demand()) -> set[int]:  # noqa: B008 - frozen
        return {p["branches"] for p in sizes(manifest, "step", demand)}

    assert branches(manifest) == {2}
    assert branches(replace(manifest, facts=replace(manifest.facts, guidance="embedded"))) == {1}
    gated = replace(manifest.graphs["step"], feeds={**manifest.graphs["step"].feeds, "gates": Gates(skipped=(7,))})
    assert branches(with_step(manifest, gated)) == {2, 3}
    assert branches(manifest, Demand(branches=(1, 2))) == {1, 2}


def test_every_profile_pins_every_axis_of_every_input(manifest: Manifest) -> None:
    for name, profiles in profiles_of(manifest, Demand(batches=(1, 2))).items():
        for port in manifest.graphs[name].inputs:
            for profile in profiles:
                assert all(e.low == e.high for e in profile.shape(port)) or name == "text"


def test_a_prompt_axis_is_pinned_or_a_range_as_its_tokenizer_fills_up(manifest: Manifest) -> None:
    port = manifest.tokenizers[0].port
    pinned = Tokens(port=port, file="", length=77, pad_id=0)
    ranged = replace(pinned, pad_to="longest", pad_multiple=16, length=1024)
    assert token_axes(replace(manifest, tokenizers=(pinned,))) == {"tokens": fixed(77)}
    assert token_axes(replace(manifest, tokenizers=(ranged,))) == {"tokens": Extent(16, 256, 1024)}


def test_an_axis_that_joins_encoders_has_its_usual_size(manifest: Manifest) -> None:
    step = manifest.graphs["step"]
    joined = Port("text", "float32", ("branches", "batch", "all_tokens", 1))
    wider = replace(step, inputs=(*step.inputs[:-1], joined), axes={**step.axes, "all_tokens": "tokens"})
    usual = {**manifest.token_axes, "all_tokens": 333}
    assert sizes(replace(with_step(manifest, wider), token_axes=usual), "step")[0]["all_tokens"] == 333


def test_an_axis_that_nothing_decides_is_named(manifest: Manifest) -> None:
    step = manifest.graphs["step"]
    odd = replace(step, inputs=(*step.inputs, Port("x", "float32", ("frames",))))
    with pytest.raises(BuildError, match="graph 'step' has axes frames, which the bundle's manifest does not explain"):
        profiles_of(with_step(manifest, odd), Demand())


def test_a_resolution_between_latent_cells_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BuildError, match="resolution 64 x 60 is not a multiple of the model's latent cell of 8 pixels"):
        profiles_of(manifest, Demand(resolutions=((60, 64),)))


def test_a_profile_holds_what_lies_inside_its_extents() -> None:
    profile = Profile({"batch": fixed(1), "tokens": Extent(16, 64, 256)})
    assert profile.holds({"batch": 1, "tokens": 256})
    assert not profile.holds({"batch": 1, "tokens": 257})
    assert not profile.holds({"batch": 2, "tokens": 64})
    assert str(profile) == "batch 1, tokens 16..256"


def test_only_the_graphs_that_are_demanded_have_profiles(manifest: Manifest) -> None:
    assert set(profiles_of(manifest, Demand(graphs=("step", "decode")))) == {"step", "decode"}


def test_where_stages_are_shown_the_picture_of_every_stage_is_decoded(manifest: Manifest) -> None:
    assert [p["picture_height"] for p in sizes(manifest, "decode", Demand(previews=True))] == [32, 64]
