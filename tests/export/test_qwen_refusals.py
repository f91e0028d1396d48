"""Checkpoints near Qwen-Image that are refused, with the words that say what they are and what fits."""

import json
from pathlib import Path
from typing import Any

import pytest
from factory_qwen import tiny_qwen, tiny_qwen21, tiny_qwen_text
from safetensors.torch import load_file, save_file

from lssgen.errors import ExportError, ModelError, UnknownModelError
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.models.families import FAMILIES, family_of, with_levels


def designed(folder: Path, **more: Any) -> Any:
    return design(ExportConfig(model=str(folder), output=folder / "bundle", resolutions=((32, 32),), **more))


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize("kind", ["Layered", "EditPlus", "ControlNet"])
def test_other_pipelines_of_qwen_image_are_called_its_variants(kind: str) -> None:
    pipeline = f"QwenImage{kind}Pipeline"
    words = f"the pipeline '{pipeline}', which no record knows; it seems to be a variant of QwenImage"
    with pytest.raises(UnknownModelError, match=words):
        family_of({"_class_name": pipeline})


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("use_layer3d_rope", "it is Qwen-Image-Layered"),
        ("use_additional_t_cond", "it is Qwen-Image-Layered"),
        ("guidance_embeds", "takes the guidance scale"),
    ],
)
def test_a_transformer_of_another_variant_is_refused(tmp_path: Path, field: str, words: str) -> None:
    folder = tiny_qwen(tmp_path)
    changed(folder / "transformer" / "config.json", **{field: True})
    with pytest.raises(ModelError, match=f"config.json has {field} on: .*{words}.*choose Qwen-Image"):
        designed(folder)


def test_a_text_encoder_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = tiny_qwen(tmp_path)
    tiny_qwen_text(hidden_size=64).save_pretrained(folder / "text_encoder")
    with pytest.raises(ModelError, match=r"of another size: .* have 64 numbers .* the transformer reads 32"):
        designed(folder)


def test_a_text_encoder_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_qwen(tmp_path)
    changed(folder / "model_index.json", text_encoder=["transformers", "Qwen3ForCausalLM"])
    with pytest.raises(ModelError, match="is a Qwen3ForCausalLM; Qwen-Image is exported with Qwen2_5_VLFor"):
        designed(folder)


def test_without_its_chat_template_qwen_image_2_1_is_refused(tmp_path: Path) -> None:
    """It says how many tokens at the beginning the transformer does not see."""
    folder = tiny_qwen21(tmp_path)
    for file in (folder / "processor").glob("*.jinja"):
        file.unlink()
    with pytest.raises(ModelError, match=r"the chat template of .*processor cannot be filled.*is the checkpoint whole"):
        designed(folder)


def test_prompts_beyond_the_longest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="reads 1024 tokens of a prompt at most"):
        designed(tiny_qwen(tmp_path), max_sequence_length=1025)


@pytest.mark.parametrize("levels", ["1, 0.5", [1.0, "half"], {"first": 1.0}])
def test_levels_that_are_no_numbers_are_refused(levels: object) -> None:
    with pytest.raises(ModelError, match=r"sample_sigmas .*, which is not a list of numbers"):
        with_levels(FAMILIES["qwen21"].defaults, {"sample_sigmas": levels})


def test_levels_of_the_authors_are_the_default_and_a_run_may_have_its_own() -> None:
    defaults = with_levels(FAMILIES["qwen21"].defaults, {"sample_sigmas": [1.0, 0.75, 0.5]})
    assert (defaults.sigmas, defaults.num_inference_steps) == ((1.0, 0.75, 0.5), 3)
    assert with_levels(defaults, {}) == defaults


def test_checkpoints_of_either_version_of_transformers_are_read(tmp_path: Path) -> None:
    """Layers are "model.layers" and the tower "visual" in published files, all inside of "model" in later ones."""
    folder = tiny_qwen(tmp_path)
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    for inside, tower in (("model.", "visual."), ("model.language_model.", "model.visual.")):
        renamed = {
            key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
            for key, value in tensors.items()
        }
        renamed = {
            f"{tower}{key.removeprefix('visual.')}"
            if key.startswith("visual.")
            else key.replace("model.", inside, 1)
            if key.startswith("model.")
            else key: value
            for key, value in renamed.items()
        }
        assert any(key.startswith(f"{inside}layers.0") for key in renamed)
        save_file(renamed, file, {"format": "pt"})
        assert designed(folder).recipes
