"""What an engine is compared with: computed in float32, whatever the precision, on inputs that fit every graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from attention import write_graph

from lssgen.bundle import read_bundle
from lssgen.engines.demand import Demand, profiles_of
from lssgen.errors import BuildError
from lssgen.manifest import Precision
from lssgen.parity.reference import reference_outputs
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Port

LINEAR = """
<ir_version: 10, opset_import: ["" : 18]>
step (float[batch,8] x) => (float[batch,8] y) {
  low = Cast<to=TYPE>(x)
  product = MatMul(low, weight)
  two = Constant<value = TWO>()
  sum = Add(product, two)
  y = Cast<to=1>(sum)
}
"""
TWO = {"fp32": "float[1] {2.0}", "fp16": "float16[1] {16384}", "bf16": "bfloat16[1] {16384}"}  # the bits of both halves


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_precision_is_computed_in_float32_with_its_own_weights(tmp_path: Path, precision: Precision) -> None:
    text = LINEAR.replace("TWO", TWO[precision])
    step = write_graph(tmp_path, "linear", text, {"weight": (8, 8)}, precision)
    stored = onnx.load(tmp_path / step.file).graph.initializer[0]
    weight = onnx.numpy_helper.to_array(stored).astype(np.float32)
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    made = reference_outputs(tmp_path / step.file, {"x": x})["y"]
    np.testing.assert_allclose(made, x @ weight + 2, rtol=1e-5, atol=1e-6)  # float32 sums of eight products


def test_the_inputs_fit_every_graph_of_a_bundle(toy: Path) -> None:
    bundle = read_bundle(toy)
    for name, profiles in profiles_of(bundle.manifest, Demand()).items():
        graph = bundle.manifest.graphs[name]
        sizes = {axis: extent.best for axis, extent in profiles[0].axes.items()}
        made = reference_outputs(bundle.path(graph.file), sample_inputs(graph.inputs, sizes))
        assert set(made) == {port.name for port in graph.outputs}
        assert all(np.isfinite(value).all() for value in made.values())


def test_ids_are_in_every_vocabulary_and_masks_keep_a_token() -> None:
    ids = sample_inputs([Port("ids", "int64", ("batch", 77))], {"batch": 2})["ids"]
    assert set(ids.ravel()) == {0, 1}
    assert (ids[:, 0] == 1).all()


def test_a_graph_that_onnx_runtime_refuses_is_named(tmp_path: Path) -> None:
    text = LINEAR.replace("TWO", TWO["fp32"]).replace("MatMul(low", "Unheard(low")
    step = write_graph(tmp_path, "odd", text, {"weight": (8, 8)}, "fp32")
    with pytest.raises(BuildError, match=r"ONNX Runtime cannot compute odd\.onnx on the CPU to compare with: "):
        reference_outputs(tmp_path / step.file, {"x": np.zeros((1, 8), np.float32)})
