"""Laws over every record."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from lssgen.errors import ModelError, UnknownModelError
from lssgen.models.aliases import ALIASES, Alias, facts_of_model
from lssgen.models.configs import configs_from_folder
from lssgen.models.families import FAMILIES, Family, defaults_from_configs, facts_from_configs, family_of
from lssgen.plan import PlanOptions, make_plan, predicted_speedup, solver_names

PUBLISHED = [alias for alias in ALIASES.values() if not alias.local]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
aliases = pytest.mark.parametrize("alias", PUBLISHED, ids=[alias.name for alias in PUBLISHED])


@families
def test_every_pipeline_of_a_family_is_one_of_diffusers_and_leads_back_to_it(family: Family) -> None:
    for pipeline in family.pipelines:
        assert hasattr(diffusers, pipeline)
        assert family_of({"_class_name": pipeline}) is family


@families
def test_a_family_names_the_components_of_its_pipelines(family: Family) -> None:
    pipeline = getattr(diffusers, family.pipelines[0])
    taken = set(pipeline.__init__.__annotations__) | set(pipeline.__init__.__code__.co_varnames)
    assert {family.network, *family.components, *family.optional} <= taken


def test_an_unknown_pipeline_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnknownModelError, match="'PixArtAlphaPipeline', which no record knows; known are Stable"):
        family_of({"_class_name": "PixArtAlphaPipeline"})


@pytest.mark.parametrize(
    ("variant", "known"),
    [
        ("ZImageOmniPipeline", "ZImagePipeline"),
        ("QwenImageLayeredPipeline", "QwenImagePipeline"),
        ("SanaSprintPipeline", ""),
    ],
)
def test_an_unknown_variant_of_a_known_pipeline_is_refused_by_its_name(variant: str, known: str) -> None:
    with pytest.raises(UnknownModelError) as told:
        family_of({"_class_name": variant})
    assert f"names the pipeline '{variant}', which no record knows" in str(told.value)
    assert (f"a variant of {known}, whose graphs do not fit" in str(told.value)) == bool(known)
    assert "\n" not in str(told.value)


def test_klein_is_known_for_distilled_by_its_index() -> None:
    configs = dict(ALIASES["flux2-klein-base-4b"].published)
    found = {
        said: defaults_from_configs(FAMILIES["flux2"], {**configs, "model_index": {"is_distilled": said}})
        for said in (True, False)
    }
    assert (found[True].num_inference_steps, found[True].guidance_scale, found[True].start_sigma) == (4, 1.0, 0.9)
    assert (found[False].num_inference_steps, found[False].guidance_scale, found[False].start_sigma) == (50, 4.0, 0.75)


def test_klein_in_four_steps_takes_two_of_them_at_full_size() -> None:
    facts = ALIASES["flux2-klein-4b"].facts()
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults))
    assert [len(stage.steps) for stage in plan.stages] == [2, 2]
    assert predicted_speedup(plan, facts) > 1.5


@aliases
def test_every_alias_can_be_planned_with_every_solver_that_fits(alias: Alias) -> None:
    facts = alias.facts()
    for solver in solver_names(facts):
        plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults, solver=solver))
        assert (plan.height_px, plan.width_px) == (facts.defaults.height, facts.defaults.width)
        assert plan.stages[0].steps[0].row(alias.record.history).size
        assert max(stage.history for stage in plan.stages) <= alias.record.history
        # Staging is never free, and pays at most what its later stages save.
        assert 0.5 < predicted_speedup(plan, facts) < 4


@aliases
def test_every_alias_names_its_licence_and_its_hub_id(alias: Alias) -> None:
    owner, _, name = alias.source.partition("/")
    assert owner
    assert name
    assert alias.licence
    assert alias.family in FAMILIES
    assert alias.max_sequence_length <= alias.record.max_sequence_length


@families
def test_defaults_are_those_of_the_published_pipelines(family: Family) -> None:
    defaults = family.defaults
    published = {
        "sd": (50, 7.5, 512, False, 512),
        "sdxl": (50, 5.0, 1024, False, 1024),
        "sd3": (28, 7.0, 512, False, 1024),
        "flux": (50, 3.5, 512, True, 1024),
        "flux2": (50, 4.0, 512, True, 1024),
        "cogview4": (50, 5.0, 512, False, 1024),
        "zimage": (50, 5.0, 512, False, 1024),
        "qwen": (50, 4.0, 512, False, 1024),
        "qwen21": (40, 1.0, 512, False, 1024),
        "chroma": (35, 5.0, 512, False, 1024),
    }[family.name]
    found = (
        defaults.num_inference_steps,
        defaults.guidance_scale,
        defaults.min_resolution,
        defaults.shorten,
        defaults.base_height,
    )
    assert found == published
    assert (defaults.start_sigma, defaults.scaling_space) == (0.75, "resnet")


def test_sd_forces_the_scheduler_fields_that_its_pipeline_forces() -> None:
    facts = _facts("sd", {**ALIASES["sd15"].published, "scheduler": {"_class_name": "DDIMScheduler"}})
    assert (facts.scheduler_config["steps_offset"], facts.scheduler_config["clip_sample"]) == (1, False)


def test_guidance_is_read_from_the_network() -> None:
    assert {
        name: ALIASES[name].facts().guidance
        for name in (
            "sd15",
            "lcm-sdxl",
            "sd3",
            "flux-dev",
            "flux-schnell",
            "flux2-dev",
            "flux2-klein-4b",
            "flux2-klein-base-4b",
        )
    } == {
        "sd15": "branches",
        "lcm-sdxl": "embedded",
        "sd3": "branches",
        "flux-dev": "embedded",
        "flux-schnell": "none",
        "flux2-dev": "embedded",
        "flux2-klein-4b": "none",
        "flux2-klein-base-4b": "branches",
    }


def test_channels_and_patches_are_counted_in_unpacked_latents() -> None:
    names = ("sdxl", "sd3", "flux-dev", "flux2-dev", "cogview4", "z-image", "qwen-image", "qwen-image-2.1")
    found = {name: ALIASES[name].facts() for name in names}
    assert {name: (f.channels, f.align, f.patch, f.cell_px) for name, f in found.items()} == {
        "sdxl": (4, 1, 1, 8),
        "sd3": (16, 2, 2, 8),
        "flux-dev": (16, 2, 2, 8),
        "flux2-dev": (32, 2, 2, 8),
        "cogview4": (16, 2, 2, 8),
        "z-image": (16, 2, 2, 8),
        "qwen-image": (16, 2, 2, 8),
        "qwen-image-2.1": (64, 2, 1, 16),
    }


def test_a_checkpoint_for_small_pictures_has_small_defaults() -> None:
    configs = dict(ALIASES["sd3"].published)
    configs["transformer"] = {**configs["transformer"], "sample_size": 16}
    defaults = defaults_from_configs(FAMILIES["sd3"], configs)
    assert (defaults.height, defaults.min_resolution, defaults.base_height) == (128, 128, 128)
    assert defaults_from_configs(FAMILIES["sd"], ALIASES["sd21"].published).height == 768


@pytest.mark.parametrize(
    ("component", "field", "words"),
    [
        ("transformer", None, "no transformer; a Stable Diffusion 3 and 3.5 checkpoint has transformer, vae"),
        ("scheduler", None, "no scheduler"),
        ("vae", None, "has no vae"),
        ("transformer", "in_channels", "field 'in_channels' is missing"),
        ("scheduler", "_class_name", "field '_class_name' is missing"),
    ],
)
def test_an_incomplete_checkpoint_is_named(component: str, field: str | None, words: str) -> None:
    configs: dict[str, Any] = {name: dict(config) for name, config in ALIASES["sd3"].published.items()}
    if field is None:
        del configs[component]
    else:
        del configs[component][field]
    with pytest.raises(ModelError, match=words):
        _facts("sd3", configs)


def _facts(family: str, configs: Any) -> Any:
    record = FAMILIES[family]
    return facts_from_configs(record, configs, record.defaults, name="test", max_sequence_length=0)


def write_checkpoint(folder: Path, alias: Alias) -> Path:
    """The JSON files of a checkpoint, as diffusers lays them out."""
    index: dict[str, Any] = {"_class_name": alias.record.pipelines[0]}
    for name, config in alias.published.items():
        (folder / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(config))
        index[name] = ["diffusers", "Whatever"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_folder_says_what_its_alias_says(tmp_path: Path) -> None:
    alias = ALIASES["flux-dev"]
    folder = write_checkpoint(tmp_path / "flux", alias)
    found, known = facts_of_model(str(folder)), alias.facts()
    assert (found.name, found.cost, found.defaults, found.guidance) == ("flux", known.cost, known.defaults, "embedded")
    assert found.scheduler_config == known.scheduler_config


def test_a_hub_id_leads_to_its_alias() -> None:
    assert facts_of_model("black-forest-labs/FLUX.1-dev").name == "flux-dev"
    assert facts_of_model("stabilityai/stable-diffusion-xl-base-1.0").name == "sdxl"


def test_an_unknown_model_is_refused_with_a_guess() -> None:
    with pytest.raises(
        UnknownModelError, match=r"flux-def is neither a folder nor one of demo, .*did you mean flux-dev\?"
    ):
        facts_of_model("flux-def")


@pytest.mark.parametrize(
    ("text", "words"), [(None, "cannot be read"), ("{", "is not"), ("[]", "is not what it should be")]
)
def test_a_damaged_folder_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(ModelError, match=f"model_index.json {words}"):
        configs_from_folder(tmp_path)


def test_the_demo_model_goes_from_128_to_256_px() -> None:
    facts = ALIASES["demo"].facts()
    plan = make_plan(facts, PlanOptions.from_defaults(facts.defaults))
    assert [stage.height * plan.cell_px for stage in plan.stages] == [128, 256]
    assert facts.defaults.num_inference_steps == 20


@families
def test_a_family_says_where_its_graphs_are(family: Family) -> None:
    assert importlib.util.find_spec(family.nets) is not None


@pytest.mark.parametrize(
    ("alias", "px"),
    [
        ("sd15", 0),
        ("sdxl", 0),
        ("sd3", 3072),
        ("sd3.5-medium", 6144),
        ("flux-dev", 8192),
        ("flux2-dev", 8192),
        ("cogview4", 0),
        ("z-image", 8192),
        ("qwen-image", 8192),
        ("qwen-image-2.1", 8192),
    ],
)
def test_the_longest_side_is_that_of_the_position_table(alias: str, px: int) -> None:
    facts = ALIASES[alias].facts()
    assert facts.longest_side * facts.cell_px == px


TRAILING = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("alias", "net", "scheduler", "wanted"),
    [
        ("sdxl", {"sample_size": 64}, TRAILING, (512, 4, 0.0)),  # SDXL Turbo
        ("sd21", {"sample_size": 64}, TRAILING | {"prediction_type": "epsilon"}, (512, 4, 0.0)),  # SD Turbo
        ("sdxl", {"time_cond_proj_dim": 256}, {}, (1024, 4, 8.0)),  # LCM
        ("sdxl", {}, {"_class_name": "LCMScheduler"}, (1024, 4, 1.0)),  # with LCM's LoRA merged in
        ("sdxl", {}, TRAILING, (1024, 50, 5.0)),
        ("sdxl", {"sample_size": 64}, {"timestep_spacing": "leading"}, (512, 50, 5.0)),
        ("sd21", {"sample_size": 64}, TRAILING | {"prediction_type": "v_prediction"}, (512, 50, 7.5)),
        ("sd15", {"sample_size": 64}, TRAILING, (512, 50, 7.5)),
    ],
)
def test_what_was_distilled_for_few_steps_gets_few(
    alias: str, net: dict[str, object], scheduler: dict[str, object], wanted: tuple[int, int, float]
) -> None:
    published = ALIASES[alias].published
    configs = {
        **published,
        "unet": {**published["unet"], **net},
        "scheduler": {**published["scheduler"], **scheduler},
    }
    defaults = defaults_from_configs(ALIASES[alias].record, configs)
    assert (defaults.height, defaults.num_inference_steps, defaults.guidance_scale) == wanted
