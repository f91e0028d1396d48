"""Ranges: an ordinary run, listened to."""

import errno
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from calibrating import PROMPTS, RUNS, ranges_job

from lssgen.bundle import Bundle
from lssgen.calibration import ranges as module
from lssgen.calibration.products import products_of
from lssgen.calibration.ranges import measure_ranges
from lssgen.calibration.statistics import Statistics, read_statistics
from lssgen.calibration.taps import borrow
from lssgen.engines.registry import open_backend
from lssgen.errors import CalibrationError
from lssgen.manifest import Quantisation
from lssgen.models.quantisation import sensitivity_of
from lssgen.ports import Array
from lssgen.runtime import Pipeline
from lssgen.runtime.recorder import RecordingBackend


def inputs_of(bundle: Bundle, prompt: str, seed: int) -> list[dict[str, Array]]:
    """What goes into every step of an ordinary run."""
    found: list[dict[str, Array]] = []

    def hear(graph: str, inputs: Mapping[str, Array]) -> None:
        if graph == "step":
            found.append(dict(inputs))

    with Pipeline(bundle, RecordingBackend(open_backend("onnxruntime", threads=1), hear)) as pipeline:
        pipeline(prompt, **{**RUNS, "seed": seed})
    return found


def test_what_is_noted_is_what_goes_through_an_ordinary_run(demo: Bundle, statistics: Statistics) -> None:
    """One product's input, taken out of the graph whole, in every step of the same two runs."""
    about = statistics.about
    (tap,) = (tap for tap in about.taps if "transformer.transformer_blocks.2.ff.net.2" in tap.products)
    step = demo.path(demo.manifest.graphs["step"].file)
    model = ir.load(step)
    (product,) = (p for p in products_of(model, sensitivity_of("sd3")) if p.name in tap.products)
    model.graph.outputs.append(product.activation)
    product.activation.shape = None
    peeking = step.with_name("peek.onnx")
    ir.save(model, peeking)
    try:
        session = ort.InferenceSession(peeking, providers=["CPUExecutionProvider"])
    finally:
        peeking.unlink()
    high = dict.fromkeys(about.stages, 0.0)
    for seed, prompt in enumerate(PROMPTS):
        for inputs in inputs_of(demo, prompt, seed):
            (value,) = session.run([tap.tensor], inputs)
            size = inputs["latent"].shape[2:]
            high[size] = max(high[size], float(np.abs(value).max()))
    for stage, size in enumerate(about.stages):
        # ONNX Runtime fuses a Gelu that somebody listens to otherwise than one that nobody does.
        assert statistics.of_stage(tap, stage).peak == pytest.approx(high[size], rel=1e-4)


def test_stages_with_unlike_numbers_of_tokens_and_noise_buckets_are_apart(statistics: Statistics) -> None:
    about = statistics.about
    assert about.stages == ((16, 16), (32, 32))
    (tap,) = (tap for tap in about.taps if "transformer.transformer_blocks.0.ff.net.0.proj" in tap.products)
    calls = [[statistics.at(tap, stage, bucket).calls for bucket in range(about.buckets)] for stage in (0, 1)]
    assert [sum(each) for each in calls] == [steps * len(PROMPTS) for steps in about.steps]
    assert calls[0][3] > 0  # the first stage begins with noise alone
    assert calls[1][0] > 0  # and the last one ends without
    assert len({statistics.of_stage(tap, stage).peak for stage in (0, 1)}) == 2


def test_interrupted_and_resumed_it_gives_what_it_gives_at_once(
    demo: Bundle, ranges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demo.ranges.safetensors"
    write, written = module.write_statistics, []

    def stop(statistics: Statistics, target: Path) -> None:
        write(statistics, target)
        written.append(statistics.about.done)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_statistics", stop)
    with pytest.raises(KeyboardInterrupt):
        measure_ranges(ranges_job(demo, path))
    monkeypatch.setattr(module, "write_statistics", write)
    half = read_statistics(path)
    assert (half.about.done, half.about.finished) == (1, False)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    measure_ranges(ranges_job(demo, path))
    one, other = read_statistics(path), read_statistics(ranges)
    assert one.about == other.about
    assert one.seen.keys() == other.seen.keys()
    for place in one.seen:
        for name in ("low", "high", "squares", "power", "counts", "calls"):
            assert np.array_equal(getattr(one.seen[place], name), getattr(other.seen[place], name)), (place, name)


def test_a_file_of_another_calibration_is_left_as_it_is(demo: Bundle, ranges: Path) -> None:
    before = ranges.read_bytes()
    with pytest.raises(CalibrationError, match=r"another calibration .prompts was .*; choose another --output"):
        measure_ranges(ranges_job(demo, ranges, prompts=("something else",)))
    assert ranges.read_bytes() == before


def test_a_file_of_something_else_is_left_as_it_is(demo: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(CalibrationError, match=r"is there and holds no statistics to go on with; choose another"):
        measure_ranges(ranges_job(demo, path))
    assert path.read_bytes() == b"weights"


def test_a_name_that_the_plot_would_have_is_refused(demo: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"written to a .safetensors file, and .*x.png is none"):
        measure_ranges(ranges_job(demo, tmp_path / "x.png"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_calibration_left_is_removed(demo: Bundle, tmp_path: Path) -> None:
    """Killed behind the first prompt, by a signal that nothing can be done about."""
    path = tmp_path / "demo.ranges.safetensors"
    script = f"""
import os, signal
from pathlib import Path
from calibrating import ranges_job
from lssgen.bundle import read_bundle
from lssgen.calibration import ranges
write = ranges.write_statistics
ranges.write_statistics = lambda *given: (write(*given), os.kill(os.getpid(), signal.SIGKILL))
ranges.measure_ranges(ranges_job(read_bundle(Path({str(demo.folder)!r})), Path({str(path)!r})))
"""
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    before = set(demo.folder.parent.iterdir())
    assert subprocess.run([sys.executable, "-c", script], env=here, check=False).returncode == -signal.SIGKILL
    assert set(demo.folder.parent.iterdir()) > before
    assert read_statistics(path).about.done == 1
    assert measure_ranges(ranges_job(demo, path)).about.finished
    assert set(demo.folder.parent.iterdir()) == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_weights_that_cannot_be_linked_are_copied_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To another disk: they may be larger than memory."""

    def refused(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(Path, "read_bytes", refused)
    (tmp_path / "weights").write_bytes(b"numbers")
    borrow(tmp_path / "weights", tmp_path / "copy")
    with (tmp_path / "copy").open("rb") as file:
        assert file.read() == b"numbers"


def test_few_prompts_are_said(demo: Bundle, ranges: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lssgen"):
        measure_ranges(ranges_job(demo, ranges))
    said = "ranges of 2 prompts: other texts may leave them, and are cut off there; 32 to 64 are usual"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_bundle_that_is_quantised_already_is_refused(demo: Bundle, tmp_path: Path) -> None:
    about = Quantisation(format="int8", engine="onnxruntime", products=57)
    graphs = {**demo.manifest.graphs, "step": replace(demo.manifest.graphs["step"], quantisation=about)}
    coded = Bundle(demo.folder, replace(demo.manifest, graphs=graphs))
    with pytest.raises(CalibrationError, match="is quantised already; take the bundle that it was made from"):
        measure_ranges(ranges_job(coded, tmp_path / "x.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_calibration_is_not_run_again(demo: Bundle, ranges: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "__call__", None)
    assert measure_ranges(ranges_job(demo, ranges)).about.finished
