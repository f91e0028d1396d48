"""A bundle of one graph, written as text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx.parser import parse_model
from toy_bundle import FACTS

from lssgen.bundle import Bundle
from lssgen.manifest import Graph
from lssgen.ports import Port
from lssgen.testing import FakeModel, fake_bundle


def graph(folder: Path, body: str) -> Bundle:
    """A bundle of one graph, called "toy"; it counts nothing, since nothing is compiled for sizes here."""
    model = parse_model(f'<ir_version: 10, opset_import: ["" : 23]> graph {body}')
    bundle = fake_bundle(folder, FakeModel(facts=FACTS, networks={}))
    onnx.save(model, folder / "toy.onnx")
    entry = Graph(
        file="toy.onnx", sha256={}, key="", precision="fp32", inputs=ports(model.graph.input),
        outputs=ports(model.graph.output), runs="stage", axes={},
    )  # fmt: skip
    return Bundle(folder, replace(bundle.manifest, graphs={"toy": entry}))


def ports(values: Any) -> tuple[Port, ...]:
    return tuple(
        Port(v.name, "float32", tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values
    )
