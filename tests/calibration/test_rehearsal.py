"""NVFP4 by ordinary operators, which ONNX Runtime has: the same rounding, in the type of the graph."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from lssgen.bundle import Bundle
from lssgen.calibration.insertion import Recipe, write_quantised
from lssgen.calibration.numbers import BLOCK, FP4_MOST, FP8_MOST, decoded, fp4_blocks
from lssgen.calibration.observe import Seen
from lssgen.calibration.products import products_of
from lssgen.calibration.quantise import QuantiseJob, quantise
from lssgen.calibration.rehearsal import rehearse, rehearsed
from lssgen.calibration.statistics import Statistics
from lssgen.calibration.storage import DataFile
from lssgen.engines.registry import open_backend
from lssgen.models.quantisation import sensitivity_of
from lssgen.ports import Array

WEIGHT = "transformer.transformer_blocks.0.ff.net.2.weight"
NET = """
<ir_version: 10, opset_import: ["" : 23]>
net (KIND[2,24,32] x) => (KIND[2,24,48] y) {
  a = Mul(x, one)
  h = MatMul(a, "transformer.transformer_blocks.0.ff.net.2.weight")
  y = Add(h, bias)
}"""


class Known:
    """Ranges of one activation."""

    def __init__(self, values: Array) -> None:
        rows = values.astype(np.float32).reshape(-1, values.shape[-1])
        self._seen = Seen.nothing(rows.shape[1], 1)
        self._seen.add(rows.min(0), rows.max(0), np.square(rows).mean(0), rows, np.ones(1, np.float32))

    def of(self, _: str) -> Seen:
        return self._seen

    def power(self, _: str) -> float:
        return 1.0


def rounded(values: Array, whole: float) -> Array:
    """Activations in NVFP4: blocks along the last axis, whose scales follow what comes."""
    blocks = values.astype(np.float32).reshape(-1, BLOCK)
    peaks = np.abs(blocks).max(axis=1, keepdims=True)
    scales = np.minimum(peaks / FP4_MOST / whole, FP8_MOST).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    codes = np.clip(blocks / scales, -FP4_MOST, FP4_MOST).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return (codes * scales).reshape(values.shape)


@pytest.mark.parametrize(("word", "kind", "bound"), [("float", np.float32, 1e-5), ("float16", np.float16, 2e-3)])
def test_it_rounds_as_nvfp4_does_in_the_graphs_own_type(word: str, kind: Any, bound: float, tmp_path: Path) -> None:
    """Of what comes out, float32 and half precision round a millionth and a thousandth away."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET.replace("KIND", word))
    weight, bias = rng.standard_normal((32, 48)).astype(kind), rng.standard_normal(48).astype(kind)
    for name, numbers in ((WEIGHT, weight), ("bias", bias), ("one", np.ones((), kind))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers, name))
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto))
    x = rng.standard_normal((2, 24, 32)).astype(kind)
    ranges: Any = Known(x)
    write_quantised(
        model, products_of(model, sensitivity_of("sd3")), Recipe(format="nvfp4"), ranges, tmp_path / "made.onnx"
    )
    again = ir.load(tmp_path / "made.onnx")
    with DataFile(tmp_path / "rehearsal.data") as data:
        rehearse(again, data)
    ir.save(again, tmp_path / "rehearsed.onnx")
    session = ort.InferenceSession(tmp_path / "rehearsed.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    whole = float(np.abs(x.astype(np.float32)).max()) / (FP4_MOST * FP8_MOST)
    wanted = rounded(x, whole) @ decoded(fp4_blocks(weight.astype(np.float32))) + bias.astype(np.float32)
    assert np.asarray(found).dtype == kind
    assert np.linalg.norm(np.asarray(found, np.float32) - wanted) / np.linalg.norm(wanted) < bound


def test_it_lies_within_the_bundle_that_it_is_of(demo: Bundle, statistics: Statistics, tmp_path: Path) -> None:
    """A bundle that is compared is a draft, and what a kill leaves of it is removed with the draft."""
    job = QuantiseJob(
        bundle=demo, output=tmp_path / "made", format="nvfp4", engine="tensorrt-rtx", statistics=statistics, text=False
    )
    made = quantise(job)
    with rehearsed(made, open_backend("onnxruntime", threads=1)) as copy:
        assert copy.folder.parent == made.folder
        assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert not any(path.is_dir() for path in made.folder.iterdir())
