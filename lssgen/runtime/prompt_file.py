"""Prompt files in GenEval's form, painted into GenEval's folder layout.

    FILE.jsonl                    one JSON object a line; "prompt" is read, the rest is copied
    DIR/run.json                  the settings that all folders share
    DIR/00000/metadata.jsonl      line 0 of the file
    DIR/00000/samples/0000.png    its pictures; picture i of every prompt is painted with seed + i
    DIR/00000/result.json         time in seconds without loading, number of pictures, batch size, size and hash of
                                  every picture; written last
    DIR/.lock                     held by the run that writes there

A folder with a result, and with the pictures that the result tells of, is complete. A run that is started again paints
the others.

Source: the layout that GenEval (Ghosh et al. 2023, arXiv:2310.11513) evaluates.
"""

import codecs
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from lssgen.bundle import sha256_of
from lssgen.durable import clear_folder
from lssgen.errors import PlanError, PromptError
from lssgen.jsons import JsonError, NoFileError, convert_json, decode_json, read_bytes, read_json, read_object
from lssgen.runtime.options import Asked, request_from_options
from lssgen.runtime.pictures import LOCK, locked_folder, write_file, write_picture
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.record import RECORD, RunRecord, parameters_of, read_record, record_of, write_record
from lssgen.runtime.results import BatchTimes, OnProgress, Result
from lssgen.runtime.text import see_prompt

RESULT, METADATA, SAMPLES = "result.json", "metadata.jsonl", "samples"


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of a prompt file: its number, counted from 0, its prompt and the whole object."""

    number: int
    prompt: str
    metadata: Mapping[str, object]

    @property
    def folder(self) -> str:
        return f"{self.number:05d}"


def read_prompt_file(
    path: Path, *, bad_lines: Literal["stop", "skip"] = "stop"
) -> tuple[tuple[PromptLine, ...], tuple[str, ...]]:
    """Read a prompt file.

    Args:
        path: One JSON object with a "prompt" a line; empty lines are left out.
        bad_lines: What to do about lines that are something else. A skipped line keeps its number.

    Returns:
        The lines, and what was wrong with those that were skipped.

    Raises:
        PromptError: The file cannot be read, has no prompts, or has a bad line that is not to be skipped.
    """
    try:
        data = read_bytes(path)
    except NoFileError as error:
        raise PromptError(f"prompt file {path} {error}") from error
    lines: list[PromptLine] = []
    wrong: list[str] = []
    # Not splitlines, which also cuts text at U+2028 and U+0085: plain characters within a JSON string.
    for number, line in enumerate(data.split(b"\n")):
        if not line.strip() or line == codecs.BOM_UTF8:
            continue
        try:
            lines.append(_line(number, line))
        except (JsonError, PromptError) as error:
            reason = str(error)
            wrong.append(
                f'line {number + 1} of {path} is not a JSON object such as {{"prompt": "a red circle"}}: {reason}'
            )
            if bad_lines == "stop":
                raise PromptError(f"{wrong[-1]}; correct it, or skip such lines") from error
    if not lines:
        raise PromptError(f"prompt file {path} holds no prompts")
    return tuple(lines), tuple(wrong)


def _line(number: int, line: bytes) -> PromptLine:
    metadata = decode_json(line, dict[str, object])
    if "prompt" not in metadata:
        raise JsonError('it has no "prompt"')
    prompt = convert_json(metadata["prompt"], str)
    see_prompt(prompt)
    return PromptLine(number, prompt, metadata)


class SampleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A picture that was written.

    Attributes:
        file: Path below the prompt's folder.
        bytes, sha256: Size and hash of the file.
    """

    file: str
    bytes: int
    sha256: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """result.json: a prompt's folder is complete.

    Attributes:
        time: Seconds for all of its pictures, without loading.
        n_sample: Number of pictures.
        batch_size: Pictures at a time.
        batches: Times, batch by batch.
        samples: Its pictures.
    """

    time: float
    n_sample: int
    batch_size: int
    batches: tuple[BatchTimes, ...]
    samples: tuple[SampleRecord, ...]


class PromptFolders:
    """The folders of a prompt file; a context manager, which holds the lock of the folder around them.

    Args:
        pipeline: Paints.
        folder: Where the folders are, or will be.
        asked: The same for every prompt.
        suffix: File format of the pictures, such as ".png".

    Attributes:
        options: Options of every run, whatever is measured meanwhile.

    Raises:
        PlanError: The folder holds pictures that were made with other settings, which the message names.
        PromptError: It holds something else, cannot be written, or another run writes into it.
    """

    def __init__(self, pipeline: Pipeline, folder: Path, asked: Asked, suffix: str) -> None:
        self._pipeline = pipeline
        self._folder = folder
        # Now, and not by every run: what the record says is what is painted, whatever is measured meanwhile.
        self.options = pipeline.advised(asked)
        self._suffix = suffix
        self._request = request_from_options(pipeline.bundle, self.options)
        self._lock = locked_folder(folder)

    def __enter__(self) -> "PromptFolders":
        """See that the settings are those of earlier runs into the folder, and note them there."""
        self._lock.__enter__()
        try:
            self._begin()
        # Ctrl-C too: nobody calls __exit__ where __enter__ has raised, and the lock would stay.
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Note that every folder is complete, if nothing was raised."""
        try:
            if kind is None:
                self._note(finished=True)
        finally:
            self._lock.__exit__(kind, error, at)

    def missing(self, lines: Sequence[PromptLine]) -> list[PromptLine]:
        """The lines whose folders are not complete.

        Raises:
            PromptError: A complete folder belongs to another prompt.
        """
        return [line for line in lines if not self._complete(line)]

    @property
    def steps_each(self) -> int:
        """Engine calls for one prompt."""
        return -(-self._request.num_images // self._request.batch) * self._request.plan.evaluations

    def paint(self, lines: Sequence[PromptLine], on_step: OnProgress) -> Iterator[tuple[PromptLine, Result]]:
        """Paint each line's pictures and write its folder.

        Raises:
            LssgenError: As `Pipeline.paint`; folders that are done stay.
        """
        for line in lines:
            place = self._folder / line.folder
            for folder in (place, place / SAMPLES):
                clear_folder(folder)
            # Before anything else changes: a folder with a result counts as complete.
            (place / RESULT).unlink(missing_ok=True)
            write_file(place / METADATA, json.dumps(line.metadata).encode() + b"\n")
            results: list[Result] = []
            samples: list[SampleRecord] = []
            for result in self._pipeline.paint(line.prompt, on_step=on_step, **self.options):
                for picture in result.pictures:
                    path = place / self._sample(len(samples))
                    write_picture(picture.image, path, parameters_of(picture, result.request))
                    samples.append(_sample_record(path, place))
                results.append(result)
            whole = Result.joined(results)
            outcome = Outcome(
                # Without loading, which only the first prompt pays: the times of prompts are there to be compared.
                time=sum(times.total - times.load for times in whole.times),
                n_sample=len(samples),
                batch_size=self._request.batch,
                batches=whole.times,
                samples=tuple(samples),
            )
            write_file(place / RESULT, msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
            yield line, whole

    def _begin(self) -> None:
        path = self._folder / RECORD
        if path.exists():
            _refuse_other_settings(self._folder, read_record(path), self._record(finished=False))
        elif any(entry.name != LOCK for entry in self._folder.iterdir()):
            raise PromptError(f"{self._folder} holds files, but no {RECORD}; choose a new or empty folder")
        self._note(finished=False)

    def _note(self, *, finished: bool) -> None:
        write_record(self._record(finished=finished), self._folder / RECORD)

    def _record(self, *, finished: bool) -> RunRecord:
        return record_of(self._pipeline, self._request, finished=finished, suffix=self._suffix)

    def _complete(self, line: PromptLine) -> bool:
        """Whether the folder has its result, and every picture that the result tells of is what was written."""
        place = self._folder / line.folder
        try:
            outcome = read_json(place / RESULT, Outcome)
        except JsonError:  # no result, half of one, or one without hashes: painted again
            return False
        self._refuse_another_prompt(place, line)
        wanted = {self._sample(index) for index in range(self._request.num_images)}
        return {sample.file for sample in outcome.samples} == wanted and all(
            _unchanged(place, sample) for sample in outcome.samples
        )

    def _refuse_another_prompt(self, place: Path, line: PromptLine) -> None:
        try:
            made_from = read_object(place / METADATA)
        except JsonError as error:
            raise PromptError(f"{place / METADATA} {error}; remove {place} to paint it again") from error
        if made_from != line.metadata:
            raise PromptError(
                f"{place} was made from {made_from}, but line {line.number + 1} of the prompt file is now "
                f"{dict(line.metadata)}; choose another folder, or remove this one"
            )

    def _sample(self, index: int) -> str:
        return f"{SAMPLES}/{index:04d}{self._suffix}"


def _sample_record(path: Path, place: Path) -> SampleRecord:
    return SampleRecord(file=path.relative_to(place).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


def _unchanged(place: Path, sample: SampleRecord) -> bool:
    path = place / sample.file
    return path.is_file() and path.stat().st_size == sample.bytes and sha256_of(path) == sample.sha256


def _refuse_other_settings(folder: Path, before: RunRecord, now: RunRecord) -> None:
    def settings(record: RunRecord) -> dict[str, object]:
        # By hash and not by folder, since a bundle may have been moved; another engine's pictures differ in their last
        # bits.
        bundle, engine = record.bundle.get("manifest_sha256"), record.backend.get("backend")
        return {**record.configuration, "bundle": bundle, "engine": engine, "format": record.suffix}

    # Through JSON and back, as the recorded ones went: a tuple would differ from the list that it was written as.
    old, new = settings(before), msgspec.json.decode(msgspec.json.encode(settings(now)))
    differing = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in new if old.get(name) != new[name]]
    if differing:
        raise PlanError(
            f"{folder} holds pictures made with other settings: {'; '.join(differing)}; choose another folder, or "
            "give the same settings to go on there"
        )
