"""Every number, word and switch of a training is looked at before anything begins."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lssgen.choices import flags_of
from lssgen.errors import TrainingError
from lssgen.training.config import PairRecipe, TrainConfig, TrainJob

JOB = TrainJob(vae="x", images=Path("y"))
NUMBERS = [
    (record, name)
    for record in (PairRecipe(), TrainConfig(), JOB)
    for name, kind in type(record).__annotations__.items()
    if kind in (int, float)
]


@pytest.mark.parametrize(("record", "name"), NUMBERS, ids=[name for _, name in NUMBERS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, 1e300, 10**30, "5", True, None])
def test_a_number_that_is_no_use_is_refused_by_name(record: object, name: str, value: object) -> None:
    with pytest.raises(TrainingError, match=f"^{name} is {re.escape(repr(value))}, but must be a "):
        replace(record, **{name: value})  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("record", "change", "words"),
    [
        (PairRecipe(), {"width": 0}, "width is 0, but must be a whole number of at least 1 and at most 65,536"),
        (TrainConfig(), {"batch": 0}, "batch is 0, but must be a whole number of at least 1"),
        (TrainConfig(), {"batch": 1.5}, "batch is 1.5, but must be a whole number"),
        (TrainConfig(), {"learning_rate": 0}, "learning_rate is 0, but must be a number above 0 and at most 1"),
        (TrainConfig(), {"ema": 1.0}, "ema is 1.0, but must be a number of at least 0 and below 1"),
        (TrainConfig(), {"image_loss": "l2"}, "image_loss is 'l2', but must be one of none, l1, ms-ssim, mixed, lpips"),
        (TrainConfig(), {"bf16": "no"}, "bf16 is 'no', but must be True or False"),
        (TrainConfig(), {"latent_weight": 0.0, "image_loss": "none"}, "nothing is left to learn from"),
        (PairRecipe(), {"downscale": "area"}, "downscale is 'area', but must be one of nearest, box"),
        (JOB, {"save_every": 0}, "save_every is 0, but must be a whole number of at least 1"),
        (JOB, {"vae": Path("x")}, r"vae is PosixPath\('x'\), but must be text"),
        (JOB, {"images": "y"}, r"images is 'y', but must be a pathlib\.Path"),
        (JOB, {"install": False, "install_anyway": True}, "install_anyway has nothing to do"),
    ],
)
def test_options_that_make_no_sense_are_refused(record: object, change: dict[str, object], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        replace(record, **change)  # type: ignore[type-var]


def test_every_number_with_a_flag_has_limits() -> None:
    flags = {name for record in (PairRecipe, TrainConfig, TrainJob) for name in flags_of(record)}
    assert {name for _, name in NUMBERS} - flags == {"height", "width"}  # which --crop gives
