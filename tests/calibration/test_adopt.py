"""Another tool's graph, taken as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from lssgen.bundle import Bundle, read_bundle, verify
from lssgen.calibration.adopt import adopt
from lssgen.calibration.products import products_of
from lssgen.calibration.quality import Bound
from lssgen.calibration.quantise import Gate
from lssgen.errors import CalibrationError
from lssgen.models.quantisation import sensitivity_of
from lssgen.parity.samples import sample_inputs


@pytest.fixture(scope="module")
def foreign(demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's step, two of whose products ONNX Runtime's own tool has quantised."""
    step = demo.manifest.graphs["step"]
    inputs = sample_inputs(
        step.inputs, {"batch": 1, "branches": 1, "height": 16, "width": 16, **demo.manifest.token_axes}
    )

    left = [inputs]

    class Once(CalibrationDataReader):
        def get_next(self) -> Any:
            return left.pop() if left else None

    path = tmp_path_factory.mktemp("foreign") / "quantised.onnx"
    nodes = [product.node.name for product in products_of(ir.load(demo.path(step.file)), sensitivity_of("sd3"))[:2]]
    quantize_static(
        demo.path(step.file), path, Once(), nodes_to_quantize=nodes, op_types_to_quantize=["MatMul"], per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return path


def test_it_becomes_the_step_of_a_bundle_that_says_so(demo: Bundle, foreign: Path, tmp_path: Path) -> None:
    adopt(demo, foreign, tmp_path / "adopted", engine="onnxruntime", by="ONNX Runtime", gate=Gate())
    bundle = read_bundle(tmp_path / "adopted")
    verify(bundle)
    step = bundle.manifest.graphs["step"]
    assert step.quantisation is not None
    assert (step.quantisation.by, step.quantisation.format, step.quantisation.products) == ("ONNX Runtime", "int8", 2)
    assert (step.inputs, step.outputs, step.feeds) == tuple(
        getattr(demo.manifest.graphs["step"], name) for name in ("inputs", "outputs", "feeds")
    )
    weights = {name: value.const_value.numpy() for name, value in ir.load(foreign).graph.initializers.items()}
    kept = ir.load(bundle.path(step.file)).graph.initializers
    assert set(kept) == set(weights)
    assert all(np.array_equal(kept[name].const_value.numpy(), value) for name, value in weights.items())


def test_a_bundle_that_is_quantised_already_takes_no_other_graph(demo: Bundle, foreign: Path, tmp_path: Path) -> None:
    once = adopt(demo, foreign, tmp_path / "adopted", engine="onnxruntime", by=None, gate=Gate())
    with pytest.raises(CalibrationError, match="is quantised already; take the bundle that it was made from"):
        adopt(once, foreign, tmp_path / "twice", engine="onnxruntime", by=None, gate=Gate())
    assert [path.name for path in tmp_path.iterdir()] == ["adopted"]


def test_a_graph_without_quantising_nodes_is_refused(demo: Bundle, tmp_path: Path) -> None:
    plain = demo.path(demo.manifest.graphs["step"].file)
    with pytest.raises(CalibrationError, match="has no quantising nodes"):
        adopt(demo, plain, tmp_path / "adopted", engine="onnxruntime", by=None, gate=Gate())
    assert list(tmp_path.iterdir()) == []


def test_a_graph_with_other_ports_is_refused(demo: Bundle, foreign: Path, tmp_path: Path) -> None:
    model = onnx.load(foreign)
    model.graph.input[0].name = "sample"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CalibrationError, match=r"has other inputs than the step of .*sample: float32, 4 axes"):
        adopt(demo, tmp_path / "other.onnx", tmp_path / "adopted", engine="onnxruntime", by=None, gate=Gate())
    assert not (tmp_path / "adopted").exists()


def test_what_is_no_graph_is_one_line(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    for name in ("x.onnx", "none.onnx"):
        with pytest.raises(CalibrationError, match="is not an ONNX graph that can be read"):
            adopt(demo, tmp_path / name, tmp_path / "adopted", engine="onnxruntime", by=None, gate=Gate())


def test_what_does_not_reach_the_bound_is_refused(
    demo: Bundle, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lssgen.calibration import adopt as module
    from lssgen.calibration.quality import Quality, Runs
    from lssgen.engines.registry import open_backend

    monkeypatch.setattr(module, "compared", lambda *_: Quality((12.0,), (0.5,)))
    gate = Gate(
        runs=Runs(prompts=("a fox",), options={"num_inference_steps": 2, "height": 128, "width": 128}),
        backend=open_backend("onnxruntime", threads=1),
        bound=Bound(25, 0.9),
    )
    with pytest.raises(
        CalibrationError, match=r"latents reach stage 1: 12.0 dB, cosine 0.5000, and the bound is 25 dB"
    ):
        adopt(demo, foreign, tmp_path / "adopted", engine="onnxruntime", by=None, gate=gate)
    assert list(tmp_path.iterdir()) == []
