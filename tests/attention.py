"""A step graph with attention in it, in every precision: half a second to build as an engine."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle, sha256_of
from lssgen.manifest import Graph, Precision
from lssgen.ports import Port

_ONNX_TYPE = {"fp32": 1, "fp16": 10, "bf16": 16}

STEP = """
<ir_version: 10, opset_import: ["" : 23]>
step (float[batch,4,height,width] latent, float[1,batch,4,height,width] history, float[batch,4,height,width] noise,
      float[batch,8] row, float[branches,batch] guidance_weights, float[branches,batch,8,32] text)
  => (float[batch,4,height,width] next_latent, float[1,batch,4,height,width] next_history)
{
  x = Cast<to=TYPE>(latent)
  f = Conv<kernel_shape=[1,1]>(x, w_in)
  size = Shape(f)
  flat = Constant<value_ints=[0,64,-1]>()
  f1 = Reshape(f, flat)
  s = Transpose<perm=[0,2,1]>(f1)
  t = Cast<to=TYPE>(text)
  g = Cast<to=TYPE>(guidance_weights)
  last = Constant<value_ints=[2,3]>()
  g4 = Unsqueeze(g, last)
  weighted = Mul(t, g4)
  first = Constant<value_ints=[0]>()
  t1 = ReduceSum<keepdims=0>(weighted, first)
  q = MatMul(s, w_q)
  k = MatMul(t1, w_k)
  v = MatMul(t1, w_v)
  [attend] a = Attention<q_num_heads=HEADS, kv_num_heads=HEADS>(q, k, v)
  a1 = Add(a, s)
  a2 = Transpose<perm=[0,2,1]>(a1)
  b = Reshape(a2, size)
  o = Conv<kernel_shape=[1,1]>(b, w_out)
  output = Cast<to=1>(o)
  cells = Constant<value_ints=[2,3]>()
  rows = Unsqueeze(row, cells)
  four = Constant<value_ints=[4]>()
  keep = Gather<axis=1>(rows, four)
  kept = Mul(keep, latent)
  six = Constant<value_ints=[6]>()
  fresh = Gather<axis=1>(rows, six)
  more = Mul(fresh, noise)
  sum1 = Add(kept, output)
  axes = Constant<value_ints=[0]>()
  old = Squeeze(history, axes)
  zero = Constant<value_float=0.0>()
  nothing = Mul(old, zero)
  sum2 = Add(sum1, nothing)
  next_latent = Add(sum2, more)
  next_history = Unsqueeze(output, axes)
}
"""
WEIGHTS = {"w_in": (64, 4, 1, 1), "w_q": (64, 64), "w_k": (32, 64), "w_v": (32, 64), "w_out": (4, 64, 1, 1)}


def attention_bundle(toy: Path, folder: Path, *, precision: Precision = "fp16", heads: int = 4) -> Bundle:
    """The toy bundle with a network that attends; `heads` divides 64, and a head has size 64 / heads."""
    bundle = read_bundle(copytree(toy, folder))
    step = write_graph(folder, "attends", STEP.replace("HEADS", str(heads)), WEIGHTS, precision)
    manifest = replace(bundle.manifest, graphs={"step": step})
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(folder, manifest)  # not read: a bundle of one graph is none that a user could have


def write_graph(
    folder: Path, name: str, text: str, weights: Mapping[str, tuple[int, ...]], precision: Precision, seed: int = 0
) -> Graph:
    """Write a graph, TYPE in its text being the precision's, with random weights in a file of their own."""
    number, rng = _ONNX_TYPE[precision], np.random.default_rng(seed)
    model = parser.parse_model(text.replace("TYPE", str(number)))
    for weight, shape in weights.items():
        value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        value = value.astype(onnx.helper.tensor_dtype_to_np_dtype(number))
        model.graph.initializer.append(numpy_helper.from_array(value, weight))
    files = (f"{name}.onnx", f"{name}.data") if weights else (f"{name}.onnx",)
    outside = {"save_as_external_data": True, "location": files[-1], "size_threshold": 0} if weights else {}
    onnx.save_model(model, folder / files[0], **outside)
    return Graph(
        file=files[0],
        data=files[1:],
        sha256={file: sha256_of(folder / file) for file in files},
        key=name,
        precision=precision,
        inputs=tuple(map(_port, model.graph.input)),
        outputs=tuple(map(_port, model.graph.output)),
        runs="stage",
        axes={axis: axis for axis in ("batch", "branches", "height", "width")},
    )


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    return Port(value.name, dtype, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim))
