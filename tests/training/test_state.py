"""The state and the log are checked when they are read; what cannot be used is one line that says what to do."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_damage import flip, full_disk

from lssgen.errors import TrainingError
from lssgen.training.config import TrainJob
from lssgen.training.job import train_upsampler
from lssgen.training.state import Log, Progress, forget_steps_after, read_state, write_state

CPU = torch.device("cpu")
QUIET = [].append
STATE = {"step": 3, "model": {"a.weight": torch.arange(64.0)}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_state(tmp_path / "state.bin", STATE)
    return tmp_path / "state.bin"


def test_what_was_written_is_read(file: Path) -> None:
    state = read_state(file, CPU)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["model"]["a.weight"], torch.arange(64.0))


def test_no_state_is_none(tmp_path: Path) -> None:
    assert read_state(tmp_path / "state.bin", CPU) is None


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(1000)),
    "not sealed": lambda path: torch.save(STATE, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused(file: Path, damage: str) -> None:
    DAMAGES[damage](file)
    with pytest.raises(TrainingError, match=r"^.*state\.bin is damaged: .*; delete it to start again$"):
        read_state(file, CPU)


@pytest.mark.parametrize("place", [index / 40 for index in range(41)])
def test_a_flipped_bit_anywhere_is_refused(file: Path, place: float) -> None:
    flip(file, place)
    with pytest.raises(TrainingError, match=r"^.*state\.bin is damaged: .*; delete it to start again$"):
        read_state(file, CPU)


def test_a_pipe_in_the_place_of_the_state_is_refused(file: Path) -> None:
    _pipe(file)
    with pytest.raises(TrainingError, match=r"state\.bin cannot be read: .*it is a pipe and not a file"):
        read_state(file, CPU)


@pytest.mark.parametrize("change", ["list", "lacks", "step", "keys", "log"])
def test_a_whole_state_of_another_version_is_refused(job: TrainJob, change: str) -> None:
    train_upsampler(job, QUIET)
    path = job.output / "state.bin"
    state = read_state(path, CPU)
    assert state is not None
    others: dict[str, dict[str, object]] = {
        "lacks": {key: value for key, value in state.items() if key != "optimizer"},
        "step": state | {"step": -3},
        "keys": state | {"model": {}},
        "log": state | {"config": None},
    }
    write_state(path, others.get(change, []))  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"^.* was written by another version of lssgen or torch .*; delete it"):
        train_upsampler(job, QUIET)


def lines(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def logged(folder: Path, steps: int) -> Path:
    log = Log(folder)
    for step in range(1, steps + 1):
        log.write(Progress(step=step, latent=0.5, image=0.25), 1e-3)
    log.close()
    return folder / "log.jsonl"


def test_steps_whose_state_was_not_saved_leave_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    logged(tmp_path, 5)
    forget_steps_after(3, tmp_path, said.append)
    assert lines(tmp_path) == [1, 2, 3]
    assert not said


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\x00", b"{", b"[1]", b'{"step": "2"}', b"[" * 5000, b'{"step": 9}', b'{"step": 1, "latent": 7}']
)
def test_a_damaged_line_leaves_the_log_and_that_is_said(tmp_path: Path, line: bytes) -> None:
    said: list[str] = []
    path = logged(tmp_path, 3)
    whole = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([whole[0], line, whole[2], b""]))
    forget_steps_after(3, tmp_path, said.append)
    assert path.read_bytes() == b"\n".join([whole[0], whole[2], b""])
    assert "lacks 1 of 3 lines, or they are damaged; the training itself is not affected" in said[0]


def test_a_log_that_is_gone_does_not_stop_a_training(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    (job.output / "log.jsonl").unlink()
    said: list[str] = []
    train_upsampler(job, said.append)
    assert any("lacks 6 of 6 lines" in sentence for sentence in said)


def test_a_full_disk_at_the_state_is_one_line_and_the_state_before_stays(job: TrainJob) -> None:
    whole = train_upsampler(replace(job, output=job.output.with_name("whole")), QUIET)
    stopped = replace(job, output=job.output.with_name("stopped"))
    train_upsampler(stopped, QUIET)  # whose cache is made
    (stopped.output / "state.bin").unlink()
    with full_disk(20_000), pytest.raises(TrainingError, match=r"^cannot write to .*stopped: .*; make room and run"):
        train_upsampler(stopped, QUIET)
    assert not (stopped.output / "state.bin").exists()
    assert not list(stopped.output.rglob("*.partial"))
    assert train_upsampler(stopped, QUIET).validation.rows == whole.validation.rows


def test_a_log_on_a_full_disk_can_still_be_closed(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = Log(tmp_path)
    log.write(Progress(step=1, latent=0.5, image=0.5), 1e-3)
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    log.close()


def test_a_training_with_other_pictures_does_not_go_on(job: TrainJob, images: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in images.iterdir():
        (pictures / path.name).write_bytes(path.read_bytes())
    job = replace(job, images=pictures)
    train_upsampler(job, QUIET)
    Image.new("RGB", (40, 40), "red").save(pictures / "new.png")
    with pytest.raises(TrainingError, match=r"pictures was '8 pictures \(.*\)', now '9 pictures \(.*\)'; resume with"):
        train_upsampler(job, QUIET)


def test_a_training_from_another_upsampler_does_not_go_on(job: TrainJob) -> None:
    train_upsampler(job, QUIET)
    onwards = replace(job, output=job.output.with_name("on"), shape="", start_from=str(job.output))
    train_upsampler(onwards, QUIET)
    train_upsampler(replace(job, output=job.output.with_name("b"), config=replace(job.config, seed=1)), QUIET)
    with pytest.raises(TrainingError, match=r"start_from was 'weights .*', now 'weights .*'; resume with"):
        train_upsampler(replace(onwards, start_from=str(job.output.with_name("b"))), QUIET)
