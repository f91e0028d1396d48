"""The results of a search as they come: a file of a line for the search and one for every schedule that was tried.

A line is added when its schedule is done, so a search that was stopped goes on behind its last line.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lssgen.errors import CalibrationError
from lssgen.files import read_regular
from lssgen.jsons import MOST_BYTES, JsonError, decode_json

FORMAT = 1


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a search is of; results of another one are not mixed with its own.

    Attributes:
        format: `FORMAT`.
        manifest_sha256: Hash of the bundle's manifest.
        judge: Name of the judge.
        prompts: Prompts that every schedule paints.
        seed: Seed of the first.
        options: Words that are the same in all runs.
        axes: Words that differ.
    """

    format: int = FORMAT
    manifest_sha256: str
    judge: str
    prompts: tuple[str, ...]
    seed: int
    options: dict[str, Any]
    axes: tuple[str, ...]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that was tried.

    Attributes:
        words: Words of its runs, besides those that all have.
        quality: Numbers of the judge, picture by picture.
        seconds: Time of every picture, loading apart.
    """

    words: dict[str, Any]
    quality: tuple[float, ...]
    seconds: tuple[float, ...]


_NAMES: Mapping[str, str] = {
    "manifest_sha256": "bundle",
    "judge": "judge",
    "prompts": "set of prompts",
    "seed": "seed",
    "options": "kind of run",
    "axes": "table of axes",
}

T = TypeVar("T", bound=msgspec.Struct)


class Trials:
    """The file, read and added to.

    Args:
        path: Its place.
        about: The search. A new file gets its line.

    Attributes:
        done: Trials by the words that they said.

    Raises:
        CalibrationError: The file is damaged, or of another search.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, about: About) -> None:
        self._path = path
        self.done: dict[bytes, Trial] = {}
        if not path.exists():
            self._append(about)
            return
        whole = read_regular(path, MOST_BYTES)
        # A kill in the middle of writing leaves a line without its end.
        lines = whole[: whole.rfind(b"\n") + 1].splitlines()
        if not lines:
            raise CalibrationError(f"{path} holds no search; remove it, or choose another --output")
        self._see(self._decoded(lines[0], 1, About), about)
        for number, line in enumerate(lines[1:], start=2):
            trial = self._decoded(line, number, Trial)
            if not len(trial.quality) == len(trial.seconds) == len(about.prompts):
                raise self._damaged(number, f"has {len(trial.quality)} pictures, and not {len(about.prompts)}")
            self.done[key_of(trial.words)] = trial
        if not whole.endswith(b"\n"):
            os.truncate(path, whole.rfind(b"\n") + 1)

    def add(self, trial: Trial) -> None:
        """A line more, safe on the disk."""
        self._append(trial)
        self.done[key_of(trial.words)] = trial

    def _append(self, line: msgspec.Struct) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _see(self, was: About, now: About) -> None:
        for name in About.__struct_fields__:
            if msgspec.json.encode(getattr(was, name)) != msgspec.json.encode(getattr(now, name)):
                raise CalibrationError(
                    f"{self._path} holds results of another {_NAMES.get(name, name)}; choose another --output, or "
                    "remove it"
                )

    def _decoded(self, line: bytes, number: int, kind: type[T]) -> T:
        try:
            return decode_json(line, kind)
        except JsonError as error:
            raise self._damaged(number, str(error)) from error

    def _damaged(self, number: int, why: str) -> CalibrationError:
        return CalibrationError(f"line {number} of {self._path} is damaged: it {why}; remove that line, or the file")


def key_of(words: Mapping[str, Any]) -> bytes:
    """Words as what they are told apart by: a file knows a tuple as a list."""
    return msgspec.json.encode(dict(sorted(words.items())))
