"""The statistics file: of this bundle, of these stages, whole, and of numbers that a range can be made of."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from lssgen.bundle import Bundle
from lssgen.calibration.statistics import (
    Ranges,
    Statistics,
    read_statistics,
    see_fits,
    write_statistics,
)
from lssgen.errors import CalibrationError


def about(statistics: Statistics, **changes: object) -> Statistics:
    return Statistics(msgspec.structs.replace(statistics.about, **changes), statistics.seen)


def test_what_is_written_is_read_again(statistics: Statistics, tmp_path: Path) -> None:
    write_statistics(statistics, tmp_path / "again.safetensors")
    again = read_statistics(tmp_path / "again.safetensors")
    assert again.about == statistics.about
    for place, seen in ((place, seen) for place, seen in statistics.seen.items() if seen.calls):
        assert np.array_equal(again.seen[place].high, seen.high)
        assert np.array_equal(again.seen[place].counts, seen.counts)


def test_those_of_the_bundle_fit(demo: Bundle, statistics: Statistics) -> None:
    see_fits(statistics, demo)


def test_a_graph_that_serves_all_stages_has_the_widest_range(statistics: Statistics) -> None:
    for tap in statistics.about.taps:
        each = [Ranges(statistics, (stage,)).of(tap.tensor).peak for stage in (0, 1)]
        assert Ranges(statistics).of(tap.tensor).peak == max(each)


def test_those_of_another_bundle_are_refused(demo: Bundle, statistics: Statistics) -> None:
    with pytest.raises(
        CalibrationError, match=r"of another bundle, made of 'elsewhere' in fp32.*lssgen calibrate range"
    ):
        see_fits(about(statistics, step={"step.onnx": "0" * 64}, model="elsewhere"), demo)


def test_those_of_other_stages_are_refused(demo: Bundle, statistics: Statistics) -> None:
    larger = Bundle(demo.folder, replace(demo.manifest, resolutions=((256, 256), (512, 512))))
    with pytest.raises(
        CalibrationError, match="of stages of 128x128, 256x256 px, and the bundle has one of 512x512 px"
    ):
        see_fits(statistics, larger)


def test_those_of_too_few_steps_are_refused(demo: Bundle, statistics: Statistics) -> None:
    for seen in statistics.seen.values():
        seen.calls = min(seen.calls, 2)
    with pytest.raises(
        CalibrationError, match=r"hold \d steps of the stage of 128x128 px, which is too few.*at least 16"
    ):
        see_fits(statistics, demo)


def test_unfinished_ones_are_refused(demo: Bundle, statistics: Statistics) -> None:
    with pytest.raises(CalibrationError, match="hold 1 of 2 prompts; run the same lssgen calibrate ranges again"):
        see_fits(about(statistics, done=1), demo)


def test_ranges_with_nan_are_refused(demo: Bundle, statistics: Statistics) -> None:
    next(iter(statistics.seen.values())).bad = True
    with pytest.raises(CalibrationError, match=r"goes into transformer.*in stage 1 held NaN or infinity.*bf16 or fp32"):
        see_fits(statistics, demo)


@pytest.mark.parametrize(
    ("name", "value"), [("low", np.nan), ("high", np.inf), ("high", -1e9), ("squares", -1.0), ("power", np.nan)]
)
def test_numbers_that_no_run_can_have_said_are_refused(
    statistics: Statistics, tmp_path: Path, name: str, value: float
) -> None:
    place, seen = next((place, seen) for place, seen in statistics.seen.items() if seen.calls)
    getattr(seen, name)[0] = value
    write_statistics(statistics, tmp_path / "odd.safetensors")
    with pytest.raises(CalibrationError, match=f"is not a statistics file .what it says of {place[0]} was never seen"):
        read_statistics(tmp_path / "odd.safetensors")


def test_stages_without_steps_are_no_statistics(statistics: Statistics, tmp_path: Path) -> None:
    write_statistics(about(statistics, steps=(16,)), tmp_path / "odd.safetensors")
    with pytest.raises(CalibrationError, match=r"is not a statistics file .it has 2 stages, and steps of 1"):
        read_statistics(tmp_path / "odd.safetensors")


def test_a_product_that_was_not_listened_to_is_one_line(statistics: Statistics) -> None:
    with pytest.raises(CalibrationError, match=r"know nothing of 'other'; run lssgen calibrate ranges again"):
        Ranges(statistics).power("other")


def test_ranges_of_zeros_are_refused(demo: Bundle, statistics: Statistics) -> None:
    tap = statistics.about.taps[3]
    for (tensor, _, _), seen in statistics.seen.items():
        if tensor == tap.tensor:
            seen.low[:], seen.high[:] = 0, 0
    with pytest.raises(CalibrationError, match=f"goes into {tap.label} in stage 1 was always zero"):
        see_fits(statistics, demo)


@pytest.mark.parametrize("content", [b"", b"not safetensors", save({"low.0.0": np.zeros(3, np.float32)})])
def test_another_file_is_no_statistics_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"is not a statistics file.*lssgen calibrate ranges"):
        read_statistics(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot be read.*lssgen calibrate ranges"):
        read_statistics(tmp_path / "none.safetensors")


def test_a_damaged_file_is_no_statistics_file(statistics: Statistics, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    write_statistics(statistics, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CalibrationError, match="is not a statistics file"):
        read_statistics(path)
    tensors = {"low.0.0": np.zeros(2, np.float32)}
    text = msgspec.json.encode(statistics.about).decode()
    path.write_bytes(save({**tensors, "calls.0.0": np.zeros(1, np.int64)}, {"lssgen": text}))
    with pytest.raises(CalibrationError, match="is not a statistics file"):
        read_statistics(path)
