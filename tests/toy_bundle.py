"""A whole bundle of small hand-written ONNX graphs, for tests of what runs bundles. No torch is needed to make it."""

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from onnx.parser import parse_model

from lssgen.bundle import MANIFEST, Bundle, manifest_json, read_bundle, sha256_of
from lssgen.manifest import Graph, Manifest, Source
from lssgen.plan import Defaults, ModelFacts, NetworkCost
from lssgen.ports import Port
from lssgen.testing import (
    FakeModel,
    decode_network,
    encode_network,
    fake_bundle,
    step_network,
    text_network,
    transition_network,
)

DEFAULTS = Defaults(
    height=64, width=64, num_inference_steps=6, guidance_scale=3.0, min_resolution=32, base_height=64, base_width=64
)
FACTS = ModelFacts(
    name="toy",
    channels=4,
    align=1,
    patch=1,
    scheduler="FlowMatchEulerDiscreteScheduler",
    scheduler_config={"shift": 3.0, "num_train_timesteps": 1000},
    start="timestep",
    defaults=DEFAULTS,
    cost=NetworkCost(fixed=0.0, per_cell=1.0, per_cell_pair=0.0),
)

_HEAD = '<ir_version: 10, opset_import: ["" : 23]>\n'
GRAPHS = {
    "text": """
        text (int64[batch, tokens] ids) => (float[batch, 1] text) {
            numbers = Cast <to = 1> (ids)
            axis = Constant <value = int64[1] {1}> ()
            text = ReduceMean (numbers, axis)
        }""",
    "step": """
        step (float[batch, 4, height, width] latent, float[1, batch, 4, height, width] history,
              float[batch, 4, height, width] noise, float[batch, 8] row, float[branches, batch] guidance_weights,
              float[branches, batch, 1] text)
          => (float[batch, 4, height, width] next_latent, float[1, batch, 4, height, width] next_history) {
            cells = Constant <value = int64[2] {2, 3}> ()
            rows = Unsqueeze (row, cells)
            label, c_in, h_x, h_f, keep, fresh, blend0, blend1 = Split <axis = 1, num_outputs = 8> (rows)
            u = Mul (c_in, latent)
            inner = Tanh (u)
            ends = Constant <value = int64[2] {3, 4}> ()
            told = Unsqueeze (text, ends)
            tenth = Constant <value = float[1] {0.1}> ()
            push = Mul (told, tenth)
            each = Add (inner, push)
            last = Constant <value = int64[3] {2, 3, 4}> ()
            weights = Unsqueeze (guidance_weights, last)
            weighed = Mul (each, weights)
            zero = Constant <value = int64[1] {0}> ()
            f = ReduceSum <keepdims = 0> (weighed, zero)
            a = Mul (h_x, latent)
            b = Mul (h_f, f)
            h0 = Add (a, b)
            next_history = Unsqueeze (h0, zero)
            h1 = Squeeze (history, zero)
            kept = Mul (keep, latent)
            part0 = Mul (blend0, h0)
            part1 = Mul (blend1, h1)
            drawn = Mul (fresh, noise)
            sum0 = Add (kept, part0)
            sum1 = Add (sum0, part1)
            next_latent = Add (sum1, drawn)
        }""",
    "transition_latent": """
        transition (float[batch, 4, height, width] latent, float[batch, 4, next_height, next_width] noise,
                    float[batch, 2] mix) => (float[batch, 4, next_height, next_width] next_latent) {
            scales = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
            up = Resize <mode = "cubic", cubic_coeff_a = -0.75> (latent, , scales)
            cells = Constant <value = int64[2] {2, 3}> ()
            mixes = Unsqueeze (mix, cells)
            image, amount = Split <axis = 1, num_outputs = 2> (mixes)
            a = Mul (image, up)
            b = Mul (amount, noise)
            next_latent = Add (a, b)
        }""",
    "decode": """
        decode (float[batch, 4, height, width] latent)
          => (uint8[batch, picture_height, picture_width, 3] picture) {
            begin = Constant <value = int64[1] {0}> ()
            end = Constant <value = int64[1] {3}> ()
            axis = Constant <value = int64[1] {1}> ()
            rgb = Slice (latent, begin, end, axis)
            wide = Constant <value = float[1] {32.0}> ()
            middle = Constant <value = float[1] {128.0}> ()
            scaled = Mul (rgb, wide)
            moved = Add (scaled, middle)
            low = Constant <value = float {0.0}> ()
            high = Constant <value = float {255.0}> ()
            clipped = Clip (moved, low, high)
            scales = Constant <value = float[4] {1.0, 1.0, 8.0, 8.0}> ()
            large = Resize <mode = "nearest"> (clipped, , scales)
            pixels = Transpose <perm = [0, 2, 3, 1]> (large)
            picture = Cast <to = 2> (pixels)
        }""",
    "encode": """
        encode (uint8[batch, picture_height, picture_width, 3] picture,
                float[batch, 4, height, width] posterior_noise) => (float[batch, 4, height, width] latent) {
            floats = Cast <to = 1> (picture)
            planes = Transpose <perm = [0, 3, 1, 2]> (floats)
            cells = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (planes)
            wide = Constant <value = float[1] {32.0}> ()
            middle = Constant <value = float[1] {128.0}> ()
            moved = Sub (cells, middle)
            rgb = Div (moved, wide)
            pads = Constant <value = int64[8] {0, 0, 0, 0, 0, 1, 0, 0}> ()
            mean = Pad (rgb, pads)
            small = Constant <value = float[1] {0.001}> ()
            spread = Mul (small, posterior_noise)
            latent = Add (mean, spread)
        }""",
}
LIKE = {
    "text": text_network(),
    "step": step_network(lambda ask: ask.u, history=1),
    "transition_latent": transition_network(),
    "decode": decode_network(),
    "encode": encode_network(),
}
"""Networks that run on the same occasions and are fed from the same sources."""

_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.UINT8: "uint8"}


def toy_bundle(folder: Path) -> Bundle:
    """Write the bundle into a new folder."""
    tokenizer = fake_bundle(folder, FakeModel(facts=FACTS, networks={})).manifest.tokenizers
    graphs: dict[str, Graph] = {}
    for name, text in GRAPHS.items():
        model = parse_model(_HEAD + text)
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
        graphs[name] = Graph(
            file=f"{name}.onnx",
            sha256={f"{name}.onnx": sha256_of(folder / f"{name}.onnx")},
            key=name,
            precision="fp32",
            inputs=tuple(map(_port, model.graph.input)),
            outputs=tuple(map(_port, model.graph.output)),
            runs=LIKE[name].runs,
            axes=LIKE[name].axes,
            feeds=LIKE[name].feeds,
        )
    manifest = Manifest(
        lssgen="test",
        family="toy",
        facts=FACTS,
        source=Source(model="toy"),
        resolutions=((32, 32), (64, 64)),
        history=1,
        graphs=graphs,
        tokenizers=tokenizer,
    )
    (folder / MANIFEST).write_bytes(manifest_json(manifest))
    return Bundle(folder, manifest)


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return Port(value.name, _TYPES[kind.elem_type], shape)


def toy_in_stages(toy: Path, folder: Path) -> Bundle:
    """A copy of the bundle in a new folder, which paints in two stages: its default transition is one that it has."""
    shutil.copytree(toy, folder)
    manifest = read_bundle(toy).manifest
    facts = replace(manifest.facts, defaults=replace(manifest.facts.defaults, scaling_space="latent"))
    (folder / MANIFEST).write_bytes(manifest_json(replace(manifest, facts=facts)))
    return read_bundle(folder)
