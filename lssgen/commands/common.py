"""What the commands share: one way to end, whatever happens, and one way to say what takes long or memory."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from lssgen.commands.process import stoppable
from lssgen.errors import LssgenError

STOPPED = 130
"""Exit status after a KeyboardInterrupt that no signal made."""

REMEMBERED = 10_000
"""Number of different warnings that are not said twice."""


def run(command: str, work: Callable[[], None], *, quiet: bool = False) -> int:
    """Do the work; turn an expected failure, or being told to stop, into one line and an exit status.

    Args:
        command: Its name, which every line begins with.
        work: What the command does.
        quiet: Say only what went wrong.

    Returns:
        0, or 1 after an `LssgenError` or where the machine has no room left, or as shells expect it after a signal: 130
        for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    with stoppable() as told:
        try:
            with _heard(command, logging.WARNING if quiet else logging.INFO):
                work()
        except Exception as error:
            if told:  # the signal's exception, as some library turned it into another one
                return _stopped(command, told)
            # A mistake of ours keeps its traceback, which a report of it needs.
            if (line := _line(error)) is None:
                raise
            print(f"{command}: {line}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return _stopped(command, told)
    return 0


@contextmanager
def warnings_as_lines(once: type[Warning] | None = None) -> Generator[None]:
    """Within it, a warning is a line of the command, once: a search paints the same prompts again and again.

    Args:
        once: Kind of warning of which only the first is told, whatever the others say.
    """
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        text = str(message)
        what = str(category) if category is once else text
        if what not in said:
            logging.getLogger("lssgen").warning("%s", text)
        if len(said) < REMEMBERED:
            said.add(what)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _line(error: Exception) -> str | None:
    """What is to be said of a failure; None of a mistake of ours."""
    match error:
        case LssgenError():
            return f"{type(error).__name__}: {error}"
        case OSError():  # a disk that is full, a name that is too long: the system's words are enough
            # Not str, which begins with a number and spells two names with an arrow.
            said = error.strerror or str(error)
            return f"{os.fspath(error.filename)!s}: {said}" if error.filename is not None else said
        case MemoryError():
            reason = str(error) or "the system gave none"
            return f"not enough memory ({reason}); ask for smaller pictures, or fewer at a time"
        case _:
            return None


def _stopped(command: str, told: Sequence[int]) -> int:
    print(f"{command}: stopped", file=sys.stderr)
    return 128 + told[0] if told else STOPPED


class _Lines(logging.Handler):
    """What the library logs, as lines of the command, above a progress bar if there is one."""

    def __init__(self, command: str) -> None:
        super().__init__()
        self._command = command

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(f"{self._command}: {mark}{record.getMessage()}", file=sys.stderr)


@contextmanager
def _heard(command: str, level: int) -> Generator[None]:
    logger, lines = logging.getLogger("lssgen"), _Lines(command)
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)
