"""The GPU check finds what is wrong, skips what is not there, and says both."""

import json
import sys
from dataclasses import replace
from math import inf
from pathlib import Path
from shutil import copytree
from time import monotonic
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.gpu import check, hollow, latency, layers, parity, quantised
from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle
from lssgen.engines.onnxruntime import OrtBackend, OrtOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import BackendError


class Off(OrtBackend):
    """A backend that is wrong by a share of every value it reads back."""

    share = 0.0

    @property
    def name(self) -> str:
        return "off"

    def empty(self, shape: Any, dtype: Any) -> Any:
        buffer = super().empty(shape, dtype)
        read, share = buffer.read, self.share
        buffer.read = lambda: (read() * (1 + share)).astype(dtype)  # type: ignore[method-assign]
        return buffer


@pytest.fixture(scope="module")
def off() -> Off:
    return Off(OrtOptions(threads=1))


def test_a_right_backend_is_right_for_every_graph_at_every_size(toy: Path, off: Off) -> None:
    off.share = 0.0
    verdicts = list(parity.graph_verdicts(read_bundle(toy), open_backend("onnxruntime", threads=1), off))
    assert {verdict.state for verdict in verdicts} == {"ok"}
    assert sum("step" in verdict.what for verdict in verdicts) == 2


def test_a_backend_that_is_off_by_a_hundredth_is_wrong(toy: Path, off: Off) -> None:
    off.share = 0.01
    verdicts = list(parity.graph_verdicts(read_bundle(toy), open_backend("onnxruntime", threads=1), off))
    assert all(verdict.state == "WRONG" for verdict in verdicts if "decode" not in verdict.what)


def test_a_result_that_is_not_a_number_is_wrong() -> None:
    nan = parity.relative_error(np.array([np.nan, 1.0]), np.array([1.0, 1.0]))
    assert parity.Verdict(what="", engine="", error=nan, bound=1.0).state == "WRONG"


def test_whole_runs_are_compared_too(toy: Path, off: Off) -> None:
    off.share = 0.0
    verdicts = list(parity.run_verdicts(read_bundle(toy), open_backend("onnxruntime", threads=1), off))
    assert [(verdict.what, verdict.state) for verdict in verdicts] == [
        ("toy whole run, staged", "ok"),
        ("toy whole run, single stage", "ok"),
    ]


def test_timings_name_steps_stages_and_gaps(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ROUNDS", 1)
    backend = open_backend("onnxruntime", threads=1)
    alone = latency.step_timings(read_bundle(toy), backend)
    timings = latency.run_timings(read_bundle(toy), backend, alone)
    assert [timing.what for timing in alone] == [
        f"step, batch 1, branches 2, height {size}, width {size}" for size in (4, 8)
    ]
    assert any(timing.what.startswith("staged, stage 2:") and "64 x 64" in timing.what for timing in timings)
    assert all(timing.ms > 0 for timing in (*alone, *timings))


def test_without_a_gpu_the_check_says_what_it_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(engine: str) -> Any:
        raise BackendError(f"no {engine} here")

    monkeypatch.setattr(check, "open_backend", nothing)
    assert check.main(["--work", str(tmp_path), "--output", str(tmp_path / "found" / "check.json")]) == 0
    assert "skipped   tensorrt: no tensorrt here" in capsys.readouterr().out
    found = json.loads((tmp_path / "found" / "check.json").read_text())
    assert found["skipped"][-1] == "everything: no engine takes a GPU of this machine"


def test_a_wrong_result_is_the_exit_status(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: Off
) -> None:
    off.share = 0.5
    monkeypatch.setattr(check, "open_backend", lambda name: off if name == "tensorrt" else OrtBackend())
    arguments = ["--bundle", str(toy), "--engines", "tensorrt", "--full-size", "--output", str(tmp_path / "check.json")]
    assert check.main([*arguments, "--parts", "parity"]) == 1


def test_what_was_found_is_written_as_it_is_found_and_no_part_begins_too_late(toy: Path, tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    record = check.Record(path, monotonic() - 1, {"device": "a card"})
    record.verdicts.append(parity.Verdict(what="step", engine="x", error=0.0, bound=1.0))
    record.say("ok")
    assert json.loads(path.read_text())["verdicts"][0]["what"] == "step"
    check.examine(read_bundle(toy), tmp_path, {"tensorrt": OrtBackend}, record, check.PARTS)
    assert json.loads(path.read_text())["skipped"] == [
        f"{part} of toy on tensorrt: the time is over" for part in check.PARTS
    ]


def test_a_bundle_of_random_weights_travels_hollow_and_is_filled_again(toy: Path, tmp_path: Path) -> None:
    heavy, light = tmp_path / "heavy", tmp_path / "light"
    copytree(toy, heavy)
    weight = np.random.default_rng(0).normal(3, 0.5, (1024, 1024)).astype(np.float32)
    model = onnx.load(heavy / "step.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.save(model, heavy / "step.onnx", save_as_external_data=True, location="step.data")
    bundle = read_bundle(heavy)
    step = replace(bundle.manifest.graphs["step"], data=("step.data",))
    changed = replace(bundle.manifest, graphs={**bundle.manifest.graphs, "step": step})
    (heavy / MANIFEST).write_bytes(manifest_json(changed))
    hollow.pack(heavy, light)
    assert not (light / "step.data").exists()
    hollow.fill(light)
    filled = onnx.numpy_helper.to_array(onnx.load(light / "step.onnx").graph.initializer[-1])
    # A million numbers: their mean and spread are within five standard errors of those of the first.
    assert filled.mean() == pytest.approx(3, abs=0.005)
    assert filled.std() == pytest.approx(0.5, abs=0.005)


def test_every_tensor_inside_a_graph_is_compared_worst_first(toy: Path) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed")
    bundle = read_bundle(toy)
    path, inputs = bundle.path("decode.onnx"), {"latent": np.random.default_rng(0).standard_normal((1, 4, 8, 8))}
    inputs["latent"] = inputs["latent"].astype(np.float32)
    runners = [layers.onnxruntime_runner(path), layers.onnxruntime_runner(path)]
    runners[1].name = "other"
    found = layers.compared("toy decode, layer", runners, inputs, 1e-3)
    assert {"toy decode, layer scaled", "toy decode, layer clipped"} <= {verdict.what for verdict in found}
    assert {(verdict.engine, verdict.state, verdict.error) for verdict in found} == {("other", "ok", 0.0)}


def test_without_polygraphy_or_tensorrt_layers_are_skipped_and_that_is_said(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.onnx", None)
    record = check.Record(tmp_path / "check.json", inf, {})
    check.look_inside(read_bundle(toy), "step", record)
    assert record.layers == []
    assert record.skipped[0].startswith("layers of toy step: ")
    assert "skipped   layers of toy step: " in capsys.readouterr().out


@pytest.mark.slow  # four formats of the demo model
def test_every_format_is_raced_against_half_precision_with_its_quality(
    demo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On ONNX Runtime under TensorRT's name, which has no NVFP4: that is said, and the others go on."""
    monkeypatch.setattr(quantised, "STEPS", 16)
    monkeypatch.setattr(OrtBackend, "name", property(lambda _: "tensorrt-rtx"))
    found = {one.what: one for one in quantised.contests(demo, OrtBackend(OrtOptions(threads=1)), tmp_path)}
    assert set(found) == {"demo int8", "demo fp8", "demo nvfp4", "demo int8-weights"}
    for form in ("int8", "fp8", "int8-weights"):
        contest = found[f"demo {form}"]
        assert set(contest.speedup) == {"128x128", "256x256"}
        assert min(contest.psnr_db) > 20
    assert "TRT_FP4DynamicQuantize" in found["demo nvfp4"].note
