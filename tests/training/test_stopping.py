"""Told to stop, a training saves its state and says how to go on; signals that are ignored stay ignored."""

import os
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from lssgen.training import cache
from lssgen.training import job as job_module
from lssgen.training.config import TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.stopping import TOLD, interruptible, stop_as_told, stop_signals

QUIET = [].append


@pytest.fixture(autouse=True)
def handlers() -> Generator[None]:
    """The handlers of this process, as they are for a program that sets none, and back again."""
    before = {number: signal.getsignal(number) for number in TOLD}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def tell(number: int) -> None:
    os.kill(os.getpid(), number)


def stopping(number: int, at: int) -> Callable[[str], None]:
    """What is called for every sentence; asks the process to stop when a step's line comes."""

    def say(sentence: str) -> None:
        if f"training: step {at} of" in sentence:
            tell(number)

    return say


@pytest.mark.usefixtures("every_line")
@pytest.mark.parametrize("number", TOLD)
def test_a_training_that_is_told_to_stop_says_how_to_go_on(job: TrainJob, number: int) -> None:
    said: list[str] = []
    ask = stopping(number, 3)
    with pytest.raises(KeyboardInterrupt):
        train_upsampler(replace(job, save_every=100), lambda sentence: (said.append(sentence), ask(sentence))[0])
    assert said[-1] == "stopped: step 3 of 6 is saved; run the same command again to go on from there"
    said.clear()
    train_upsampler(job, said.append)
    assert "going on after step 3 of 6" in said


def test_told_while_pictures_are_encoded_it_keeps_what_is_encoded(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job, config=replace(job.config, cached_pairs=70, batch=12))
    real = cache._write
    written: list[str] = []

    def write(path: Any, shard: Any) -> None:
        real(path, shard)
        written.append(path.name)
        if len(written) == 2:
            tell(signal.SIGTERM)

    monkeypatch.setattr(cache, "_write", write)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train_upsampler(job, said.append)
    assert said[-1] == "stopped: no step is saved yet; run the same command again to go on from there"
    train_upsampler(job, QUIET)
    assert len(written) == 3


def ask_twice(number: int, seconds: float) -> list[int]:
    """Ask to stop, and again so many seconds later; the list after both, if there is an after."""
    now = 100.0
    with interruptible(), stop_signals(lambda: now) as stop:
        tell(number)
        assert stop == [number]
        now += seconds
        tell(number)
        return stop


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 3.0), (signal.SIGHUP, 3.0)])
def test_a_second_signal_acts_at_once(number: int, seconds: float) -> None:
    with pytest.raises(KeyboardInterrupt):
        ask_twice(number, seconds)


def test_the_second_half_of_one_request_is_not_a_second_one() -> None:
    assert ask_twice(signal.SIGTERM, 0.5) == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible(), stop_signals() as stop:
        tell(signal.SIGHUP)
    assert not stop


def test_whoever_listened_before_hears_of_it_in_the_end() -> None:
    heard: list[int] = []

    def listen(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        heard.append(number)

    signal.signal(signal.SIGTERM, listen)
    with pytest.raises(KeyboardInterrupt), interruptible():
        stop_as_told(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is listen


def test_the_job_listens_only_while_it_works(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "shortcoming", lambda _: "")
    before = [signal.getsignal(number) for number in TOLD]
    train_upsampler(job, QUIET)
    assert [signal.getsignal(number) for number in TOLD] == before
