"""Being told to stop: by Ctrl-C, by whoever ends the process (SIGTERM), or by a terminal that closes (SIGHUP)."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

TOLD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to stop. Windows has no SIGHUP."""

TOGETHER_S = 2.0
"""Seconds in which a second SIGTERM or SIGHUP is the first one again: `timeout` sends it to a process and its group."""


@contextmanager
def interruptible() -> Generator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt within it, as Ctrl-C does, where they would end the process."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with _handled([number for number in TOLD if signal.getsignal(number) is signal.SIG_DFL], interrupt):
        yield


@contextmanager
def stop_signals(clock: Callable[[], float] = time.monotonic) -> Generator[list[int]]:
    """A list that fills at the first signal, so that no step is cut in two; a second one acts at once.

    A signal that the process ignores, as SIGHUP under nohup or Ctrl-C in a background job, stays ignored.
    """
    stop: list[int] = []
    before = {int(number): signal.getsignal(number) for number in TOLD}
    last = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal last
        earlier, last = last, clock()
        if not stop:
            stop.append(number)
        elif number == signal.SIGINT or last - earlier > TOGETHER_S:
            _act(before[number], number, frame)

    with _handled([number for number in TOLD if before[number] is not signal.SIG_IGN], ask):
        yield stop


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen to signals
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def stop_as_told(number: int) -> NoReturn:
    """Do what the process does at this signal, now that all is saved. Where nothing else listens, KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: Unless the handler raises something else.
    """
    _act(signal.getsignal(number), number, None)


def _act(
    handler: Callable[[int, FrameType | None], Any] | int | None, number: int, frame: FrameType | None
) -> NoReturn:
    if callable(handler):
        handler(number, frame)
    raise KeyboardInterrupt
