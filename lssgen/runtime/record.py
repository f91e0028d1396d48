"""run.json: everything about a run that another run, or a benchmark, may want to know."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import cast

import msgspec

from lssgen.bundle import MANIFEST, sha256_of
from lssgen.errors import PromptError
from lssgen.plan import Plan, SkipLayerGuidance
from lssgen.runtime.options import Options, Request, options_from_request, refuse_unknown
from lssgen.runtime.pictures import write_file
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.results import BatchTimes, Picture

RECORD = "run.json"


class PictureRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was written."""

    file: str
    prompt: str
    seed: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run on disk.

    Attributes:
        lssgen: Version that ran.
        written: When, in UTC.
        finished: False if the run was stopped before its end.
        configuration: Every choice, in the words of `Options`; `--config` takes it again.
        bundle: Folder, and sha256 of the manifest, which holds the hashes of the graphs.
        backend: What the backend says about itself.
        plan: Stages and steps.
        start: sha256 of the picture that the run starts from and of its mask, by file name.
        pictures: Those that were written.
        times: Seconds, batch by batch.
    """

    lssgen: str
    written: str
    finished: bool
    configuration: Mapping[str, object]
    bundle: Mapping[str, str]
    backend: Mapping[str, object]
    plan: Plan
    start: Mapping[str, str] = {}
    pictures: Sequence[PictureRecord] = ()
    times: Sequence[BatchTimes] = ()


def record_of(
    pipeline: Pipeline,
    request: Request,
    *,
    finished: bool,
    start: Mapping[str, str] = MappingProxyType({}),
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
        bundle={"folder": str(folder.resolve()), "manifest_sha256": sha256_of(folder / MANIFEST)},
        backend=pipeline.backend.describe(),
        plan=request.plan,
        start=dict(start),
        pictures=pictures,
        times=times,
    )


def parameters_of(picture: Picture, request: Request) -> dict[str, object]:
    """What a picture says about itself: its prompt and seed, and every choice of the run."""
    choices = msgspec.to_builtins(options_from_request(request))
    return {"prompt": picture.prompt, **choices, "seed": picture.seed, "num_images": 1}


def write_record(record: RunRecord, path: Path) -> None:
    """Write it, indented, in one rename.

    Raises:
        PromptError: The file cannot be written.
    """
    write_file(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_record(path: Path) -> RunRecord:
    """Read a run.json.

    Raises:
        PromptError: It cannot be read, or is no record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise PromptError(f"{path} is no record of a run: {error}") from error


def options_from_file(path: Path) -> tuple[Options, tuple[str, ...]]:
    """Options, and prompts if it names any, from a run.json or from a JSON object with keywords of a run.

    Raises:
        PromptError: It cannot be read, or holds something else.
        PlanError: It has a keyword that does not exist.
    """
    try:
        given = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        prompts = tuple(
            dict.fromkeys(picture.prompt for picture in msgspec.convert(given.get("pictures", []), list[PictureRecord]))
        )
        keywords = msgspec.convert(given.get("configuration", given), dict[str, object])
        refuse_unknown(keywords)
        options = msgspec.convert(keywords, type=Options)
        skip = keywords.get("skip_layers")
        if isinstance(skip, Mapping):  # what msgspec does not know, it passes over
            refuse_unknown(cast(Mapping[str, object], skip), SkipLayerGuidance.__annotations__)
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise PromptError(f"{path} holds no keywords of a run: {error}") from error
    return options, prompts
