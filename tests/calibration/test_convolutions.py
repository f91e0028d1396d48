"""Convolutions of a UNet: listened to by channel, computed of codes for TensorRT, left alone for engines of CPUs."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lssgen.calibration.insertion import Made, Recipe, write_quantised
from lssgen.calibration.observe import Seen
from lssgen.calibration.products import products_of
from lssgen.calibration.statistics import About, Ranges, Statistics
from lssgen.calibration.taps import KINDS, Tap, add_taps
from lssgen.manifest import NumberFormat
from lssgen.models.quantisation import sensitivity_of
from lssgen.ports import Array

NET = """
<ir_version: 10, opset_import: ["" : 23]>
net (float[2,16,12,12] latent) => (float[2,32,6,6] y) {
  a = Conv<pads=[1,1,1,1]>(latent, "unet.conv_in.weight")
  b = Sigmoid(a) c = Mul(a, b)
  d = Conv<pads=[1,1,1,1]>(c, "unet.down_blocks.0.resnets.0.conv1.weight", "bias")
  e = Conv(a, "unet.down_blocks.0.resnets.0.conv_shortcut.weight")
  f = Add(d, e)
  y = Conv<pads=[1,1,1,1], strides=[2,2]>(f, "unet.down_blocks.0.downsamplers.0.conv.weight")
}"""
WEIGHTS = {
    "unet.conv_in.weight": (16, 16, 3, 3),
    "unet.down_blocks.0.resnets.0.conv1.weight": (32, 16, 3, 3),
    "unet.down_blocks.0.resnets.0.conv_shortcut.weight": (32, 16, 1, 1),
    "unet.down_blocks.0.downsamplers.0.conv.weight": (32, 32, 3, 3),
}
FIRST, SECOND = "unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.downsamplers.0.conv"


def net() -> ir.Model:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in WEIGHTS.items():
        weight = rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(32, np.float32), "bias"))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))


def latent() -> Array:
    return np.random.default_rng(1).standard_normal((2, 16, 12, 12)).astype(np.float32)


def computed(model: ir.Model | Path, outputs: list[str] | None, given: Array) -> list[Array]:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # codes are decoded, then multiplied
    source = model if isinstance(model, Path) else ir.serde.serialize_model(model).SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(outputs, {"latent": given})]


def inside(model: ir.Model, name: str, folder: Path) -> Array:
    """A tensor inside a graph."""
    (value,) = (node.outputs[0] for node in model.graph if node.outputs[0].name == name)
    model.graph.outputs.append(value)
    ir.save(model, folder / "peek.onnx")  # beside its data
    return computed(folder / "peek.onnx", [name], latent())[0]


def told(given: Array) -> tuple[tuple[Tap, ...], list[tuple[Array, ...]]]:
    """What the taps say of one call."""
    model = net()
    taps = add_taps(model, products_of(model, sensitivity_of("sd")))
    said: list[tuple[Array, ...]] = []
    for tap in taps:
        ports = [*(tap.port(kind).name for kind in KINDS), *(port.name for port in tap.power)]
        numbers = computed(model, ports, given)
        said.append((*numbers[: len(KINDS)], np.concatenate(numbers[len(KINDS) :])))
    return taps, said


@pytest.fixture
def statistics() -> Statistics:
    """Those of one call, the very one that is compared later."""
    taps, said = told(latent())
    about = About(
        lssgen="", family="sd", model="", step={}, stages=((12, 12),), steps=(1,), prompts=("",), seed=0, settings="",
        engine="", precision="fp32", done=1, taps=taps,
    )  # fmt: skip
    found = Statistics(about)
    for tap, numbers in zip(taps, said, strict=True):
        found.at(tap, 0, 0).add(*numbers)
    return found


def made(statistics: Statistics, folder: Path, form: NumberFormat, *, convolutions: bool = True) -> tuple[Path, Made]:
    model = net()
    products, path = products_of(model, sensitivity_of("sd")), folder / "made.onnx"
    recipe = Recipe(format=form, convolutions=convolutions, unsigned=not convolutions)
    return path, write_quantised(model, products, recipe, Ranges(statistics), path)


def test_what_a_convolution_reads_is_noted_by_channel(statistics: Statistics, tmp_path: Path) -> None:
    inner, result = (inside(net(), name, tmp_path) for name in ("c", "d"))
    (tap,) = (tap for tap in statistics.about.taps if tap.products == (FIRST,))
    seen = statistics.of(tap)
    assert np.allclose(seen.low, inner.min(axis=(0, 2, 3)))
    assert np.allclose(seen.high, inner.max(axis=(0, 2, 3)))
    assert np.allclose(seen.mean_squares, np.square(inner).mean(axis=(0, 2, 3)), rtol=1e-5)
    assert Ranges(statistics).power(FIRST) == pytest.approx(float(np.square(result).mean()))


def test_one_nan_among_many_numbers_is_noticed() -> None:
    given = latent()
    given[1, 3, 5, 7] = np.nan
    taps, said = told(given)
    for tap, numbers in zip(taps, said, strict=True):
        seen = Seen.nothing(tap.channels, len(tap.products))
        seen.add(*numbers)
        assert seen.bad


# Eight bits with a range for all: some 1 % of noise in each of two products; E4M3 has three bits, some 3.5 % in each.
@pytest.mark.parametrize(("form", "least", "most"), [("int8", 1e-3, 0.03), ("fp8", 1e-2, 0.08), ("nvfp4", 1e-2, 0.08)])
def test_convolutions_of_codes_are_near_the_others(
    statistics: Statistics, tmp_path: Path, form: NumberFormat, least: float, most: float
) -> None:
    path, found = made(statistics, tmp_path, form)
    assert (set(found.snr_db), found.kept) == ({FIRST, SECOND}, ())  # neither the shortcut's nor the first one
    exact, got = computed(net(), ["y"], latent())[0], computed(path, ["y"], latent())[0]
    assert least < np.linalg.norm(got - exact) / np.linalg.norm(exact) < most
    for node in ir.load(path).graph:
        if node.op_type == "Conv" and str(node.name or node.outputs[0].name) in ("d", "y"):
            makers = [value.producer() for value in node.inputs[:2] if value is not None]
            assert [maker.op_type for maker in makers if maker is not None] == ["DequantizeLinear"] * 2


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_the_predicted_noise_is_that_of_the_convolution(
    statistics: Statistics, tmp_path: Path, form: NumberFormat
) -> None:
    path, found = made(statistics, tmp_path, form)
    exact, got = (inside(model, "d", tmp_path) for model in (net(), ir.load(path)))
    measured = 10 * np.log10(np.square(exact).mean() / np.square(got - exact).mean())
    # Zeros around the picture make no noise, which the prediction leaves out of account: a sixth of what is read here.
    assert found.snr_db[FIRST] == pytest.approx(measured, abs=1.5)


def test_engines_of_cpus_and_weights_alone_leave_them_as_they_are(statistics: Statistics, tmp_path: Path) -> None:
    for form, convolutions in (("int8", False), ("int8-weights", True)):
        _, found = made(statistics, tmp_path, form, convolutions=convolutions)  # type: ignore[arg-type]
        assert (found.snr_db, set(found.kept)) == ({}, {FIRST, SECOND})
