"""Prompt files in GenEval's form, painted into GenEval's folder layout.

    FILE.jsonl                    one JSON object a line; "prompt" is read, the rest is copied
    DIR/run.json                  the settings that all folders share
    DIR/00000/metadata.jsonl      line 0 of the file
    DIR/00000/samples/0000.png    its pictures; picture i of every prompt is painted with seed + i
    DIR/00000/result.json         time in seconds without loading, number of pictures, batch size; written last

A folder with a result is complete. A run that is started again paints the incomplete ones.

Source: the layout that GenEval (Ghosh et al. 2023, arXiv:2310.11513) evaluates.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lssgen.errors import PlanError, PromptError
from lssgen.runtime.options import Options, request_from_options
from lssgen.runtime.pictures import write_file, write_picture
from lssgen.runtime.pipeline import Pipeline
from lssgen.runtime.record import RECORD, RunRecord, parameters_of, read_record, record_of, write_record
from lssgen.runtime.results import OnProgress, Result

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
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt file {path} cannot be read: {error}") from error
    lines: list[PromptLine] = []
    wrong: list[str] = []
    for number, line in enumerate(text.split("\n")):  # not splitlines: JSON text may hold U+2028 and its like
        if not line.strip():
            continue
        try:
            metadata = msgspec.json.decode(line, type=dict[str, object])
            lines.append(PromptLine(number, msgspec.convert(metadata["prompt"], str), metadata))
        except (msgspec.MsgspecError, KeyError) as error:
            reason = 'it has no "prompt"' if isinstance(error, KeyError) else str(error)
            wrong.append(
                f'line {number + 1} of {path} is not a JSON object such as {{"prompt": "a red circle"}}: {reason}'
            )
            if bad_lines == "stop":
                raise PromptError(f"{wrong[-1]}; correct it, or skip such lines") from error
    if not lines:
        raise PromptError(f"prompt file {path} holds no prompts")
    return tuple(lines), tuple(wrong)


class PromptFolders:
    """The folders of a prompt file.

    Args:
        pipeline: Paints.
        folder: Where the folders are, or will be.
        options: The same for every prompt.
        suffix: File format of the pictures, such as ".png".

    Raises:
        PlanError: The folder holds pictures that were made with other settings, which the message names.
        PromptError: It holds something else, or cannot be written.
    """

    def __init__(self, pipeline: Pipeline, folder: Path, options: Options, suffix: str) -> None:
        self._pipeline = pipeline
        self._folder = folder
        self._options = options
        self._suffix = suffix
        self._request = request_from_options(pipeline.bundle, options)

    def begin(self) -> None:
        """See that the settings are those of earlier runs into the folder, and note them there."""
        record = record_of(self._pipeline, self._request, finished=False)
        path = self._folder / RECORD
        if path.exists():
            _refuse_other_settings(self._folder, read_record(path), record)
        elif self._folder.is_dir() and any(self._folder.iterdir()):
            raise PromptError(f"{self._folder} holds files, but no {RECORD}; choose a new or empty folder")
        write_record(record, path)

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
            (place / RESULT).unlink(missing_ok=True)
            write_file(place / METADATA, json.dumps(line.metadata).encode() + b"\n")
            results: list[Result] = []
            count = 0
            for result in self._pipeline.paint(line.prompt, on_step=on_step, **self._options):
                for picture in result.pictures:
                    write_picture(picture.image, self._sample(line, count), parameters_of(picture, result.request))
                    count += 1
                results.append(result)
            whole = Result.joined(results)
            outcome = {
                "time": sum(times.total - times.load for times in whole.times),
                "n_sample": len(whole.pictures),
                "batch_size": self._request.batch,
                "batches": whole.times,
            }
            write_file(place / RESULT, msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
            yield line, whole

    def end(self) -> None:
        """Note that every folder is complete."""
        write_record(record_of(self._pipeline, self._request, finished=True), self._folder / RECORD)

    def _complete(self, line: PromptLine) -> bool:
        place = self._folder / line.folder
        if not (place / RESULT).exists():
            return False
        try:
            made_from = json.loads((place / METADATA).read_bytes())
        except (OSError, ValueError) as error:
            raise PromptError(
                f"{place / METADATA} cannot be read: {error}; remove {place} to paint it again"
            ) from error
        if made_from != line.metadata:
            raise PromptError(
                f"{place} was made from {made_from}, but line {line.number + 1} of the prompt file is now "
                f"{dict(line.metadata)}; choose another folder, or remove this one"
            )
        return all(self._sample(line, index).exists() for index in range(self._request.num_images))

    def _sample(self, line: PromptLine, index: int) -> Path:
        return self._folder / line.folder / SAMPLES / f"{index:04d}{self._suffix}"


def _refuse_other_settings(folder: Path, before: RunRecord, now: RunRecord) -> None:
    def settings(record: RunRecord) -> dict[str, object]:
        bundle, engine = record.bundle.get("manifest_sha256"), record.backend.get("backend")
        return {**record.configuration, "bundle": bundle, "engine": engine}

    old, new = settings(before), msgspec.json.decode(msgspec.json.encode(settings(now)))
    differing = [f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in new if old.get(name) != new[name]]
    if differing:
        raise PlanError(
            f"{folder} holds pictures made with other settings: {'; '.join(differing)}; choose another folder, or "
            "give the same settings to go on there"
        )
