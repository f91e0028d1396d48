"""The hub, as it looks from here: which files are fetched, and what a refusal is turned into."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import errors

from lssgen.errors import FetchError, LssgenError, PlanError, UnknownModelError
from lssgen.export import hub
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.models.aliases import ALIASES

WEIGHTS = "diffusion_pytorch_model"
REPOSITORY = [
    "README.md", "model_index.json", "sd3_medium.safetensors", "mmdit.onnx", "scheduler/scheduler_config.json",
    "transformer/config.json", f"transformer/{WEIGHTS}-00001-of-00002.safetensors",
    f"transformer/{WEIGHTS}-00002-of-00002.safetensors", f"transformer/{WEIGHTS}.safetensors.index.json",
    f"transformer/{WEIGHTS}.fp16.safetensors", f"transformer/{WEIGHTS}.bin",
    "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "text_encoder/flax_model.msgpack",
    "text_encoder_3/config.json", "text_encoder_3/model-00001-of-00002.safetensors",
    "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_3/spiece.model",
]  # fmt: skip


def test_only_what_an_export_reads_is_fetched() -> None:
    parts = ["transformer", "text_encoder", "tokenizer", "tokenizer_3", "scheduler"]
    assert set(hub.needed_files(REPOSITORY, parts)) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        f"transformer/{WEIGHTS}.safetensors.index.json",
        f"transformer/{WEIGHTS}-00001-of-00002.safetensors",
        f"transformer/{WEIGHTS}-00002-of-00002.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_3/spiece.model",
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ""),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", ""),
        ("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("unet/diffusion_pytorch_model.non_ema.safetensors", "non_ema"),
    ],
)
def test_variant_is_read_from_the_file_name(name: str, variant: str) -> None:
    assert hub._variant(name) == variant


@pytest.mark.parametrize(
    ("refusal", "becomes", "words"),
    [
        (errors.GatedRepoError, FetchError, r"licence accepted first: open https://huggingface.co/a/b.*hf auth login"),
        (errors.RepositoryNotFoundError, UnknownModelError, r"the hub has no a/b, or does not show it"),
        (errors.RevisionNotFoundError, UnknownModelError, r"a/b has no such revision"),
        (errors.LocalEntryNotFoundError, FetchError, r"could not be fetched.*HF_HUB_OFFLINE.*pass the local folder"),
        (errors.RemoteEntryNotFoundError, UnknownModelError, r"no model_index.json, so it is no checkpoint"),
        (errors.OfflineModeIsEnabled, FetchError, r"could not be fetched \(OfflineModeIsEnabled"),
        (TimeoutError, FetchError, r"could not be fetched \(TimeoutError"),
    ],
)
def test_refusal_of_the_hub_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception], becomes: type[LssgenError], words: str
) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", _raise(refusal))
    with pytest.raises(becomes, match=words):
        hub.find_model("a/b")


def _raise(kind: type[Exception]) -> Callable[..., Any]:
    def download(*_: object, **__: object) -> None:
        error = kind.__new__(kind)  # the hub's errors want an HTTP response
        error.args = ("no luck",)
        raise error

    return download


def test_fetched_model_knows_its_commit_and_its_page(
    monkeypatch: pytest.MonkeyPatch, sd3: Path, tmp_path: Path
) -> None:
    snapshot = tmp_path / ("c0ffee" + "0" * 34)
    snapshot.symlink_to(sd3)
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    monkeypatch.setattr(hub.hub, "list_repo_files", lambda *_, **__: REPOSITORY)
    monkeypatch.setattr(hub.hub, "snapshot_download", lambda *_, **__: str(snapshot))
    model = hub.find_model("somebody/model")
    assert (model.name, model.source, model.revision) == ("model", "somebody/model", snapshot.name)
    assert model.licence == "see https://huggingface.co/somebody/model"


def test_hub_id_of_an_alias_has_the_alias_defaults(monkeypatch: pytest.MonkeyPatch, sd3: Path) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    monkeypatch.setattr(hub, "_snapshot", lambda *_: sd3)
    model = hub.find_model("stabilityai/stable-diffusion-3.5-medium")
    assert (model.name, model.defaults.steps, model.skip_layers) == ("sd3.5-medium", 40, (7, 8, 9))


def test_offline_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch, sd3: Path) -> None:
    asked: list[bool] = []

    def snapshot(*_: object, local_files_only: bool = False, **__: object) -> str:
        asked.append(local_files_only)
        return str(sd3)

    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    monkeypatch.setattr(hub.hub, "list_repo_files", _raise(errors.OfflineModeIsEnabled))
    monkeypatch.setattr(hub.hub, "snapshot_download", snapshot)
    hub.find_model("somebody/model")
    assert asked == [True]


def test_alias_that_names_a_scheduler_is_planned_with_it(
    monkeypatch: pytest.MonkeyPatch, sd3: Path, tmp_path: Path
) -> None:
    other = replace(ALIASES["sd3"], source=str(sd3), local=True, scheduler="SchedulerOfTheAlias")
    monkeypatch.setitem(ALIASES, "sd3", other)
    with pytest.raises(PlanError, match="SchedulerOfTheAlias"):
        design(ExportConfig(model="sd3", output=tmp_path / "bundle", resolutions=((64, 64),)))
