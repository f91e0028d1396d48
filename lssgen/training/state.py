"""What a training remembers on disk: its state, with the hash of what was written, and a line of log for every step."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch

from lssgen.durable import write_whole
from lssgen.errors import TrainingError
from lssgen.files import open_regular
from lssgen.progress import Say
from lssgen.training.machine import first_line
from lssgen.training.sealed import read_sealed, write_sealed

STATE_FILE, LOG_FILE = "state.bin", "log.jsonl"
KIND = "training state, layout 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step's number, from 1, and its losses before weighting."""

    step: int
    latent: float
    image: float


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    buffer = BytesIO()  # torch passes on a full disk as errors of its own
    torch.save(state, buffer)
    write_sealed(path, KIND, buffer.getbuffer())


def read_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state that was written there, or None where there is none.

    Raises:
        TrainingError: It is damaged, or was written by another version.
    """
    try:
        content = read_sealed(path, KIND)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error}; delete it to start again") from error
    if content is None:
        raise TrainingError(f"{path} is damaged: it is not what was written there; delete it to start again")
    try:
        state: object = torch.load(BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # its hash fits, so another version of torch wrote it; each has errors of its own
        raise unusable(path, error) from error
    if not isinstance(state, dict):
        raise unusable(path, TypeError(f"it holds a {type(state).__name__}"))
    return cast(dict[str, Any], state)


def unusable(path: Path, error: Exception) -> TrainingError:
    """What to raise where a state is whole, but not one of ours."""
    return TrainingError(
        f"{path} was written by another version of lssgen or torch ({first_line(error)}); delete it to start again"
    )


class Log:
    """A line of JSON for every step. Nothing is computed from it; what is damaged in it is left out, and said."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_FILE
        self._file = self.path.open("ab")

    def write(self, progress: Progress, learning_rate: float) -> None:
        """Raises OSError where the disk is full."""
        self._file.write((json.dumps(asdict(progress) | {"lr": learning_rate}) + "\n").encode())

    def flush(self) -> None:
        """Let the disk have the lines, before a state speaks of their steps."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # a full disk; these are lines of steps that no state knows
            self._file.close()


def forget_steps_after(step: int, folder: Path, say: Say) -> None:
    """Take the lines of later steps, whose state was never saved, out of the log; and lines that are none.

    Raises:
        OSError: The log cannot be read or written.
    """
    path = folder / LOG_FILE
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        lines = []
    kept: dict[int, bytes] = {}
    for line in lines:
        number = _step_of(line)
        if 0 < number <= step:
            # The first of several: a step that was made again after a kill is the same step.
            kept.setdefault(number, line)
    if len(kept) < step:
        say(
            f"{path} lacks {step - len(kept)} of {step} lines, or they are damaged; the training itself is not affected"
        )
    write_whole(path, b"".join(kept[number] + b"\n" for number in sorted(kept)))


def _step_of(line: bytes) -> int:
    """Number of the step that a line of the log is about; 0 where it is not such a line."""
    try:
        record: object = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return 0
    number = cast(dict[str, object], record).get("step") if isinstance(record, dict) else 0
    return number if isinstance(number, int) else 0
