"""From what a user calls a model - an alias, a hub id, a folder, a file - to a checkpoint on disk."""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import huggingface_hub as hub
from huggingface_hub import errors as hub_errors

from lssgen.errors import FetchError, ModelError, UnknownModelError
from lssgen.export.checkpoint import SETTINGS, Checkpoint
from lssgen.export.single_file import SUFFIXES, convert, lacking, open_single_file
from lssgen.models.aliases import ALIASES, Alias
from lssgen.models.configs import INDEX, configs_from_folder, read_json
from lssgen.models.families import Family, defaults_from_configs, family_of
from lssgen.plan.facts import Defaults

SITE = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint, and what is known about it beyond its files.

    Attributes:
        name: Short, for messages, the manifest and the output folder.
        source: What the user asked for, resolved: a hub id, a folder or a file.
        revision: Commit on the hub; None for folders and files.
        checkpoint: The files.
        family: Its record.
        defaults: For runs.
        licence: As the alias has it, or where to find it.
        max_sequence_length: Tokens of the long text encoder.
        skip_layers: What the authors leave out in skip-layer guidance; empty where unknown.
        scheduler: diffusers class to use in place of the one that the checkpoint names; empty: that one.
    """

    name: str
    source: str
    revision: str | None
    checkpoint: Checkpoint
    family: Family
    defaults: Defaults
    licence: str
    max_sequence_length: int
    skip_layers: tuple[int, ...] = ()
    scheduler: str = ""


def find_model(
    model: str, revision: str | None = None, *, without: tuple[str, ...] = (), base: str | None = None
) -> Model:
    """Resolve a name, fetch what is not here yet, and convert what is no folder.

    Args:
        model: An alias, the id of a repository on the Hugging Face hub, a folder in the diffusers layout, or a
            safetensors file in the layout of the original code.
        revision: Branch, tag or commit on the hub; None: its default branch.
        without: Parts that need not be fetched.
        base: For a file, what gives it what it lacks: an alias, a hub id or a folder. None: the published checkpoint
            that it descends from, for configuration and tokenizers only.

    Raises:
        UnknownModelError: Nothing of that name, or no record knows the pipeline.
        FetchError: The hub cannot be reached or refuses.
        ModelError: The checkpoint is incomplete, or its base does not fit.
        ExportError: A file cannot be converted for want of room.
    """
    if model.endswith(SUFFIXES):
        return _from_file(Path(model), base, without)
    if base is not None:
        raise UnknownModelError(f"{model} is no single file, and only these have a base; leave out --base")
    return _found(model, revision, without)


def _found(model: str, revision: str | None, without: tuple[str, ...], *, weights: bool = True) -> Model:
    """As `find_model`, for all but files; where the hub is asked, weights may be left there."""
    alias = ALIASES.get(model) or _alias_of(model)
    if alias is not None and not alias.local:
        return _named(alias, _fetched(alias.source, alias.name, revision, without, weights), without, weights)
    if alias is not None:
        return _named(alias, _local(Path(alias.source), alias.name), without, weights)
    if Path(model).is_dir():
        return _local(Path(model), Path(model).resolve().name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return _fetched(model, model.rpartition("/")[2], revision, without, weights)
    near = difflib.get_close_matches(model.lower(), ALIASES, cutoff=0.5)
    raise UnknownModelError(
        f"there is no model called {model!r}{f' (did you mean {near[0]}?)' if near else ''}; give an alias "
        f"({', '.join(ALIASES)}), the id of a hub repository (owner/name), a folder in the diffusers layout, or a "
        "safetensors file"
    )


def _from_file(file: Path, base: str | None, without: tuple[str, ...]) -> Model:
    """The file as a folder; what it lacks comes from its base."""
    single = open_single_file(file)
    name = base or single.alias
    try:
        origin = _found(name, None, (), weights=False)
    except FetchError as error:
        raise FetchError(
            f"{file} has weights only; configuration and tokenizers come from {name}, but {error}. With --base FOLDER "
            "they come from a folder in the diffusers layout"
        ) from error
    family = origin.family
    parts = [
        part
        for part in (*family.components, *family.optional)
        if part not in without or (origin.checkpoint.folder / part).is_dir()  # a base may lack what is not asked for
    ]
    folder = convert(single, origin.checkpoint, parts)
    checkpoint = Checkpoint(folder)
    missing = [part for part in lacking(folder, parts) if part not in without]
    if missing and base is None:
        raise ModelError(
            f"{file} has no {', '.join(missing)}. Say where from with --base: a folder in the diffusers layout that "
            f"has these weights, or --base {name} to fetch them"
        )
    if missing:
        full = _found(name, origin.revision, tuple(part for part in parts if part not in missing))
        try:
            full.checkpoint.weights(tuple(missing))
        except ModelError as error:
            raise ModelError(f"{file} has no {', '.join(missing)}, and its base cannot help: {error}") from error
        for part in missing:
            checkpoint = checkpoint.with_part(part, full.checkpoint.path(part))
    return replace(
        origin, name=file.stem, source=str(file.resolve()), revision=None, checkpoint=checkpoint, licence="unknown"
    )


def _alias_of(model: str) -> Alias | None:
    """The alias of a hub id or folder, for its defaults."""
    for alias in ALIASES.values():
        plain = not alias.swaps and alias.source == model
        if plain or (alias.local and Path(model).is_dir() and Path(model).resolve() == Path(alias.source).resolve()):
            return alias
    return None


def _named(alias: Alias, model: Model, without: tuple[str, ...], weights: bool) -> Model:
    """The model with what its alias knows."""
    checkpoint = model.checkpoint
    for part, source in alias.swaps.items():
        if part not in without:
            checkpoint = checkpoint.with_part(part, _fetched_part(source, part, weights))
    return replace(
        model,
        checkpoint=checkpoint,
        defaults=alias.defaults,
        licence=alias.licence,
        max_sequence_length=alias.max_sequence_length,
        skip_layers=alias.skip_layers,
        scheduler=alias.scheduler,
    )


def _local(folder: Path, name: str) -> Model:
    if not (folder / INDEX).is_file():
        raise UnknownModelError(
            f"{folder} has no {INDEX}, so it is no checkpoint in the diffusers layout; of a single-file checkpoint, "
            "give the path of the safetensors file"
        )
    family = family_of(read_json(folder / INDEX))
    configs = configs_from_folder(folder)
    return Model(
        name=name,
        source=str(folder.resolve()),
        revision=None,
        checkpoint=Checkpoint(folder),
        family=family,
        defaults=defaults_from_configs(family, configs),
        licence="unknown",
        max_sequence_length=family.max_sequence_length,
    )


def _fetched(repository: str, name: str, revision: str | None, without: tuple[str, ...], weights: bool) -> Model:
    index = _ask(repository, lambda: hub.hf_hub_download(repository, INDEX, revision=revision))
    family = family_of(read_json(Path(index)))
    parts = [part for part in (*family.components, *family.optional) if part not in without]
    folder = _snapshot(repository, revision, parts, weights)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    found = _local(folder, name)
    return replace(found, source=repository, revision=commit, licence=f"see {SITE}/{repository}")


def _snapshot(repository: str, revision: str | None, parts: Iterable[str], weights: bool) -> Path:
    """The files of some parts, in the hub's cache."""
    wanted = list(parts)

    def fetch() -> str:
        try:
            names = hub.list_repo_files(repository, revision=revision)
        except (hub_errors.GatedRepoError, hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError):
            raise
        except Exception:  # no connection, in any of its many forms: what was fetched before may do
            return hub.snapshot_download(repository, revision=revision, local_files_only=True)
        files = needed_files(names, wanted, weights=weights)
        return hub.snapshot_download(repository, revision=revision, allow_patterns=files)

    return Path(_ask(repository, fetch))


def _fetched_part(repository: str, part: str, weights: bool) -> Path:
    """Folder of a part that another repository provides, in a folder of its own there or at the top."""
    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    folder = Path(_ask(repository, lambda: hub.snapshot_download(repository, allow_patterns=patterns)))
    return folder / part if (folder / part).is_dir() else folder


def needed_files(names: Iterable[str], parts: Iterable[str], *, weights: bool = True) -> list[str]:
    """Those files of a repository that an export reads.

    Weights are there in up to five forms; one is enough: safetensors, unmarked before fp16 before bf16.

    Args:
        names: All files of the repository, with their folders.
        parts: Folders of interest.
        weights: Whether the export reads those too.
    """
    names, parts = list(names), set(parts)
    found = [name for name in names if name == INDEX]
    for part in sorted(parts):
        inside = [name for name in names if name.startswith(f"{part}/") and name.count("/") == 1]
        found += [name for name in inside if name.endswith(SETTINGS)]
        tensors = [name for name in inside if weights and name.endswith(".safetensors")]
        by_variant = {
            variant: [name for name in tensors if _variant(name) == variant] for variant in ("", "fp16", "bf16")
        }
        found += next((files for files in by_variant.values() if files), [])
    return found


def _variant(name: str) -> str:
    """The mark in a file's name: "fp16" for "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"."""
    marks = re.findall(r"\.(\w+?)(?=[.-])", name.rpartition("/")[2])
    return marks[0] if marks else ""


def _ask(repository: str, fetch: Callable[[], str]) -> str:
    """Do something with the hub; say what to do where it refuses."""
    page = f"{SITE}/{repository}"
    try:
        return fetch()
    except hub_errors.GatedRepoError as error:
        raise FetchError(
            f"{repository} wants its licence accepted first: open {page}, accept it there, then sign in with "
            "`hf auth login` or set HF_TOKEN, and run this again; or pass a local folder with the checkpoint"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownModelError(
            f"{repository} has no such revision; its branches and commits are listed at {page}"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UnknownModelError(
            f"the hub has no {repository}, or does not show it to you; check the name at {page}, and for a private one "
            "sign in with `hf auth login` or set HF_TOKEN"
        ) from error
    except hub_errors.EntryNotFoundError as error:
        if isinstance(error, hub_errors.LocalEntryNotFoundError):
            raise _unreachable(repository, error) from error
        raise UnknownModelError(
            f"{repository} has no {INDEX}, so it is no checkpoint in the diffusers layout; "
            "look for its diffusers version"
        ) from error
    except Exception as error:  # the hub's client passes on what its HTTP library raises, and changes libraries
        raise _unreachable(repository, error) from error


def _unreachable(repository: str, error: Exception) -> FetchError:
    reason = str(error).strip().splitlines()
    return FetchError(
        f"{repository} could not be fetched ({type(error).__name__}: {reason[0] if reason else 'no reason given'}); "
        "check the connection and HF_HUB_OFFLINE, or fetch it elsewhere and pass the local folder"
    )
