"""LoRAs and embeddings on the hub, as they look from here."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from hub_fakes import says_it_has
from huggingface_hub import errors

from lssgen.errors import FetchError, UnknownModelError
from lssgen.export.addons import embedding_here, lora_here

Asked = list[tuple[str, str | None]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """A hub with one repository; what is fetched from it is listed."""
    monkeypatch.chdir(tmp_path)

    def with_files(*names: str, online: bool = True) -> Asked:
        asked: Asked = []
        cache = tmp_path / "cache"

        def put(name: str, revision: str | None) -> Path:
            if name not in names:
                raise errors.EntryNotFoundError(name)
            asked.append((name, revision))
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            (cache / name).touch()
            return cache / name

        def listed(repository: str) -> list[str]:
            del repository
            if not online:
                raise TimeoutError
            return list(names)

        def snapshot(
            repository: str,
            revision: str | None = None,
            allow_patterns: list[str] | None = None,
            *,
            local_files_only: bool = False,
            **_: object,
        ) -> str:
            assert repository
            assert local_files_only is not online
            wanted = names if allow_patterns is None else allow_patterns
            for name in wanted:
                if name in names:
                    put(name, revision)
            return str(cache)

        says_it_has(monkeypatch, listed)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
        return asked

    return with_files


PEFT = ("README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint-100/adapter_model.safetensors")


def test_adapter_of_peft_is_fetched_with_its_configuration(hub: Callable[..., Asked]) -> None:
    asked = hub(*PEFT)
    found = lora_here(Path("owner/name@v1.0"))
    assert found.name == "adapter_model.safetensors"
    assert (found.parent / "adapter_config.json").exists()
    assert sorted(asked) == [("adapter_config.json", "v1.0"), ("adapter_model.safetensors", "v1.0")]


@pytest.mark.parametrize("online", [True, False])
def test_file_of_a_usual_name_is_meant_among_others(hub: Callable[..., Asked], online: bool) -> None:
    hub("pytorch_lora_weights.safetensors", "other.safetensors", online=online)
    assert lora_here(Path("owner/name")).name == "pytorch_lora_weights.safetensors"


def test_only_file_is_meant(hub: Callable[..., Asked]) -> None:
    hub("style.safetensors", "sub/other.safetensors", "README.md")
    assert lora_here(Path("owner/name")).name == "style.safetensors"


def test_embedding_of_diffusers_is_meant(hub: Callable[..., Asked]) -> None:
    hub("learned_embeds.bin", "learned_embeds.safetensors", "other.safetensors")
    assert embedding_here(Path("sd-concepts-library/cat-toy")).name == "learned_embeds.safetensors"


@pytest.mark.parametrize(
    ("name", "file", "revision"),
    [
        ("owner/name/style.safetensors", "style.safetensors", "main"),
        ("owner/name/sub/style.safetensors@v2", "sub/style.safetensors", "v2"),
    ],
)
def test_named_file_is_fetched_at_its_revision(hub: Callable[..., Asked], name: str, file: str, revision: str) -> None:
    asked = hub("style.safetensors", "sub/style.safetensors")
    assert lora_here(Path(name)).exists()
    assert asked == [(file, revision)]


def test_named_adapter_of_peft_comes_with_its_configuration(hub: Callable[..., Asked]) -> None:
    hub("sub/adapter_config.json", "sub/adapter_model.safetensors")
    assert (lora_here(Path("owner/name/sub/adapter_model.safetensors")).parent / "adapter_config.json").exists()


@pytest.mark.parametrize("place", [lora_here, embedding_here])
def test_what_is_here_is_meant_first(hub: Callable[..., Asked], tmp_path: Path, place: Callable[[Path], Path]) -> None:
    asked = hub("style.safetensors")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert place(Path("owner/name")) == Path("owner/name")
    assert not asked


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        (("a.safetensors", "b.safetensors"), "owner/name", r"has a.safetensors, b.safetensors: name the LoRA"),
        (("adapter_model.bin",), "owner/name", r"owner/name has no .safetensors file at its top"),
        ((), "loras/style.safetensors", r"there is no LoRA loras/style.safetensors; give a safetensors file"),
        ((), "style.safetensors", r"there is no LoRA style.safetensors"),
        (("a.safetensors",), "owner/name/b.safetensors", r"there is no file .*owner/name has no b.safetensors"),
    ],
)
def test_lora_that_is_nowhere_is_refused(
    hub: Callable[..., Asked], files: tuple[str, ...], name: str, said: str
) -> None:
    hub(*files)
    with pytest.raises(UnknownModelError, match=said):
        lora_here(Path(name))


def test_mistyped_file_is_answered_with_one_like_it(hub: Callable[..., Asked], tmp_path: Path) -> None:
    hub()
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "style.safetensors").touch()
    with pytest.raises(UnknownModelError, match=r"did you mean loras/style.safetensors\?"):
        lora_here(Path("loras/stile.safetensors"))


def test_hub_that_cannot_be_reached_says_what_to_do(hub: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    hub("a.safetensors", online=False)

    def nothing(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    with pytest.raises(FetchError, match="check the connection and HF_HUB_OFFLINE"):
        lora_here(Path("owner/name"))
