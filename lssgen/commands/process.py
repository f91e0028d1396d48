"""A command as a process: streams that may be closed or go away, signals that ask it to stop, and its exit status.

Imports nothing that takes long, so that a signal finds somebody at home from the start.
"""

import codecs
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TextIO

TOLD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to stop. Windows has no SIGHUP."""

TOGETHER_S = 2.0
"""Seconds in which a second SIGTERM or SIGHUP is the first one again: `timeout` sends its signal to the process and to
its group, and what is being put in order must not be cut off by that."""

Handler = Callable[[int, FrameType | None], Any]


def as_process(command: str, work: Callable[[], int]) -> int:
    """Run a command as what the process is for.

    Until `work` listens itself (`stoppable`), and after it, a signal ends the process at once, with a line: while
    modules are imported there is nothing to put in order yet, and imports turn exceptions into others.

    Args:
        command: Its name, which every line begins with.
        work: Gives the exit status.

    Returns:
        The exit status. 1 if what was printed could not be written; a reader who leaves early is not a failure.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        with suppress(OSError):
            os.write(2, f"{command}: stopped\n".encode())
        # Not sys.exit, whose exception an import in progress may turn into an ImportError.
        os._exit(128 + number)

    open_streams()
    _listen(dict.fromkeys(_heard(), end))
    try:
        status = work()
    except SystemExit as stop:  # argparse has said what there is to say
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except OSError as error:  # the command could not even say what is wrong, or how it is used
        print(f"{command}: {error}", file=sys.stderr)
        status = 1
    status = _flushed(command, status)
    if _AT_ONCE:
        os._exit(status)
    return status


_AT_ONCE: list[bool] = []
"""Not empty where the process must not end in an orderly way."""


def end_at_once() -> None:
    """Let the process end as soon as its command has: some library's threads go on, and would abort an orderly end."""
    _AT_ONCE.append(True)


@contextmanager
def stoppable() -> Generator[list[int]]:
    """Signals that ask to stop raise KeyboardInterrupt within it; gives the list that the numbers are put into.

    A library may turn that exception into another one, or lose it: whatever is raised after a signal is its doing.
    A signal that the process ignores, as SIGHUP under nohup or Ctrl-C in a background job, stays ignored.
    """
    told: list[int] = []
    last = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        del frame
        before, last = last, time.monotonic()
        if told and number != signal.SIGINT and last - before < TOGETHER_S:
            return
        again = bool(told)
        told.append(number)
        if _HELD and not again:
            _HELD[-1] = True
            return
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen to signals
        yield told
        return
    before = _listen(dict.fromkeys(_heard(), stop))
    try:
        yield told
    finally:
        _listen(before)


_HELD: list[bool] = []
"""An entry for every block of `undisturbed` that runs, which becomes True when a signal came meanwhile."""


@contextmanager
def undisturbed() -> Generator[None]:
    """What belongs together, and is done in no time: a signal is heeded when the block ends. A second one is at once.

    Raises:
        KeyboardInterrupt: A signal came meanwhile.
    """
    _HELD.append(False)
    try:
        yield
    finally:
        came = _HELD.pop()
    if came:
        raise KeyboardInterrupt


def open_streams() -> None:
    """Open the standard streams that are closed, and let readers leave.

    A closed one would give its number to the next file that is opened, a picture perhaps, and whatever is printed goes
    there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BytesIO())
    codecs.register_error("lssgen", _as_it_came)
    sys.stdout = _patient(1, sys.stdout, "lssgen", (BrokenPipeError,))
    # Nobody can be told that nobody can be told: the status alone says how it went.
    sys.stderr = _patient(2, sys.stderr, "backslashreplace", (OSError,))


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    """Names of files may be bytes that are not text, which come out as they came in; other letters are spelt."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


class _Patient(io.FileIO):
    """A stream that may go away: what cannot be written for one of these reasons is dropped."""

    def __init__(self, number: int, reasons: tuple[type[OSError], ...]) -> None:
        # The number is everybody's, libraries' too, and outlives this object.
        super().__init__(number, "w", closefd=False)
        self._reasons = reasons

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except self._reasons:
            return memoryview(data).nbytes


def _patient(number: int, stream: TextIO | None, errors: str, reasons: tuple[type[OSError], ...]) -> TextIO:
    raw = _Patient(number, reasons)
    encoding = stream.encoding if stream is not None else "utf-8"
    lines = number == 2 or raw.isatty()
    # As Python opens them: output into a file in blocks, to a terminal in lines, errors at once.
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=lines, write_through=number == 2)


def _flushed(command: str, status: int) -> int:
    """Write what is still to be written; the exit status, which is 1 where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if status == 0:
            print(f"{command}: what was printed cannot be written: {error.strerror}", file=sys.stderr)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)  # what is left goes there when the interpreter ends, and not into a second message
        os.close(nowhere)
        return status or 1
    return status


def _heard() -> list[int]:
    return [number for number in TOLD if signal.getsignal(number) is not signal.SIG_IGN]


def _listen(handlers: Mapping[int, Any]) -> dict[int, Any]:
    """Set handlers; returns those that were there."""
    return {number: signal.signal(number, handler) for number, handler in handlers.items()}
