"""Bundles without a text encoder: for runs that are given embeddings."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lssgen.bundle import read_bundle
from lssgen.errors import ExportError
from lssgen.export.config import Embedding, ExportConfig
from lssgen.export.export import ENCODERS, design, export


@pytest.mark.usefixtures("written")
def test_text_graph_is_left_out_and_all_else_is_the_same(config: ExportConfig, tmp_path: Path) -> None:
    whole = export(config).manifest
    bare = export(replace(config, output=tmp_path / "bare", text_encoder=False)).manifest
    assert set(whole.graphs) - set(bare.graphs) == {"text"}
    assert {name: graph.key for name, graph in bare.graphs.items()} == {
        name: graph.key for name, graph in whole.graphs.items() if name != "text"
    }
    assert not any(part.startswith(ENCODERS) for part in bare.source.sha256)
    read_bundle(tmp_path / "bare")  # sound


@pytest.mark.usefixtures("written")
def test_weights_of_the_encoders_need_not_be_there(config: ExportConfig, sd3: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sd3, tmp_path / "lean")
    for encoder in ENCODERS:
        for file in (copy / encoder).glob("*.safetensors"):
            file.unlink()
    bundle = export(replace(config, model=str(copy), text_encoder=False))
    assert "text" not in bundle.manifest.graphs


def test_words_to_learn_need_an_encoder(config: ExportConfig) -> None:
    with pytest.raises(ExportError, match="teaches the text encoder a word, and --no-text-encoder leaves it out"):
        replace(config, text_encoder=False, embeddings=(Embedding(Path("cat.safetensors")),))


def test_note_says_what_such_a_bundle_needs(config: ExportConfig) -> None:
    notes = design(replace(config, text_encoder=False)).notes
    assert "The bundle has no text encoder: every run is given the embeddings of its prompts." in notes


def test_only_settings_of_the_encoders_are_fetched(config: ExportConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def found(*_: object, lean: tuple[str, ...], **__: object) -> None:
        asked.append(lean)
        raise ExportError("enough")

    monkeypatch.setattr("lssgen.export.export.find_model", found)
    with pytest.raises(ExportError, match="enough"):
        design(replace(config, text_encoder=False, vae="somebody/vae"))
    assert asked == [("vae", *ENCODERS)]
