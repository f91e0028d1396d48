"""What the commands share: one way to end, whatever happens, and one way to say what takes long or memory."""

import argparse
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

from lssgen.errors import LssgenError


def run(command: str, work: Callable[[], None], *, quiet: bool = False) -> int:
    """Do the work; turn an expected failure into one line and an exit status.

    Args:
        command: Its name, which every line begins with.
        work: What the command does.
        quiet: Say only what went wrong.

    Returns:
        0, or 1 after an `LssgenError` or where the machine has no room left, or 130 after Ctrl-C, as shells expect.
    """
    try:
        with _heard(command, logging.WARNING if quiet else logging.INFO):
            work()
    except LssgenError as error:
        print(f"{command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a disk that is full, a name that is too long: the system's words are enough
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        reason = str(error) or "the system gave none"
        print(f"{command}: not enough memory ({reason}); ask for smaller pictures, or fewer at a time", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: stopped", file=sys.stderr)
        return 130
    return 0


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


def whole(text: str) -> int:
    """A number of 0 or more, for argparse."""
    if not text.strip().isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 or more")
    return int(text)
