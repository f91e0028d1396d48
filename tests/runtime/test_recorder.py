"""What goes into the graphs, for Polygraphy and for calibration."""

import errno
import json
import os
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.registry import open_backend
from lssgen.errors import PromptError
from lssgen.ports import Array
from lssgen.runtime import Options, Pipeline, recorder
from lssgen.runtime.recorder import CALLS, RecordingBackend, dumped_inputs

RUN = Options(scaling_space="latent", num_inference_steps=6)


@pytest.fixture
def bundle(toy: Path) -> Bundle:
    return read_bundle(toy)


def dump(bundle: Bundle, folder: Path) -> Any:
    with dumped_inputs(folder, bundle) as hear:
        return Pipeline(bundle, RecordingBackend(open_backend("onnxruntime", threads=1), hear))("a star", **RUN)


def arrays(path: Path) -> list[dict[str, Array]]:
    feeds = json.loads(path.read_text())
    return [{name: np.load(BytesIO(b64decode(value["array"]))) for name, value in feed.items()} for feed in feeds]


def test_a_recorded_run_is_the_same_run(bundle: Bundle, tmp_path: Path) -> None:
    plain = Pipeline(bundle, open_backend("onnxruntime", threads=1))("a star", **RUN)
    assert np.array_equal(dump(bundle, tmp_path).latents, plain.latents)


def test_every_graph_has_a_file_for_every_size_with_its_first_calls(bundle: Bundle, tmp_path: Path) -> None:
    plan = dump(bundle, tmp_path / "dump").plan
    counts = {path.name: len(arrays(path)) for path in (tmp_path / "dump").iterdir()}
    low, high = (min(CALLS, len(stage.steps)) for stage in plan.stages)
    assert counts == {
        "text.json": 2,
        "step-4x4.json": low,
        "step-8x8.json": high,
        "transition_latent-4x4.json": 1,
        "decode-8x8.json": 1,
    }


def test_the_inputs_are_those_of_the_run(bundle: Bundle, tmp_path: Path) -> None:
    plan = dump(bundle, tmp_path).plan
    first = arrays(tmp_path / "step-8x8.json")[0]
    assert {name: value.dtype.name for name, value in first.items()} == {
        port.name: port.dtype for port in bundle.manifest.graphs["step"].inputs
    }
    assert np.array_equal(first["row"][0], plan.stages[1].steps[0].row(bundle.manifest.history))


def test_an_interrupted_dump_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), dumped_inputs(tmp_path / "dump", bundle) as hear:
        Pipeline(bundle, RecordingBackend(open_backend("onnxruntime"), hear))("a", on_step=stop, **RUN)
    assert not list((tmp_path / "dump").iterdir())


def test_a_full_disk_is_told_as_one(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> dict[str, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recorder, "polygraphy_array", full)
    with pytest.raises(PromptError, match=r"text\.json cannot be written: No space left on device"):
        dump(bundle, tmp_path / "dump")
    assert not list((tmp_path / "dump").iterdir())


def test_polygraphy_loads_a_dump_and_finds_every_layer_of_onnx_runtime_equal_to_itself(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Layer by layer, as one would compare another engine with ONNX Runtime; equal to the bit, since both are it."""
    polygraphy = pytest.importorskip("polygraphy.json", reason="polygraphy is not installed")
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.constants import MARK_ALL

    dump(bundle, tmp_path)
    feeds = polygraphy.load_json(str(tmp_path / "step-8x8.json"))
    model = ModifyOutputs(onnx.load(bundle.path("step.onnx")), outputs=MARK_ALL)
    runners = [OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(model)), name=name) for name in ("one", "other")]
    results = Comparator.run(runners, data_loader=feeds)
    verdict = Comparator.compare_accuracy(results, compare_func=SimpleCompareFunc(atol=0, rtol=0))
    assert bool(verdict)
    layers = results[0][1][0]
    assert len(layers) > len(bundle.manifest.graphs["step"].outputs)
