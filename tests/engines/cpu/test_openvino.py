"""OpenVINO as an engine: the same protocol, and formats that a probe allows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lssgen.bundle import Bundle, read_bundle
from lssgen.engines.cpu import openvino as module
from lssgen.engines.cpu import probe
from lssgen.engines.cpu.openvino import OvBackend
from lssgen.engines.cpu.probe import CANDIDATES, PLAIN, Candidate, Finding, Probing, finding_of
from lssgen.engines.demand import Demand
from lssgen.engines.onnxruntime import OrtBackend
from lssgen.engines.options import OrtOptions, OvOptions
from lssgen.engines.registry import open_backend
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError
from lssgen.runtime import Pipeline
from lssgen.testing import FakeBuffer

LATENT = {"scaling_space": "latent", "seed": 3}


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSSGEN_HOME", str(tmp_path_factory.getbasetemp() / "ov-home"))  # kept models are shared


@pytest.fixture
def bundle(toy: Path) -> Bundle:
    return read_bundle(toy)


def fp32(**options: Any) -> OvBackend:
    return OvBackend(OvOptions(threads=1, inference_precision="fp32", **options))


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_run_is_that_of_onnx_runtime(bundle: Bundle, low_memory: bool) -> None:
    with Pipeline(bundle, OrtBackend(OrtOptions(threads=1))) as pipeline:
        wanted = pipeline("a red circle", **LATENT)  # type: ignore[arg-type]
    with Pipeline(bundle, fp32(low_memory=low_memory)) as pipeline:
        got = pipeline("a red circle", **LATENT)  # type: ignore[arg-type]
        again = pipeline("a red circle", **LATENT)  # type: ignore[arg-type]
    # Both compute in float32; sums of a few numbers in another order.
    np.testing.assert_allclose(got.latents, wanted.latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got.latents, again.latents)


@pytest.mark.slow  # compiles every component of the demo model in four ways
def test_the_demo_model_computes_in_bf16_what_stays_near_float32(demo: Bundle) -> None:
    backend = OvBackend(OvOptions(threads=1))
    with Pipeline(demo, OrtBackend(OrtOptions(threads=1))) as pipeline:
        wanted = pipeline("a red circle on a white background", seed=1, num_inference_steps=4).latents
    with Pipeline(demo, backend) as pipeline:
        got = pipeline("a red circle on a white background", seed=1, num_inference_steps=4).latents
    for graph, found in backend.findings.items():
        chosen = found.best(CANDIDATES)
        assert found.errors.get(str(chosen), 0.0) <= probe.BOUNDS[chosen.format], graph
    # A step is 1 % off at most; guidance takes 4 times one branch less 3 times the other, and four steps follow it.
    assert np.linalg.norm(got - wanted) <= 0.2 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ([1e-3, 1e-3, 0.0], CANDIDATES[0]),
        ([probe.WRONG, 1e-3, 0.0], CANDIDATES[1]),  # what is read back from disk is wrong: compiled at every start
        ([probe.WRONG, 0.5, 0.0], CANDIDATES[2]),
        ([0.5, 0.5, 0.5], PLAIN),
    ],
)
def test_the_best_candidate_that_is_right_is_taken(errors: list[float], chosen: Candidate) -> None:
    said = {str(one): error for one, error in zip(CANDIDATES, errors, strict=True)}
    assert Finding(errors=said).best(CANDIDATES) == chosen


@pytest.mark.parametrize(("error", "chosen"), [(0.02, CANDIDATES[0]), (0.5, PLAIN)])
def test_bf16_that_is_asked_for_is_taken_where_auto_would_not(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: float, chosen: Candidate
) -> None:
    """Unless it is wrong. A step in int8 is such a one: it is further from itself than 1 % at the slightest push."""
    errors = {str(one): error for one in CANDIDATES[:2]}
    monkeypatch.setattr(module, "finding_of", lambda *_: Finding(errors=errors))
    monkeypatch.setattr(OvBackend, "_candidates", property(lambda _: CANDIDATES))
    asked = fp32()
    asked._options = replace(asked._options, inference_precision="bf16")  # pyright: ignore[reportPrivateUsage]
    assert asked.candidate_of(bundle, "text") == chosen
    asked = fp32()
    asked._options = replace(asked._options, inference_precision="auto")  # pyright: ignore[reportPrivateUsage]
    assert asked.candidate_of(bundle, "text") == PLAIN


def test_a_finding_is_remembered_until_the_version_changes(bundle: Bundle) -> None:
    asked: list[Candidate] = []

    def run(how: Candidate, inputs: Any) -> Any:
        asked.append(how)
        assert set(inputs) == {"ids"}
        return {"text": np.full((1, 1), 1.0 if how.format == "f32" else np.nan)}

    probing = Probing("v1", "cpu", CANDIDATES, run)
    found = finding_of(bundle, "text", probing)
    assert found.best(CANDIDATES) == CANDIDATES[2]  # NaN is not near anything
    count = len(asked)
    assert finding_of(bundle, "text", probing) == found
    assert len(asked) == count
    finding_of(bundle, "text", replace(probing, version="v2"))
    assert len(asked) > count


def test_a_kept_model_is_tried_twice_as_it_is_compiled_and_as_it_is_read_back(bundle: Bundle) -> None:
    asked: list[Candidate] = []

    def run(how: Candidate, inputs: Any) -> Any:
        asked.append(how)
        assert set(inputs) == {"ids"}
        return {"text": np.full((1, 1), 1.0 + (how.kept and asked.count(how) == 2))}

    found = finding_of(bundle, "text", Probing("twice", "cpu", CANDIDATES, run))
    assert found.best(CANDIDATES) == CANDIDATES[1]


def test_a_binding_is_of_its_own_buffers_and_shapes(bundle: Bundle) -> None:
    backend = fp32()
    engine = backend.open(bundle, Demand(graphs=("text",)))["text"]
    ids, text = backend.empty((1, 8), np.int64), backend.empty((1, 1), np.float32)
    with pytest.raises(ShapeError, match="OpenVINO binds its own buffers, not a FakeBuffer"):
        engine.bind({"ids": FakeBuffer((1, 8), np.int64), "text": text})
    with pytest.raises(ShapeError, match="was given an array of shape"):
        ids.write(np.zeros((2, 8), np.int64))
    run = engine.bind({"ids": ids, "text": text})
    for number in (1, 5):
        ids.write(np.full((1, 8), number))
        run()
        assert text.read() == number


def test_a_closed_engine_is_told(bundle: Bundle) -> None:
    backend = fp32()
    engines = backend.open(bundle, Demand(graphs=("text",)))
    engine = engines["text"]
    engines.close()
    with pytest.raises(EngineError, match="was closed and cannot be bound"):
        engine.bind({})


def test_a_graph_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_bytes(b"nonsense")
    with pytest.raises(BuildError, match="OpenVINO cannot compile it from") as caught:
        fp32().compile(str(tmp_path / "text.onnx"), "it", (("ids", (1, 8)),), PLAIN)
    assert len(str(caught.value).splitlines()) == 1


def test_a_format_that_there_is_not_is_refused() -> None:
    with pytest.raises(BackendError, match=r"inference_precision is 'int4'; it must be one of auto, bf16, fp32"):
        open_backend("openvino", inference_precision="int4")  # type: ignore[arg-type]


def test_it_describes_itself_with_the_format_of_every_component(bundle: Bundle) -> None:
    backend = fp32()
    backend.open(bundle, Demand(graphs=("text", "step")))
    said = backend.describe()
    assert said["threads"] == 1
    assert said["components"] == {"text": str(CANDIDATES[2]), "step": str(CANDIDATES[2])}
