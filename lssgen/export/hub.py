"""From what a user calls a model - an alias, a hub id, a folder, a file - to a checkpoint on disk."""

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import huggingface_hub as hub

from lssgen.errors import FetchError, ModelError, UnknownModelError
from lssgen.export.checkpoint import SETTINGS, Checkpoint, statistics_of
from lssgen.export.config import PredictionType
from lssgen.export.inspection import WITHOUT_T5, see_no_code, see_pipeline
from lssgen.export.remote import REPOSITORY, ask, file_here, hub_file, near, snapshot
from lssgen.export.repository import CARD, UNKNOWN, terms_of_folder
from lssgen.export.single_file import SUFFIXES, SingleFile, convert, found_out, lacking, open_single_file
from lssgen.export.stored import STEMS
from lssgen.models.aliases import ALIASES, Alias
from lssgen.models.configs import INDEX, configs_from_folder, read_json
from lssgen.models.distilled import distilled_by_name
from lssgen.models.families import Family, at_size, defaults_from_configs, family_of, with_levels
from lssgen.plan.facts import Defaults

_LOG = logging.getLogger("lssgen")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint, and what is known about it beyond its files.

    Attributes:
        name: Short, for messages, the manifest and the output folder.
        source: Hub id, folder or file that the name stands for.
        revision: Commit on the hub; None for folders and files.
        checkpoint: The files.
        family: Record of its family.
        defaults: Values for what a run leaves open.
        licence: Name of the licence, or the page that has it.
        max_sequence_length: Tokens of the long text encoder.
        skip_layers: Layers that the authors leave out in skip-layer guidance; empty where unknown.
        scheduler: diffusers class to use in place of the one that the checkpoint names; empty: that one.
        sampling: Fields of the scheduler's configuration that stand in the place of the checkpoint's.
        own_vae: Folder of the checkpoint's own VAE, where another one stands in; None: it has its own.
        notes: Sentences about it that the user should read.
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
    sampling: Mapping[str, object] = field(default_factory=dict[str, object])
    own_vae: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def latents(self) -> Mapping[str, Any]:
        """How its latents are normalised: the config.json of the VAE that it was trained with."""
        if self.own_vae is None:
            return self.checkpoint.config("vae")
        return {**read_json(self.own_vae / "config.json"), **statistics_of(self.own_vae)}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Which files of a checkpoint are wanted.

    Attributes:
        without: Parts that need not be there.
        lean: Parts of which the configuration is enough.
        weights: False where it is enough of all parts.
    """

    without: tuple[str, ...] = ()
    lean: tuple[str, ...] = ()
    weights: bool = True

    def reads(self, part: str) -> bool:
        """Whether a part's weights are wanted."""
        return self.weights and part not in self.lean


def find_model(
    model: str,
    revision: str | None = None,
    *,
    without: tuple[str, ...] = (),
    base: str | None = None,
    lean: tuple[str, ...] = (),
    prediction: PredictionType | None = None,
) -> Model:
    """Resolve a name, fetch what is not here yet, and convert what is not a folder.

    Args:
        model: An alias, the id of a repository on the Hugging Face hub, a folder in the diffusers layout, or a
            safetensors file in the layout of the original code, here or on the hub (owner/name/file.safetensors).
        revision: Branch, tag or commit on the hub; None: its default branch.
        without: Parts that need not be fetched.
        base: Checkpoint that gives a file what it lacks: an alias, a hub id or a folder. None: the published one that
            it descends from, for configuration and tokenizers only.
        lean: Parts of which the configuration is enough, because others will stand in.
        prediction: What a UNet predicts, whatever a file says.

    Raises:
        UnknownModelError: Nothing of that name, or no record knows the pipeline.
        FetchError: The hub cannot be reached or refuses.
        ModelError: The checkpoint is incomplete, or its base does not fit.
        ExportError: A file cannot be converted for want of room.
    """
    need = Need(without=without, lean=lean)
    if model.endswith(SUFFIXES) or hub_file(model) is not None:
        remote = None if Path(model).exists() else hub_file(model)
        if remote is not None and revision is not None:
            remote = replace(remote, revision=revision)
        _see_revision(model, None if remote else revision)
        file = file_here(model) if remote is None or revision is None else remote.fetched()
        found = _from_file(open_single_file(file), base, need, prediction)
        return found if remote is None else replace(found, source=model, licence=str(remote.terms()))
    if base is not None:
        raise UnknownModelError(f"{model} is not a single file, and only these have a base; leave out --base")
    return _found(model, revision, need)


def _see_revision(model: str, revision: str | None) -> None:
    """See that a revision is not asked of what has none.

    Raises:
        UnknownModelError: It is.
    """
    if revision is not None:
        raise UnknownModelError(f"{model} is on this machine, and only what is on the hub has revisions; leave it out")


def _found(model: str, revision: str | None, need: Need) -> Model:
    """As `find_model`, for all but files; where the hub is asked, weights may be left there."""
    alias = ALIASES.get(model) or _alias_of(model)
    # By its own name or by the id that it stands for: both have the alias's defaults.
    if alias is not None and not alias.local:
        access = "; the hub wants it accepted first" if alias.gated else ""
        _LOG.info("%s is %s: licence %s by lssgen's table%s", alias.name, alias.source, alias.licence, access)
        # The weights of parts that others stand in for stay on the hub.
        swapped = replace(need, lean=(*need.lean, *alias.swaps))
        return _named(alias, _fetched(alias.source, alias.name, revision, swapped), need)
    if alias is not None:
        _see_revision(model, revision)
        return _named(alias, _local(Path(alias.source), alias.name), need)
    if Path(model).is_dir():
        _see_revision(model, revision)
        return _local(Path(model), Path(model).resolve().name)
    remote = REPOSITORY.fullmatch(model)
    if remote is not None:
        repository = remote["repository"]
        try:
            return _fetched(repository, repository.rpartition("/")[2], revision or remote["revision"], need)
        except (FetchError, UnknownModelError) as error:
            # "bundles/sd3" could be either: where such a folder's parent is here, a misspelt path is as likely as an
            # id.
            if not Path(model).parent.is_dir():
                raise
            raise type(error)(f"there is no folder {model} here{near(model)}, and as a hub id: {error}") from error
    if "/" in model:
        raise UnknownModelError(f"there is no folder {model}{near(model)}; give one in the diffusers layout, or a file")
    close = difflib.get_close_matches(model.lower(), ALIASES, cutoff=0.5)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise UnknownModelError(
        f"there is no model called {model!r}{guess}, and no such folder; give an alias ({', '.join(ALIASES)}), the id "
        "of a hub repository (owner/name), a folder in the diffusers layout, or a safetensors file"
    )


def _from_file(single: SingleFile, base: str | None, need: Need, prediction: PredictionType | None) -> Model:
    """The file as a folder; what it lacks comes from its base."""
    file = single.path
    name = base or single.alias
    try:
        # Configuration and tokenizers only: whether the base's gigabytes are needed is known once the file was read.
        origin = _found(name, None, Need(weights=False))
    except FetchError as error:
        raise FetchError(
            f"{file} has weights only; configuration and tokenizers come from {name}, but {error}. With --base FOLDER "
            "they come from a folder in the diffusers layout"
        ) from error
    family = origin.family
    if prediction is not None:
        see_prediction(family, prediction)
    parts = [
        part
        for part in (*family.components, *family.optional)
        if part not in need.without or (origin.checkpoint.folder / part).is_dir()  # a base may lack what is not needed
    ]
    folder = convert(single, origin.checkpoint, parts, prediction)
    checkpoint = Checkpoint(folder)
    missing = [part for part in lacking(folder, parts) if part not in need.without]
    wanted = [part for part in missing if need.reads(part)]
    if wanted and base is None:
        raise ModelError(
            f"{file} has no {', '.join(wanted)}. Say where from with --base: a folder in the diffusers layout that "
            f"has these weights, or --base {name} to fetch them{_dispensable(family, wanted)}"
        )
    notes = found_out(folder).notes
    if wanted:
        # At the commit that the configuration came from, whatever has been pushed since.
        full = _found(name, origin.revision, Need(without=tuple(part for part in parts if part not in wanted)))
        try:
            full.checkpoint.weights(tuple(wanted))
        except ModelError as error:
            raise ModelError(
                f"{file} has no {', '.join(wanted)}, and its base cannot help: {error}{_dispensable(family, wanted)}"
            ) from error
        for part in wanted:
            checkpoint = checkpoint.with_part(part, full.checkpoint.path(part))
        notes += (f"{file.name} has no {', '.join(wanted)}; taken from {full.source}.",)
    for part in missing:
        if part not in wanted:
            checkpoint = checkpoint.with_part(part, origin.checkpoint.path(part))
    size = found_out(folder).size_px
    defaults, sampling = at_size(origin.defaults, size) if size else origin.defaults, origin.sampling
    if (kind := distilled_by_name(family.name, file.stem)) is not None:
        defaults, sampling = kind.amended(defaults), {**sampling, **kind.sampling}
        notes += (
            f"By its name, {file.name} is taken for {kind.title}: {kind.steps} steps, guidance {kind.guidance_scale:g}"
            + (f", {sampling['_class_name']}" if sampling else "")
            + "; --scheduler chooses another one, --steps and --guidance-scale of a run other numbers.",
        )
    return replace(
        origin,
        name=file.stem,
        source=str(file.resolve()),
        revision=None,
        checkpoint=checkpoint,
        defaults=defaults,
        sampling=sampling,
        licence=UNKNOWN,
        notes=(*origin.notes, *notes),
    )


def _dispensable(family: Family, parts: Iterable[str]) -> str:
    """The way out where only such parts are missing that a model can do without."""
    return f"; {WITHOUT_T5}" if set(parts) <= set(family.optional) else ""


def see_prediction(family: Family, prediction: PredictionType) -> None:
    """See that models of a family may predict one thing or another.

    Raises:
        ModelError: They cannot.
    """
    if family.network != "unet":
        raise ModelError(
            f"{family.title} predicts the velocity of a flow and nothing else; leave out --prediction-type {prediction}"
        )


def _alias_of(model: str) -> Alias | None:
    """The alias of a hub id or folder, for its defaults."""
    for alias in ALIASES.values():
        plain = not alias.swaps and alias.source == model
        if plain or (alias.local and Path(model).is_dir() and Path(model).resolve() == Path(alias.source).resolve()):
            return alias
    return None


def _named(alias: Alias, model: Model, need: Need) -> Model:
    """The model with what its alias knows."""
    checkpoint, notes = model.checkpoint, list[str]()
    for part, source in alias.swaps.items():
        if part not in need.without:
            folder, commit = fetched_part(source, part, None, weights=need.reads(part))
            checkpoint = checkpoint.with_part(part, folder)
            notes.append(f"{part} comes from {source}{f' at {commit}' if commit else ''}.")
    return replace(
        model,
        checkpoint=checkpoint,
        defaults=with_levels(alias.defaults, checkpoint.index),
        licence=alias.licence,
        max_sequence_length=alias.max_sequence_length,
        skip_layers=alias.skip_layers,
        scheduler=alias.scheduler,
        notes=tuple(notes),
    )


def _local(folder: Path, name: str) -> Model:
    if not (folder / INDEX).is_file():
        raise UnknownModelError(
            f"{folder} has no {INDEX}, so it is not a checkpoint in the diffusers layout; of a single-file checkpoint, "
            "give the path of the safetensors file"
        )
    index = read_json(folder / INDEX)
    see_pipeline(folder, index)
    family = family_of(index)
    see_no_code(folder, index, (*family.components, *family.optional))
    configs = configs_from_folder(folder)
    defaults, notes = defaults_from_configs(family, configs), ()
    if defaults.num_inference_steps != family.defaults.num_inference_steps:
        steps, guidance = defaults.num_inference_steps, defaults.guidance_scale
        notes = (
            f"{name} was distilled for few steps: its defaults are {steps}, with a guidance scale of {guidance:g}.",
        )
    return Model(
        name=name,
        source=str(folder.resolve()),
        revision=None,
        checkpoint=Checkpoint(folder),
        family=family,
        defaults=with_levels(defaults, index),
        notes=notes,
        licence=str(terms_of_folder(folder)),
        max_sequence_length=family.max_sequence_length,
    )


def _fetched(repository: str, name: str, revision: str | None, need: Need) -> Model:
    index = ask(repository, lambda: hub.hf_hub_download(repository, INDEX, revision=revision), wanted=WANTED)
    see_pipeline(Path(index).parent, said := read_json(Path(index)))
    family = family_of(said)
    # Before the gigabytes of what is then refused.
    see_no_code(Path(index).parent, said, (*family.components, *family.optional))
    parts = [part for part in (*family.components, *family.optional) if part not in need.without]
    # The commit that the index is of, whatever has been pushed since.
    commit = _commit(Path(index).parent) or revision
    lean = [part for part in parts if not (need.reads(part) or _whole(need, family, part))]
    folder = snapshot(repository, commit, lambda names: needed_files(names, parts, lean=lean))
    return replace(_local(folder, name), source=repository, revision=_commit(folder) or revision)


def _whole(need: Need, family: Family, part: str) -> bool:
    """Whether a part's weights are wanted although another stands in for it."""
    return need.weights and part in family.whole


WANTED = f"{INDEX}, so it is not a checkpoint in the diffusers layout: look for its diffusers version"


def _commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, which names them so, whatever branch or tag was asked for."""
    return folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else None


def fetched_part(repository: str, part: str, revision: str | None, *, weights: bool = True) -> tuple[Path, str | None]:
    """Folder of a part that another repository provides, in a folder of its own there or at the top; and the commit.

    Raises:
        UnknownModelError, FetchError: The hub does not give it.
    """

    def choose(names: list[str]) -> list[str]:
        inside = any(name.startswith(f"{part}/") for name in names)
        found = needed_files(names, [part if inside else ""], lean=[] if weights else [part, ""])
        return [name for name in found if name not in (INDEX, CARD) or inside]

    folder = snapshot(repository, revision, choose)
    return folder / part if (folder / part).is_dir() else folder, _commit(folder)


def needed_files(names: Iterable[str], parts: Iterable[str], *, lean: Iterable[str] = ()) -> list[str]:
    """Those files of a repository that an export reads.

    Weights are there in up to five forms; one is enough: safetensors, unmarked before fp16 before bf16.

    Args:
        names: All files of the repository, with their folders.
        parts: Folders of interest; an empty name is the top.
        lean: Those of which the settings are enough.
    """
    names, parts, lean = list(names), set(parts), set(lean)
    found = [name for name in names if name in (INDEX, CARD)]
    for part in sorted(parts):
        inside = [name for name in names if name.rpartition("/")[0] == part]
        found += [name for name in inside if name.endswith(SETTINGS) and name not in found]
        tensors = [name for name in inside if part not in lean and _is_weights(name)]
        by_variant = {
            variant: [name for name in tensors if _variant(name) == variant] for variant in ("", "fp16", "bf16")
        }
        found += next((files for files in by_variant.values() if files), [])
    return found


def _is_weights(name: str) -> bool:
    """Whether a file has the weights of a part, as diffusers and transformers name them."""
    return name.endswith(".safetensors") and name.rpartition("/")[2].startswith(STEMS)


def _variant(name: str) -> str:
    """The mark in a file's name: "fp16" for "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"."""
    # Also of marks that nobody asks for, as in ".non_ema.safetensors": such files are in no variant.
    marks = re.findall(r"\.(\w+?)(?=[.-])", name.rpartition("/")[2])
    return marks[0] if marks else ""
