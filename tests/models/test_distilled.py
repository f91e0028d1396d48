"""Checkpoints that were distilled for few steps are known by their files, or by the name of a single one."""

import pytest

from lssgen.models.aliases import ALIASES
from lssgen.models.distilled import distilled_by_configs, distilled_by_name


@pytest.mark.parametrize(
    ("family", "name", "steps", "scheduler"),
    [
        ("sdxl", "sdxl_lightning_4step", 4, "EulerDiscreteScheduler"),
        ("sdxl", "sdxl_lightning_8step_fp16", 8, "EulerDiscreteScheduler"),
        ("sdxl", "juggernautXL_v9_Lightning_6-Steps", 6, "EulerDiscreteScheduler"),
        ("sdxl", "Hyper-SDXL-8steps", 8, "EulerDiscreteScheduler"),
        ("sdxl", "sd_xl_turbo_1.0_fp16", 4, "EulerAncestralDiscreteScheduler"),
        ("sd", "sd_turbo", 4, "EulerDiscreteScheduler"),
        ("sd", "dreamshaper_8_LCM", 4, "LCMScheduler"),
        ("sd3", "sd3.5_large_turbo", 4, None),
    ],
)
def test_a_files_name_may_tell_its_distillation(family: str, name: str, steps: int, scheduler: str | None) -> None:
    kind = distilled_by_name(family, name)
    assert kind is not None
    assert (kind.steps, kind.sampling.get("_class_name")) == (steps, scheduler)
    assert kind.guidance_scale <= 1


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sdxl", "sd_xl_base_1.0"),
        ("sdxl", "lightning_storms"),
        ("sdxl", "dreamshaperXL_turboDpmppSDE"),  # wants guidance and 1024 px, unlike SDXL Turbo
        ("sdxl", "hyperrealism_v100"),
        ("sdxl", "lightning_step00012000"),
        ("sd", "welcome"),
        ("flux", "flux_lightning_4step"),
    ],
)
def test_other_names_tell_nothing(family: str, name: str) -> None:
    assert distilled_by_name(family, name) is None


@pytest.mark.parametrize("alias", ALIASES)
def test_published_checkpoints_are_known_for_what_they_are(alias: str) -> None:
    record = ALIASES[alias]
    configs = record.configs()
    index = configs.get("model_index", {})
    kind = distilled_by_configs(record.family, configs[record.record.network], configs["scheduler"], index)
    known = ("lcm-sdxl", "flux-schnell", "flux2-klein-4b", "flux2-klein-9b", "z-image-turbo")
    assert (kind is not None) == (alias in known)
    if kind is not None:
        assert kind.amended(record.defaults) == record.defaults
