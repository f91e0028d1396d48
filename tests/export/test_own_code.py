"""Checkpoints that ask for code of their own (trust_remote_code): refused by the name of what asks, and never run."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hub_fakes import says_it_has

from lssgen.errors import ModelError
from lssgen.export import hub
from lssgen.export.hub import find_model

CODE = r"which is code of the checkpoint's own \(trust_remote_code\).*lssgen runs none; give a version"


@pytest.fixture
def copy(sd3: Path, tmp_path: Path) -> Path:
    """A checkpoint with a Python file in every folder, which says so if it is run."""
    folder = shutil.copytree(sd3, tmp_path / "own")
    for place in (folder, folder / "transformer", folder / "text_encoder"):
        (place / "modeling_own.py").write_text(f"raise SystemExit({str(place)!r})")
    return folder


def change(file: Path, **words: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **words}))


@pytest.mark.parametrize(
    ("part", "entry", "words"),
    [
        ("_class_name", ["pipeline_own", "OwnPipeline"], r"the pipeline is of the class pipeline_own\.OwnPipeline"),
        ("transformer", ["modeling_own", "SD3Transformer2DModel"], r"transformer is of the class modeling_own\.SD3Tr"),
        ("text_encoder", ["modeling_own.py", "CLIPTextModel"], r"text_encoder is of the class modeling_own\.py\.CLIP"),
        ("tokenizer", ["os", "system"], r"tokenizer is of the class os\.system"),
    ],
)
def test_class_in_a_file_of_the_checkpoint_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, part: str, entry: list[str], words: str
) -> None:
    """Also where Python would find the file, or where the class has the name of one that is known."""
    monkeypatch.syspath_prepend(str(copy))
    change(copy / "model_index.json", **{part: entry})
    with pytest.raises(ModelError, match=f"{words}.*{CODE}"):
        find_model(str(copy))
    assert "modeling_own" not in sys.modules


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_configuration_that_maps_classes_to_a_file_is_refused(copy: Path, part: str) -> None:
    change(copy / part / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"})
    with pytest.raises(ModelError, match=rf"{part}/config\.json maps its classes to modeling_own\.OwnModel.*{CODE}"):
        find_model(str(copy))


def test_tokenizer_with_a_class_in_a_file_is_refused_unless_it_is_in_the_librarys_own_form(copy: Path) -> None:
    file = copy / "tokenizer" / "tokenizer_config.json"
    own = copy / "tokenizer" / "tokenizer.json"
    own.write_text("{}")
    change(file, auto_map={"AutoTokenizer": ["tokenization_own.Own", None]})
    find_model(str(copy))
    own.unlink()
    with pytest.raises(ModelError, match=rf"tokenizer_config\.json maps .*tokenization_own\.Own.*{CODE}"):
        find_model(str(copy))


def test_parts_that_are_not_read_may_be_what_they_like(copy: Path) -> None:
    change(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert find_model(str(copy)).family.name == "sd3"


def test_code_on_the_hub_is_refused_before_its_weights_are_fetched(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(copy / "model_index.json", transformer=["modeling_own", "Own"])
    says_it_has(monkeypatch, [])
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(copy / "model_index.json"))
    monkeypatch.setattr(hub.hub, "snapshot_download", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(ModelError, match=CODE):
        find_model("somebody/own")
