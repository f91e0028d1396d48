"""Another tool's graph, taken as it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from lssgen.bundle import Bundle, read_bundle, verify
from lssgen.calibration import adopt as module
from lssgen.calibration.adopt import adopt
from lssgen.calibration.gates import Gate
from lssgen.calibration.products import products_of
from lssgen.calibration.quality import Bound
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


def changed(foreign: Path, folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(foreign)
    change(model)
    path = folder / "changed.onnx"
    onnx.save(model, path)
    return path


def test_a_graph_whose_sizes_a_tool_has_fixed_is_refused(demo: Bundle, foreign: Path, tmp_path: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 16

    said = (
        r"takes latent as \(batch, 6, 16, width\), and the step of .* takes latent: float32\[batch, 6, height, width\]"
    )
    with pytest.raises(CalibrationError, match=said):
        adopt(demo, changed(foreign, tmp_path, fix), tmp_path / "a", engine="onnxruntime", by=None, gate=Gate())
    assert not (tmp_path / "a").exists()


def test_codes_that_no_format_has_are_refused(demo: Bundle, foreign: Path, tmp_path: Path) -> None:
    def narrow(model: onnx.ModelProto) -> None:
        found = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
        codes = next(value for value in model.graph.initializer if value.name == found.input[0])
        four = onnx.helper.make_tensor(codes.name, onnx.TensorProto.INT4, codes.dims, np.zeros(codes.dims, np.int8))
        codes.CopyFrom(four)

    with pytest.raises(CalibrationError, match=r"has codes of INT4, of which no format is made; .*one of int8, fp8"):
        adopt(demo, changed(foreign, tmp_path, narrow), tmp_path / "a", engine="onnxruntime", by=None, gate=Gate())


def _first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator and len(node.input) > 1)


def _without_weight(model: onnx.ModelProto) -> None:
    name = _first(model, "DequantizeLinear").input[0]
    model.graph.initializer.remove(next(value for value in model.graph.initializer if value.name == name))


def _without_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _scale_of_zero(model: onnx.ModelProto) -> None:
    name = _first(model, "QuantizeLinear").input[1]
    scale = next(value for value in model.graph.initializer if value.name == name)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), np.float32), name))


def _axis_of_a_square_weight(model: onnx.ModelProto) -> None:
    """Where ONNX Runtime's fused product goes on as if nothing had been changed."""
    shapes = {value.name: tuple(value.dims) for value in model.graph.initializer}
    node = next(
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and shapes.get(node.input[0]) == (160, 160)
    )
    next(one for one in node.attribute if one.name == "axis").i = 0


def _other_axis(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if any(one.name == "axis" and one.i == 1 for one in node.attribute)
                and node.op_type == "DequantizeLinear")  # fmt: skip
    next(one for one in node.attribute if one.name == "axis").i = 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without_weight, "is not a sound ONNX graph .Nodes in a graph must be topologically sorted"),
        (_without_opset, "is not a sound ONNX graph .model with IR version >= 3 must specify opset_import"),
        (_scale_of_zero, "has scales of zero, NaN or infinity in .*; let the tool write it again"),
        (_axis_of_a_square_weight, "has scales along axis 0 of the weight of .*, which is summed over; let the tool"),
        (_other_axis, r"has \d+ scales along an axis of another length in .*; let the tool write it again"),
    ],
)
def test_an_unsound_graph_is_refused_where_nothing_is_compared(
    demo: Bundle, foreign: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], object], said: str
) -> None:
    graph = changed(foreign, tmp_path, change)
    with pytest.raises(CalibrationError, match=said):
        adopt(demo, graph, tmp_path / "a", engine="tensorrt", by=None, gate=Gate())
    assert [path.name for path in tmp_path.iterdir()] == [graph.name]


def test_a_format_that_the_engine_lacks_is_refused(
    demo: Bundle, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_format_of", lambda _: "fp8")
    with pytest.raises(CalibrationError, match="engine onnxruntime does not compute in fp8; it takes int8"):
        adopt(demo, foreign, tmp_path / "a", engine="onnxruntime", by=None, gate=Gate())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../weights.data", "weights are in ../weights.data, which is not in its own folder; put them there"),
        ("short.data", r"ends within the weight .*: 100 of its \d+ bytes are there; copy or make that file again"),
    ],
)
def test_weights_that_lie_elsewhere_or_end_early_are_refused(
    demo: Bundle, foreign: Path, tmp_path: Path, location: str, said: str
) -> None:
    def move(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda value: value.ByteSize())
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", location), ("offset", "0"), ("length", str(len(weight.raw_data)))):
            weight.external_data.add(key=key, value=text)
        weight.ClearField("raw_data")

    graph = tmp_path / "changed.onnx"
    model = onnx.load(foreign)
    move(model)
    graph.write_bytes(model.SerializeToString())
    (tmp_path / "short.data").write_bytes(bytes(100))
    with pytest.raises(CalibrationError, match=said):
        adopt(demo, graph, tmp_path / "a", engine="onnxruntime", by=None, gate=Gate())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["changed.onnx", "short.data"]


def test_what_is_no_graph_is_one_line(demo: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    for name in ("x.onnx", "none.onnx"):
        with pytest.raises(CalibrationError, match="is not an ONNX graph that can be read"):
            adopt(demo, tmp_path / name, tmp_path / "adopted", engine="onnxruntime", by=None, gate=Gate())


def test_what_does_not_reach_the_bound_is_refused(
    demo: Bundle, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
