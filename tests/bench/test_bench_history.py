"""Numbers over time: what is a change and what is noise, and files that were hurt."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lssgen.bench.history import Point, append, changes, curves, plot_history, read_history
from lssgen.commands.bench import main
from lssgen.errors import BenchError


def points(levels: list[float], noise: float = 0.01, case: str = "256x256") -> list[Point]:
    rng = np.random.default_rng(0)
    return [
        Point(
            written=f"2026-11-{1 + index:02}", version="0.1.0", label=f"c{index}", bundle="demo", engine="x", case=case,
            machine="m", image_latency_ms=level * float(np.exp(rng.normal(0, noise))), image_throughput=1.0,
        )
        for index, level in enumerate(levels)
    ]  # fmt: skip


def test_a_slowing_is_found_at_its_commit() -> None:
    (change,) = changes(points([100.0] * 10 + [115.0] * 10))
    assert change.at.label == "c10"
    assert change.after / change.before == pytest.approx(1.15, abs=0.02)
    assert "+1" in str(change)


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.05])
def test_noise_alone_is_no_change(noise: float) -> None:
    assert changes(points([100.0] * 24, noise)) == []


def test_a_change_too_small_to_matter_is_not_told() -> None:
    assert changes(points([100.0] * 10 + [101.0] * 10, 0.0001)) == []


def test_too_few_points_say_nothing() -> None:
    with pytest.raises(BenchError, match="7 points say nothing about changes; measure 8 times"):
        changes(points([1.0] * 7))


def test_points_of_other_cases_are_other_curves(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append(points([1.0] * 3), path)
    append(points([1.0] * 2, case="512x512"), path)
    assert [len(curve) for curve in curves(read_history(path)).values()] == [3, 2]


def test_a_last_line_that_was_cut_off_is_left_out_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append(points([1.0] * 3), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read_history(path)) == 2
    append(points([1.0] * 2), path)  # and does not take the next one with it, whoever ends it
    assert len(read_history(path)) == 4
    path.write_bytes(b"{}\n" + msgspec.json.encode(points([1.0])[0]) + b"\n")
    with pytest.raises(BenchError, match=r"line 1 of .*h.jsonl is damaged"):
        read_history(path)
    with pytest.raises(BenchError, match="make one with lssgen bench BUNDLE --history"):
        read_history(tmp_path / "none.jsonl")


def test_the_command_tells_curves_and_ends_as_asked_where_the_last_change_is_a_slowing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h.jsonl"
    append(points([100.0] * 10 + [120.0] * 10), path)
    assert main(["history", str(path), "--status", "5", "--plots", str(tmp_path / "plots")]) == 5
    assert "(c10)" in capsys.readouterr().out
    assert list((tmp_path / "plots").glob("*.png"))
    assert main(["history", str(path)]) == 0


def test_a_plot_is_made_of_few_points_too(tmp_path: Path) -> None:
    plot_history(points([1.0] * 3), tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_a_last_line_without_its_end_is_a_point_and_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append(points([1.0] * 3), path)
    path.write_bytes(path.read_bytes().rstrip())
    assert len(read_history(path)) == 3
    append(points([1.0]), path)
    assert len(read_history(path)) == 4


@pytest.mark.parametrize("ms", ["0", "-1", "1e999", "null"])
def test_a_latency_that_cannot_be_one_is_a_damaged_line(tmp_path: Path, ms: str) -> None:
    path = tmp_path / "h.jsonl"
    append(points([1.0] * 9), path)
    lines = path.read_text().splitlines()
    lines[4] = lines[4].partition('"image_latency_ms":')[0] + f'"image_latency_ms":{ms},"image_throughput":1}}'
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BenchError, match=r"line 5 of .*h.jsonl is damaged"):
        read_history(path)


def test_a_history_without_a_point_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h.jsonl").touch()
    assert main(["history", str(tmp_path / "h.jsonl")]) == 1
    assert "h.jsonl has no measurement; add some with lssgen bench BUNDLE --history" in capsys.readouterr().err


def test_curves_of_two_machines_have_a_plot_each(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    append(points([1.0] * 3), path)
    append([msgspec.structs.replace(one, machine="other") for one in points([2.0] * 3)], path)
    assert main(["history", str(path), "--plots", str(tmp_path / "plots")]) == 0
    assert len(list((tmp_path / "plots").iterdir())) == 2


def test_another_number_of_threads_and_another_engine_of_a_grid_are_other_curves(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    words = [str(toy), "--runs", "3", "--warmup", "1", "--set", "scaling_space=latent", "--history", str(path)]
    words += ["--prompt", "a red circle"]
    assert main([*words, "--quiet", "--engine", "onnxruntime", "--threads", "1"]) == 0
    assert main([*words, "--quiet", "--on", "onnxruntime,auto", "--engine", "onnxruntime", "--low-memory"]) == 0
    assert [one.engine for one in read_history(path)] == [
        "onnxruntime, threads 1", "onnxruntime, low_memory True", "auto, low_memory True",
    ]  # fmt: skip
