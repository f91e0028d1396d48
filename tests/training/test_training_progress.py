"""What takes long says how far it is: on a terminal with a bar, else with a line now and then."""

from dataclasses import replace

import pytest

from lssgen.training.config import TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.progress import followed


@pytest.mark.usefixtures("every_line")
def test_what_was_done_before_is_counted() -> None:
    said: list[str] = []
    with followed("training: step", total=1000, done=100, say=said.append) as tell:
        tell("latent loss 3")
        tell("")
    assert said == [
        "10%: training: step 100 of 1000",
        "10%: training: step 101 of 1000, latent loss 3",
        "10%: training: step 102 of 1000",
    ]


def test_what_is_short_says_nothing() -> None:
    said: list[str] = []
    with followed("encoding", total=3, done=0, say=said.append) as tell:
        for _ in range(3):
            tell("")
    assert not said


@pytest.mark.usefixtures("every_line")
def test_encoding_training_and_validating_all_say_how_far_they_are(job: TrainJob) -> None:
    said: list[str] = []
    train_upsampler(replace(job, config=replace(job.config, cached_pairs=70, batch=12)), said.append)
    assert "67%: encoding pictures, 32 pairs each: 2 of 3" in said
    assert any(line.startswith("50%: training: step 3 of 6, latent loss ") and "image loss " in line for line in said)
    assert "100%: validating: batch 1 of 1" in said
