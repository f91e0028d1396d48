"""Orders that cannot be carried out: each is refused in words, before anything is written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import tiny_upsampler, write_json
from safetensors.torch import load_file, save_file

from lssgen import paths
from lssgen.bundle import sha256_of
from lssgen.commands import export as command
from lssgen.errors import ExportError, LssgenError, ModelError, PlanError, UnknownModelError, UpsamplerError
from lssgen.export.config import ExportConfig
from lssgen.export.export import design, export
from lssgen.models.aliases import ALIASES


@pytest.fixture
def copy(sd3: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return shutil.copytree(sd3, tmp_path / "broken")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"resolutions": ((64, 60),)},
            ExportError,
            r"multiples of 8 px, and at most 192 px; 60 x 64 is not such a size: use 56 x 64 or 64 x 64",
        ),
        ({"resolutions": ((4, 64),)}, ExportError, r"multiples of 8 px, .*; 64 x 4 is not such a size: use 64 x 8"),
        (
            {"resolutions": ((64, 64), (64, 200))},
            ExportError,
            r"at most 192 px; 200 x 64 is not such a size: use 192 x 64",
        ),
        ({"skip_layers": True}, ExportError, r"name no layers to skip; name some.*layers 0 to 1"),
        ({"skip_layers": True, "layers_to_skip": (2,)}, ExportError, r"has layers 0 to 1; cannot skip 2"),
        ({"max_sequence_length": 0}, ExportError, r"cannot read 0 tokens: ask for .* of 1 to 4096, or for --no-t5"),
        ({"max_sequence_length": -1, "t5": False}, ExportError, r"max_sequence_length is -1; it must be at least 0"),
        (
            {"max_sequence_length": 10**11},
            ExportError,
            r"max_sequence_length is 100000000000; it must be at most 1,000,000",
        ),
        ({"model": "sd4"}, UnknownModelError, r"no model called 'sd4' \(did you mean sd"),
        ({"model": "FLUX-dev"}, UnknownModelError, r"no model called 'FLUX-dev' \(did you mean flux-dev"),
        ({"model": "no such thing"}, UnknownModelError, r"give an alias \(.*sd3.5-medium.*\), the id of a hub"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_order_is_refused(
    config: ExportConfig, written: list[str], change: dict[str, Any], error: type[LssgenError], words: str
) -> None:
    with pytest.raises(error, match=words):
        export(replace(config, **change))
    assert written == []
    assert not config.output.exists()


def test_folder_without_index_is_no_checkpoint(config: ExportConfig, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UnknownModelError, match=r"no model_index.json.*give the path of the safetensors file"):
        export(replace(config, model=str(tmp_path / "pictures")))


def test_unknown_pipeline_is_refused(config: ExportConfig, copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    write_json(copy / "model_index.json", index | {"_class_name": "KandinskyPipeline"})
    with pytest.raises(UnknownModelError, match=r"'KandinskyPipeline', which no record knows; known are .*Diffusion3"):
        export(replace(config, model=str(copy)))


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("vae", "has no vae"),
        ("text_encoder_2", "names text_encoder_2, but there is no such folder"),
        ("transformer", "has no transformer"),
        ("tokenizer", "names tokenizer, but there is no such folder"),
        ("scheduler", "names scheduler, but there is no such folder"),
    ],
)
def test_missing_component_is_named(
    config: ExportConfig, written: list[str], copy: Path, missing: str, words: str
) -> None:
    shutil.rmtree(copy / missing)
    with pytest.raises(ModelError, match=words):
        export(replace(config, model=str(copy)))
    assert "step" not in written


def test_truncated_weights_are_refused(config: ExportConfig, copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"not a whole safetensors file.*fetch the checkpoint again"):
        export(replace(config, model=str(copy)))
    assert not (config.output / "manifest.json").exists()


def test_weights_of_another_shape_are_refused(config: ExportConfig, copy: Path) -> None:
    write = json.loads((copy / "text_encoder" / "config.json").read_text())
    write_json(copy / "text_encoder" / "config.json", write | {"intermediate_size": 48})
    with pytest.raises(ModelError, match="does not fit the model that its config describes"):
        export(replace(config, model=str(copy)))


def test_scheduler_that_no_plan_reproduces_is_refused(config: ExportConfig, copy: Path, written: list[str]) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    write_json(file, json.loads(file.read_text()) | {"invert_sigmas": True})
    with pytest.raises(PlanError, match="invert_sigmas"):
        export(replace(config, model=str(copy)))
    assert written == []


def test_upsampler_with_other_channels_is_refused(config: ExportConfig, tmp_path: Path) -> None:
    with pytest.raises(UpsamplerError, match="turns 16 latent channels into 16, but sd3 has 4"):
        export(replace(config, upsampler=tiny_upsampler(tmp_path / "wide", channels=16)))


def test_upsampler_of_another_latent_space_is_refused(config: ExportConfig, tmp_path: Path) -> None:
    other = tiny_upsampler(tmp_path / "flux", scaling_factor=0.3611, shift_factor=0.1159, vae_sha256="0" * 64)
    words = r"with scaling_factor 0\.3611, shift_factor 0\.1159, but those of sd3 have .*1\.5305.*--convert-latents"
    with pytest.raises(UpsamplerError, match=words):
        export(replace(config, upsampler=other))


def test_upsampler_that_is_not_there_is_refused(config: ExportConfig, tmp_path: Path) -> None:
    with pytest.raises(UpsamplerError, match=r"config\.json"):
        export(replace(config, upsampler=tmp_path / "nothing"))


def test_without_upsampler_the_bundle_is_bicubic_and_says_what_that_costs(
    config: ExportConfig, copy: Path, written: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    shutil.rmtree(copy / "upsampler")
    said: list[str] = []
    manifest = export(replace(config, model=str(copy)), said.append).manifest
    assert "transition_resnet" not in written
    assert manifest.facts.scaling_spaces == ("latent", "pixel", "dct")
    assert manifest.facts.defaults.scaling_space == "latent"
    warning = next(line for line in said if line.startswith("WARNING"))
    assert "blurs" in warning
    assert f"lssgen-train-upsampler --vae {copy}" in warning
    assert warning in manifest.notes


def test_upsampler_installed_for_the_vae_is_found(
    config: ExportConfig, copy: Path, written: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    shutil.rmtree(copy / "upsampler")
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 0.01 for key, value in load_file(vae).items()}, vae)
    tiny_upsampler(paths.upsamplers() / sha256_of(vae)[:16], licence="MIT", vae_sha256=sha256_of(vae))
    manifest = export(replace(config, model=str(copy))).manifest
    assert "transition_resnet" in written
    assert manifest.upsampler is not None
    assert manifest.upsampler.licence == "MIT"


def test_licence_of_an_unmarked_upsampler_is_called_unknown(
    config: ExportConfig, written: list[str], tmp_path: Path
) -> None:
    manifest = export(replace(config, upsampler=tiny_upsampler(tmp_path / "plain"))).manifest
    assert manifest.upsampler is not None
    assert "research only" in manifest.upsampler.licence
    assert "transition_resnet" in written


def test_every_alias_is_a_hub_id_or_a_folder_of_this_package() -> None:
    for alias in ALIASES.values():
        assert alias.local != (alias.source.count("/") == 1 and not alias.source.startswith("/"))


def unknown_family(copy: Path) -> list[str]:
    write_json(copy / "model_index.json", {"_class_name": "KandinskyPipeline"})
    return []


def missing_component(copy: Path) -> list[str]:
    shutil.rmtree(copy / "vae")
    return []


def upsampler_for_another_latent_space(copy: Path) -> list[str]:
    return ["--upsampler", str(tiny_upsampler(copy.parent / "flux", scaling_factor=0.3611, shift_factor=0.1159))]


def resolution_above_the_position_table(copy: Path) -> list[str]:
    del copy
    return ["--resolutions", "64,4096"]


def resolution_below_a_patch(copy: Path) -> list[str]:
    del copy
    return ["--resolutions", "4"]


def lora_for_another_model(copy: Path) -> list[str]:
    tensors = {f"transformer.single_transformer_blocks.0.attn.to_q.lora_{m}.weight": torch.zeros(2, 2) for m in "AB"}
    save_file(tensors, copy.parent / "flux.safetensors")
    return ["--lora", str(copy.parent / "flux.safetensors")]


def scheduler_that_no_plan_reproduces(copy: Path) -> list[str]:
    file = copy / "scheduler" / "scheduler_config.json"
    write_json(file, json.loads(file.read_text()) | {"invert_sigmas": True})
    return []


BREAKAGES: dict[Callable[[Path], list[str]], str] = {
    unknown_family: "UnknownModelError: ",
    missing_component: "ModelError: ",
    upsampler_for_another_latent_space: "UpsamplerError: ",
    resolution_above_the_position_table: "ExportError: ",
    resolution_below_a_patch: "ExportError: ",
    lora_for_another_model: "ModelError: ",
    scheduler_that_no_plan_reproduces: "PlanError: field invert_sigmas of the FlowMatchEulerDiscreteScheduler",
}


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_the_command_ends_with_the_reason_and_leaves_nothing(
    copy: Path, written: list[str], capsys: pytest.CaptureFixture[str], breakage: Callable[[Path], list[str]]
) -> None:
    output = copy.parent / "bundle"
    assert command.main(["--model", str(copy), "--output", str(output), *breakage(copy)]) == 1
    last = capsys.readouterr().err.strip().split("lssgen-export: ")
    assert last[-1].startswith(BREAKAGES[breakage])
    assert "Traceback" not in last[-1]
    assert written == []
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"transitions": ("latent", "sr")}, "transitions by super-resolution need the network: give its ONNX file"),
        (
            {"transitions": ("resnet",)},
            "none of the transitions asked for can be made .*: resnet needs an upsampler",
        ),
        ({"transitions": ()}, "none of the transitions asked for"),
        ({"sr": Path("none.onnx")}, "none.onnx cannot be read"),
    ],
)
def test_transitions_that_cannot_be_made_are_refused(
    config: ExportConfig,
    copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: dict[str, object],
    said: str,
) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    shutil.rmtree(copy / "upsampler")
    with pytest.raises(ExportError, match=said):
        design(replace(config, model=str(copy), **words))
