"""Killed at any moment and run again, a training ends with the same files, bit for bit."""

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from lssgen.training.config import TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.state import STATE_FILE, read_state

KILLS = 25
"""At most, for each of the two ways to have pairs; a training that ends before its moment has come is done."""


def _train(job: TrainJob, home: Path) -> None:
    os.environ["LSSGEN_HOME"] = str(home)
    tqdm.set_lock(threading.RLock())  # its own one would be a semaphore that a killed process leaves behind
    train_upsampler(job, [].append)


class Runner:
    """Starts trainings in processes of their own, which a server with torch in its memory forks: that takes no time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["lssgen.training.job"])

    def start(self, job: TrainJob) -> BaseProcess:
        process = self.processes.Process(target=_train, args=(job, self.home))
        process.start()
        return process

    def whole(self, job: TrainJob) -> float:
        """Run to the end; seconds that it took."""
        begun = time.monotonic()
        process = self.start(job)
        process.join(120)
        assert process.exitcode == 0
        return time.monotonic() - begun

    def killed(self, job: TrainJob, seconds: float) -> bool:
        """Run for so many seconds; whether there was anything left to kill."""
        process = self.start(job)
        process.join(seconds)
        there = process.exitcode is None
        process.kill()
        process.join()
        return there


def phase(output: Path) -> str:
    """How far a training got, from what it left."""
    if (output / "report.json").exists():
        return "after the last step"
    if (output / "state.bin").exists():
        return "training"
    return "encoding" if (output / "cache").exists() else "starting"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("lock") and path.name != STATE_FILE
    }


def weights(output: Path) -> dict[str, torch.Tensor]:
    """What the state holds of them; its bytes depend on which parts of it were the same object."""
    state = read_state(output / STATE_FILE, torch.device("cpu"))
    assert state is not None
    return {f"{part} {key}": value for part in ("model", "average") for key, value in state[part].items()}


@pytest.mark.slow
@pytest.mark.parametrize("cached_pairs", [300, 0], ids=["cached pairs", "fresh pairs"])
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_files(
    job: TrainJob, tmp_path: Path, cached_pairs: int
) -> None:
    config = replace(job.config, cached_pairs=cached_pairs, steps=80, batch=4)
    calm = replace(job, config=config, threads=1, save_every=5, output=tmp_path / "calm/out")
    hunted = replace(calm, output=tmp_path / "hunted/out")
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    undisturbed, chased = Runner(tmp_path / "calm/home"), Runner(tmp_path / "hunted/home")
    undisturbed.whole(calm)  # starts the server
    again = undisturbed.whole(calm)  # only loads, validates and installs
    (calm.output / "state.bin").unlink()
    trained = undisturbed.whole(calm)
    counts: Counter[str] = Counter()
    for _ in range(KILLS):
        if not chased.killed(hunted, moments.uniform(0, again + (trained - again) / 10)):
            break
        counts[phase(hunted.output)] += 1
    chased.whole(hunted)
    print(f"\nkilled {counts.total()} times (seed {seed}): {dict(counts)}")
    assert counts
    assert contents(hunted.output) == contents(calm.output)
    ours, theirs = weights(hunted.output), weights(calm.output)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert contents(chased.home) == contents(undisturbed.home)
