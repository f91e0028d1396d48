"""LoRAs and embeddings as users name them: a file or folder here, or a repository on the hub, which is fetched."""

import contextlib
from pathlib import Path, PurePosixPath

from lssgen.errors import UnknownModelError
from lssgen.export.remote import REPOSITORY, SITE, HubFile, file_here, hub_file, near, snapshot
from lssgen.lora.said import CONFIG
from lssgen.lora.said import FILES as LORA_FILES

EMBEDDING_FILES = ("learned_embeds.safetensors",)
"""The name that diffusers gives to an embedding in a folder of its own."""

ENDING = ".safetensors"


def lora_here(name: Path) -> Path:
    """A LoRA on this machine: the path, or what the hub has under "owner/name" or "owner/name/file.safetensors".

    Raises:
        UnknownModelError, FetchError: It is neither here nor on the hub.
    """
    remote = None if name.exists() else hub_file(str(name))
    # PEFT's file says nothing about its alpha; the configuration beside it does.
    if remote is not None and PurePosixPath(remote.file).name == LORA_FILES[0]:
        beside = str(PurePosixPath(remote.file).with_name(CONFIG))
        with contextlib.suppress(UnknownModelError):  # the file itself says what is wrong, if anything is
            HubFile(remote.repository, beside, remote.revision).fetched()
    return _here(name, LORA_FILES, "LoRA")


def embedding_here(name: Path) -> Path:
    """An embedding on this machine, as `lora_here`.

    Raises:
        UnknownModelError, FetchError: It is neither here nor on the hub.
    """
    return _here(name, EMBEDDING_FILES, "embedding")


def _here(name: Path, usual: tuple[str, ...], what: str) -> Path:
    if name.exists():
        return name
    repository = None if str(name).endswith(ENDING) else REPOSITORY.fullmatch(str(name))
    if repository is not None:
        return _file_of(repository["repository"], repository["revision"], usual, what)
    found = file_here(name)
    if not found.exists():
        raise UnknownModelError(
            f"there is no {what} {name}{near(str(name))}; give a safetensors file, a folder with one, or its place on "
            "the hub, owner/name or owner/name/file.safetensors"
        )
    return found


def _file_of(repository: str, revision: str | None, usual: tuple[str, ...], what: str) -> Path:
    """The file of a repository that has but one of a kind."""
    found: list[str] = []

    def choose(names: list[str]) -> list[str]:
        found[:] = _chosen(names, usual)
        # Nothing is fetched where it is not clear what is meant; PEFT's configuration comes along, where there is one.
        return [*found, CONFIG] if len(found) == 1 else []

    folder = snapshot(repository, revision, choose)
    if not found:  # the hub was not asked; what was fetched before is what there is
        found[:] = _chosen([path.name for path in folder.iterdir()] if folder.is_dir() else [], usual)
    if len(found) != 1:
        have = f"has {', '.join(sorted(found)[:8])}" if found else f"has no {ENDING} file at its top"
        raise UnknownModelError(
            f"{repository} {have}: name the {what} that is meant, {repository}/FILE{ENDING}; its files are listed at "
            f"{SITE}/{repository}/tree/main"
        )
    return folder / found[0]


def _chosen(names: list[str], usual: tuple[str, ...]) -> list[str]:
    """The file of a usual name, else all that could be meant."""
    known = [name for name in usual if name in names]
    return known[:1] or [name for name in names if name.endswith(ENDING) and "/" not in name]
