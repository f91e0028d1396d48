"""run.json: everything about a run that another run, or a benchmark, may want to know."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import cast

import msgspec

from lssgen.bundle import MANIFEST, sha256_of
from lssgen.errors import PromptError
from lssgen.files import as_text
from lssgen.images import open_picture
from lssgen.jsons import JsonError, NoFileError, convert_json, decode_json, read_json, read_object
from lssgen.lora.asked import RunLora
from lssgen.lora.said import places_of
from lssgen.plan import Plan, SchedulerChoice, SkipLayerGuidance
from lssgen.runtime.checking import Checked
from lssgen.runtime.options import Options, Request, options_from_request, refuse_unknown
from lssgen.runtime.pictures import write_file
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.results import BatchTimes, Picture

RECORD = "run.json"

CHECKED = "checked"
"""Key of what hooks did with a picture, among what it says about itself."""


class PictureRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was written, and what hooks did with it."""

    file: str
    prompt: str
    seed: int
    checked: Sequence[Checked] = ()


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run on disk.

    Attributes:
        lssgen: Version that ran.
        written: Time of writing, in UTC.
        finished: False if the run was stopped before its end.
        configuration: Every choice, in the words of `Options`; `--config` takes it again.
        bundle: Folder, and sha256 of the manifest, which holds the hashes of the graphs.
        backend: Facts that the backend tells about itself.
        plan: Stages and steps.
        suffix: Format of the pictures, ".png".
        lora_sha256: Hashes of the LoRAs that it is painted with, by file.
        start: sha256 of the picture that the run starts from, of its mask and of the pictures that condition it, by
            file name.
        prompts: All prompts of the run, in their order; empty where a prompt file has them.
        pictures: Pictures that were written.
        times: Seconds, batch by batch.
    """

    lssgen: str
    written: str
    finished: bool
    configuration: Mapping[str, object]
    bundle: Mapping[str, str]
    backend: Mapping[str, object]
    plan: Plan
    suffix: str = ".png"
    lora_sha256: Mapping[str, str] = {}
    start: Mapping[str, str] = {}
    prompts: Sequence[str] = ()
    pictures: Sequence[PictureRecord] = ()
    times: Sequence[BatchTimes] = ()


def record_of(
    pipeline: Pipeline,
    request: Request,
    *,
    finished: bool,
    suffix: str = ".png",
    start: Mapping[str, str] = MappingProxyType({}),
    prompts: Sequence[str] = (),
    pictures: Sequence[PictureRecord] = (),
    times: Sequence[BatchTimes] = (),
) -> RunRecord:
    """The record of a run of `pipeline`."""
    folder = pipeline.bundle.folder
    return RunRecord(
        lssgen=version("lssgen"),
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        finished=finished,
        configuration=msgspec.to_builtins(options_from_request(request)),
        bundle={"folder": as_text(folder.resolve()), "manifest_sha256": sha256_of(folder / MANIFEST)},
        # Asked now and not when the pipeline was made: the keys of its engines are known once they are open.
        backend=pipeline.backend.describe(),
        plan=request.plan,
        suffix=suffix,
        lora_sha256=lora_hashes(request.loras),
        start=dict(start),
        prompts=prompts,
        pictures=pictures,
        times=times,
    )


def parameters_of(picture: Picture, request: Request) -> dict[str, object]:
    """What a picture says about itself: its prompt and seed, and every choice of the run."""
    choices = msgspec.to_builtins(options_from_request(request))
    # A picture is handed on to others, whom the folders of this machine do not concern.
    choices["loras"] = [RunLora.from_text(text).named for text in request.loras]
    # The picture's own seed and one picture, not the run's: with these parameters, this picture is painted again.
    said: dict[str, object] = {"prompt": picture.prompt, **choices, "seed": picture.seed, "num_images": 1}
    return {**said, CHECKED: msgspec.to_builtins(picture.checked)} if picture.checked else said


def lora_hashes(loras: Sequence[str]) -> dict[str, str]:
    """sha256 of every file of a run's LoRAs, as far as they are there."""
    paths = [RunLora.from_text(text).path for text in loras]
    files = [place.path for path in paths if path.exists() for place in places_of(path)]
    return {as_text(file): _sha256(file, file.stat().st_mtime_ns) for file in files}


@lru_cache(maxsize=64)
def _sha256(file: Path, changed: int) -> str:
    """Hash of a file; read once, however often a record is written while a run goes on."""
    del changed
    return sha256_of(file)


def write_record(record: RunRecord, path: Path) -> None:
    """Write it, indented, in one rename.

    Raises:
        PromptError: The file cannot be written.
    """
    write_file(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_record(path: Path) -> RunRecord:
    """Read a run.json.

    Raises:
        PromptError: It cannot be read, or is not a record.
    """
    try:
        return read_json(path, RunRecord)
    except NoFileError as error:
        raise PromptError(f"{path} {error}") from error
    except JsonError as error:
        raise PromptError(f"{path} is not a record of a run: it {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a file says about a run that is to be.

    Attributes:
        options: Keywords of the run.
        lora_sha256: Hashes of the LoRAs that it was painted with, by file.
        prompts: All of its prompts, if the file has any.
        bundle: "folder", and "manifest_sha256", where it is the record of a run; else empty.
        engine: Name of the backend that it ran on; empty if that is not known.
        start: sha256 of the pictures that it started from, by file name.
    """

    options: Options
    prompts: tuple[str, ...]
    bundle: Mapping[str, str]
    engine: str
    start: Mapping[str, str]
    lora_sha256: Mapping[str, str] = field(default_factory=dict[str, str])


def settings_from_file(path: Path) -> Settings:
    """Settings from a run.json, from a JSON object with keywords of a run, "prompt" among them perhaps, or from a PNG
    picture that a run wrote.

    Raises:
        PromptError: It cannot be read, or holds something else.
        PlanError: It has a keyword that does not exist.
    """
    try:
        # By keys and not as a RunRecord: records of other versions, and files that hold keywords only, are read too.
        given = _in_picture(path) or read_object(path)
        keywords = convert_json(given.get("configuration", given), dict[str, object])
        prompt = keywords.pop("prompt", [])
        keywords.pop(CHECKED, None)
        named = convert_json([prompt] if isinstance(prompt, str) else prompt, list[str])
        refuse_unknown(keywords)
        options = convert_json(keywords, Options)
        skip = keywords.get("skip_layers")
        if isinstance(skip, Mapping):  # what msgspec does not know, it passes over
            refuse_unknown(cast(Mapping[str, object], skip), SkipLayerGuidance.__annotations__)
        scheduler = keywords.get("scheduler")
        if isinstance(scheduler, Mapping):
            refuse_unknown(cast(Mapping[str, object], scheduler), SchedulerChoice.__annotations__)
        backend = convert_json(given.get("backend", {}), dict[str, object])
        return Settings(
            options=options,
            prompts=_recorded_prompts(given) or tuple(named),
            bundle=convert_json(given.get("bundle", {}), dict[str, str]),
            engine=convert_json(backend.get("backend", ""), str),
            start=convert_json(given.get("start", {}), dict[str, str]),
            lora_sha256=convert_json(given.get("lora_sha256", {}), dict[str, str]),
        )
    except NoFileError as error:
        raise PromptError(f"{path} {error}") from error
    except JsonError as error:
        raise PromptError(f"{path} holds no keywords of a run: it {error}") from error


def _in_picture(path: Path) -> dict[str, object]:
    """What a PNG picture says about itself; nothing where it is another kind of file.

    Raises:
        PromptError: It says nothing.
        JsonError: It says something else.
    """
    if path.suffix.lower() != ".png":
        return {}
    with open_picture(path) as image:
        said = image.info.get("parameters")
    if not isinstance(said, str):
        raise PromptError(f"{path} is a picture that does not say how it was painted; give a run.json")
    return decode_json(said.encode(), dict[str, object])


def _recorded_prompts(given: Mapping[str, object]) -> tuple[str, ...]:
    """All prompts of a run; of one that earlier versions recorded, those of its pictures."""
    pictures = convert_json(given.get("pictures", []), list[PictureRecord])
    painted = tuple(dict.fromkeys(picture.prompt for picture in pictures))
    return tuple(convert_json(given.get("prompts", []), list[str])) or painted
