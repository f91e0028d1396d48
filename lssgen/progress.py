"""How far something long is: a line now and then, with the time that is left, for whoever sees no bar."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Event, Thread

Say = Callable[[str], object]
"""Function that is given what the user should know, a sentence at a time."""

EVERY_S = 30.0
"""Seconds between two lines."""


class Follower:
    """Says where something is, as often as it should, however rarely it hears of it.

    Args:
        say: Hears the lines.
        clock: Seconds, from anywhere.
    """

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._begun = clock()
        self._first: float | None = None
        self._share = 0.0
        self._where = ""

    def at(self, share: float, where: str) -> None:
        """Hear where it is: the share of the work that is done, in [0, 1], and in words.

        What was done when this is first called is not counted into the speed: it may be from an earlier run. A share
        that falls is that of the next work.
        """
        if self._first is None or share < self._share:
            self._first, self._begun = share, self._clock()
        self._share, self._where = share, where

    def tell(self) -> None:
        """Say a line; none as long as nothing was heard."""
        if self._first is None:
            return
        seconds, done = self._clock() - self._begun, self._share - self._first
        times = f"{duration(seconds)} so far"
        if done > 0:
            times += f", about {duration(seconds / done * (1 - self._share))} left"
        self._say(f"{self._where}: {times}")


@contextmanager
def followed(say: Say, *, every: float = EVERY_S) -> Generator[Follower]:
    """A follower that tells every so many seconds, from a thread of its own, while the block lasts."""
    follower, over = Follower(say), Event()

    def watch() -> None:
        while not over.wait(every):
            follower.tell()

    # A daemon: a program that ends in the middle of a block need not wait for the next line.
    thread = Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield follower
    finally:
        over.set()
        thread.join()


def duration(seconds: float) -> str:
    """A time for people, rounded up."""
    if seconds <= 90:
        return f"{-(-seconds // 1):.0f} s"
    minutes = -(-seconds // 60)
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
