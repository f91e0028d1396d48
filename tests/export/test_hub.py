"""The hub, as it looks from here: which files are fetched, and what a refusal is turned into."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factory_families import tiny_sdxl
from hub_fakes import says_it_has
from huggingface_hub import errors
from original_layout import part
from safetensors.torch import save_file

from lssgen.errors import FetchError, LssgenError, PlanError, UnknownModelError
from lssgen.export import hub, remote
from lssgen.export.config import ExportConfig
from lssgen.export.export import design
from lssgen.export.remote import HubFile, hub_file
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
        "README.md",
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
        (errors.RemoteEntryNotFoundError, UnknownModelError, r"no model_index.json, so it is not a checkpoint"),
        (errors.OfflineModeIsEnabled, FetchError, r"could not be fetched \(OfflineModeIsEnabled"),
        (TimeoutError, FetchError, r"could not be fetched \(TimeoutError"),
    ],
)
def test_refusal_of_the_hub_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception], becomes: type[LssgenError], words: str
) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", _raise(refusal))
    monkeypatch.setattr(remote, "look", _raise(refusal))  # of a gated one it would tell the licence
    with pytest.raises(becomes, match=words):
        hub.find_model("a/b")


def _raise(kind: type[Exception]) -> Callable[..., Any]:
    def download(*_: object, **__: object) -> None:
        error = kind.__new__(kind)  # the hub's errors want an HTTP response
        error.args = ("no luck",)
        raise error

    return download


def test_fetched_model_knows_its_commit(monkeypatch: pytest.MonkeyPatch, sd3: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / ("c0ffee" + "0" * 34)
    snapshot.symlink_to(sd3)
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    says_it_has(monkeypatch, REPOSITORY)
    monkeypatch.setattr(hub.hub, "snapshot_download", lambda *_, **__: str(snapshot))
    model = hub.find_model("somebody/model")
    assert (model.name, model.source, model.revision) == ("model", "somebody/model", snapshot.name)
    assert model.licence == "unknown"


def test_hub_id_of_an_alias_has_the_alias_defaults(monkeypatch: pytest.MonkeyPatch, sd3: Path) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    monkeypatch.setattr(hub, "snapshot", lambda *_: sd3)
    model = hub.find_model("stabilityai/stable-diffusion-3.5-medium")
    assert (model.name, model.defaults.num_inference_steps, model.skip_layers) == ("sd3.5-medium", 40, (7, 8, 9))


def test_licence_of_an_alias_is_said_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", _raise(TimeoutError))
    with caplog.at_level("INFO", "lssgen"), pytest.raises(FetchError):
        hub.find_model("sd3")
    alias = ALIASES["sd3"]
    assert f"sd3 is {alias.source}: licence {alias.licence} by lssgen's table; the hub wants it accepted" in caplog.text


def test_offline_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch, sd3: Path) -> None:
    asked: list[bool] = []

    def snapshot(*_: object, local_files_only: bool = False, **__: object) -> str:
        asked.append(local_files_only)
        return str(sd3)

    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(sd3 / "model_index.json"))
    monkeypatch.setattr(remote, "look", _raise(errors.OfflineModeIsEnabled))
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


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/b/c.safetensors", HubFile("a/b", "c.safetensors")),
        ("a/b/folder/c.safetensors", HubFile("a/b", "folder/c.safetensors")),
        ("a/b/c.safetensors@v1.0", HubFile("a/b", "c.safetensors", "v1.0")),
        ("https://huggingface.co/a/b/resolve/main/c d.safetensors", HubFile("a/b", "c d.safetensors", "main")),
        (
            "https://huggingface.co/a/b/blob/refs%2Fpr%2F1/c.ckpt?download=true",
            HubFile("a/b", "c.ckpt", "refs%2Fpr%2F1"),
        ),
        ("https:/huggingface.co/a/b/resolve/main/c.safetensors", HubFile("a/b", "c.safetensors", "main")),
        ("b/c.safetensors", None),
        ("c.safetensors", None),
        ("./b/c.safetensors", None),
        ("../a/b/c.safetensors", None),
        ("/a/b/c.safetensors", None),
        ("a/../b/c.safetensors", None),
        ("a/b", None),
        ("a/b/c", None),
    ],
)
def test_file_on_the_hub_is_known_by_its_name(name: str, wanted: HubFile | None) -> None:
    assert hub_file(name) == wanted


def test_single_file_on_the_hub_is_fetched(monkeypatch: pytest.MonkeyPatch, sd3: Path, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path / "home"))
    file = tmp_path / "sd3.safetensors"
    save_file(part(sd3, "transformer"), file)

    def download(repository: str, revision: str, allow_patterns: list[str], **_: object) -> str:
        asked.append((repository, *allow_patterns, revision))
        return str(tmp_path)

    monkeypatch.setattr(remote.hub, "snapshot_download", download)
    says_it_has(monkeypatch, [file.name])
    for name, revision in (("a/b/sd3.safetensors@x", None), ("a/b/sd3.safetensors", "y")):
        model = hub.find_model(name, revision, base=str(sd3))
        assert (model.source, model.licence) == (name, "unknown")
    assert asked == [("a/b", "sd3.safetensors", "x"), ("a/b", "sd3.safetensors", "y")]


def test_file_that_the_hub_does_not_have_is_looked_for_here_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd").mkdir(parents=True)
    (tmp_path / "models" / "sd" / "dreams.safetensors").touch()
    says_it_has(monkeypatch, [])
    words = (
        r"no file models/sd/dream.safetensors here \(did you mean models/sd/dreams.safetensors\?\), and models/sd has"
    )
    with pytest.raises(UnknownModelError, match=words):
        hub.find_model("models/sd/dream.safetensors")


@pytest.mark.parametrize("refusal", [errors.RepositoryNotFoundError, errors.OfflineModeIsEnabled, TimeoutError])
def test_mistyped_folder_is_not_called_a_broken_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refusal: type[Exception]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "stable3").mkdir(parents=True)
    monkeypatch.setattr(hub.hub, "hf_hub_download", _raise(refusal))
    words = r"^there is no folder models/stabel3 here \(did you mean models/stable3\?\), and as a hub id: "
    with pytest.raises((UnknownModelError, FetchError), match=words):
        hub.find_model("models/stabel3")


@pytest.mark.parametrize("name", ["./stabel3", "../x/stabel3", "/nowhere/stabel3", "a/b/c", "models/stabel3/"])
def test_what_can_only_be_a_path_is_not_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(hub.hub, "hf_hub_download", pytest.fail)
    with pytest.raises(UnknownModelError, match=r"there is no folder "):
        hub.find_model(name)


def test_revision_of_what_is_here_is_refused(sd3: Path, tmp_path: Path) -> None:
    for name in (str(sd3), "demo"):
        with pytest.raises(UnknownModelError, match=r"is on this machine, and only what is on the hub has revisions"):
            hub.find_model(name, "main")
    save_file(part(sd3, "transformer"), tmp_path / "x.safetensors")
    with pytest.raises(UnknownModelError, match=r"x\.safetensors is on this machine"):
        hub.find_model(str(tmp_path / "x.safetensors"), "main", base=str(sd3))


def test_revision_may_stand_behind_the_name(monkeypatch: pytest.MonkeyPatch, sd3: Path) -> None:
    asked: set[object] = set()

    def download(*_: object, revision: str | None = None) -> str:
        asked.add(revision)
        return str(sd3 / "model_index.json")

    monkeypatch.setattr(hub.hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "snapshot", lambda _, revision, __: asked.add(revision) or sd3)
    hub.find_model("somebody/model@v2")
    assert asked == {"v2"}


def test_part_from_another_repository_is_fetched_once_and_its_commit_is_noted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the part whose place it takes, no weights are fetched."""
    base, part_of = (tmp_path / (letter * 40) for letter in "ab")
    tiny_sdxl(base)
    tiny_sdxl(tmp_path / "lcm", time_cond_proj_dim=16)
    (tmp_path / "lcm" / "unet").rename(part_of)
    folders = {"stabilityai/stable-diffusion-xl-base-1.0": base, "latent-consistency/lcm-sdxl": part_of}
    fetched: dict[str, list[str]] = {}

    def choose(repository: str, revision: str | None, wanted: Callable[[list[str]], list[str]]) -> Path:
        del revision
        names = [path.relative_to(folders[repository]).as_posix() for path in folders[repository].rglob("*.*")]
        fetched[repository] = wanted([*names, "lcm_lora.safetensors", f"{WEIGHTS}.fp16.safetensors"])
        return folders[repository]

    monkeypatch.setattr(hub.hub, "hf_hub_download", lambda *_, **__: str(base / "model_index.json"))
    monkeypatch.setattr(hub, "snapshot", choose)
    model = hub.find_model("lcm-sdxl")
    plain, swapped = fetched.values()
    assert "unet/config.json" in plain
    assert f"unet/{WEIGHTS}.safetensors" not in plain
    assert f"vae/{WEIGHTS}.safetensors" in plain
    assert set(swapped) == {"config.json", f"{WEIGHTS}.safetensors"}
    assert model.notes == (f"unet comes from latent-consistency/lcm-sdxl at {'b' * 40}.",)
