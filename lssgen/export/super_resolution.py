"""A super-resolution network that the user gives, as a part of the graph between two stages.

Torch sees it as one operator, which ONNX Runtime computes where the module is evaluated. In the exported graph the
operator is replaced by the network's own nodes and weights.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import version_converter
from onnxscript.values import Opset
from torch import Tensor, nn

from lssgen.errors import ExportError, ProbeError
from lssgen.files import open_regular
from lssgen.parity.pieces import session

DOMAIN, OPERATOR = "lssgen", "Enlarge"
"""The operator that stands for a network until its nodes take its place."""

ANY_PX = (64, 96)
"""Size of a picture that every network takes whose sizes are free; window attentions want multiples of 8 to 64."""

STANDARD = ("", "ai.onnx")
"""Names of ONNX's own domain: operators of others are known to some backends only."""


@dataclass(frozen=True)
class Network:
    """A super-resolution network, known to double pictures.

    Attributes:
        path: ONNX file.
        sha256: Hash of the file, and of those with its weights.
    """

    path: Path
    sha256: str

    @cached_property
    def enlarge(self) -> "Enlarge":
        """The network as a module: (batch, 3, height, width) in [0, 1] -> (batch, 3, 2 height, 2 width)."""
        return Enlarge(self.path)


class Enlarge(nn.Module):
    """The operator for a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, picture: Tensor) -> Tensor:
        return torch.ops.lssgen.enlarge(picture, str(self.path))


@torch.library.custom_op("lssgen::enlarge", mutates_args=())
def _enlarge(picture: Tensor, network: str) -> Tensor:
    (made,) = _opened(network).run(None, {_opened(network).get_inputs()[0].name: picture.numpy()})
    return torch.from_numpy(np.asarray(made))


@_enlarge.register_fake
def _(picture: Tensor, network: str) -> Tensor:
    del network
    batch, channels, height, width = picture.shape
    return picture.new_empty(batch, channels, 2 * height, 2 * width)


@cache
def _opened(network: str) -> Any:
    return session(Path(network), 0)


@cache
def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """How torch's exporter writes the operator; see `torch.onnx.export`."""
    # The exporter asks ONNX what any operator takes.
    tensor = onnx.defs.OpSchema.FormalParameter("picture", "tensor(float)")
    onnx.defs.register_schema(onnx.defs.OpSchema(OPERATOR, DOMAIN, 1, inputs=[tensor], outputs=[tensor]))
    operators = Opset(DOMAIN, 1)

    def enlarge(picture: object, network: str) -> object:
        del network
        return getattr(operators, OPERATOR)(picture)

    return {torch.ops.lssgen.enlarge.default: enlarge}


def read_network(path: Path) -> Network:
    """See that a file is a network that doubles pictures.

    Raises:
        ExportError: It is not: says what came, and what would fit.
    """
    network = Network(path, _sha256(path))
    model = _model(path)
    strangers = sorted({node.domain for node in model.graph.all_nodes()} - set(STANDARD))
    if strangers:
        raise ExportError(
            f"{path} uses operators of {', '.join(strangers)}, which not every backend has; export it with ONNX's own"
        )
    inputs, outputs = _ports(model)
    if len(inputs) != 1 or len(outputs) != 1:
        raise _unfit(path, f"takes {len(inputs)} inputs and gives {len(outputs)} outputs")
    (picture,) = inputs
    shape = [] if picture.shape is None else list(picture.shape)
    if picture.dtype != ir.DataType.FLOAT or outputs[0].dtype != ir.DataType.FLOAT:
        raise _unfit(path, f"takes {picture.dtype} and gives {outputs[0].dtype}")
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise _unfit(path, f"takes {_said(shape)}")
    if fixed := [axis for axis in (shape[0], *shape[2:]) if isinstance(axis, int)]:
        raise _unfit(path, f"takes pictures of one size or number only, {_said(shape)} ({len(fixed)} fixed axes)")
    given = (1, 3, *ANY_PX)
    made = _made(path, given)
    if made != (1, 3, 2 * ANY_PX[0], 2 * ANY_PX[1]):
        raise _unfit(path, f"makes {_said(made)} of {_said(given)}")
    return network


def _made(path: Path, given: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of what the network makes of a picture."""
    picture = torch.rand(given, generator=torch.Generator().manual_seed(0))
    try:
        return tuple(_enlarge(picture, str(path)).shape)
    except ProbeError as error:
        raise ExportError(f"{path} is not a network that ONNX Runtime opens: {error}") from error
    except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
        raise _unfit(path, f"fails on {_said(given)} ({str(error)[:200]})") from error


def _unfit(path: Path, what: str) -> ExportError:
    return ExportError(
        f"{path} {what}; a network for transitions takes float32 pictures (batch, 3, height, width) of any size and "
        "gives (batch, 3, 2 height, 2 width): export one of factor 2, for RGB, with free sizes"
    )


def _said(shape: Sequence[object]) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in shape) + ")"


def _sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            digest = hashlib.sha256(file.read())
        for name in sorted({str(tensor.location) for tensor in _outside(_model(path))}):
            with open_regular(path.parent / name) as file:
                digest.update(file.read())
    except OSError as error:
        raise ExportError(
            f"{path} cannot be read: {error}; give the ONNX file of a super-resolution network"
        ) from error
    return digest.hexdigest()


def _outside(model: ir.Model) -> list[ir.ExternalTensor]:
    """Weights that lie in files of their own."""
    values = (value.const_value for value in model.graph.initializers.values())
    return [value for value in values if isinstance(value, ir.ExternalTensor)]


def _model(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
        passes.InlinePass()(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's errors, and those of what it holds
        raise ExportError(f"{path} is not an ONNX file: {str(error)[:200]}") from error
    return model


def _ports(model: ir.Model) -> tuple[list[ir.Value], list[ir.Value]]:
    """Inputs but for weights, and outputs."""
    given = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    return given, list(model.graph.outputs)


def grafted(model: ir.Model, module: nn.Module, opset: int) -> None:
    """Put the nodes of every network in the place of its operator.

    Raises:
        ExportError: The network's operators cannot be brought to the opset.
    """
    networks = [part for part in module.modules() if isinstance(part, Enlarge)]
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OPERATOR)]
    for network, node in zip(networks, nodes, strict=True):
        _graft(model, node, _at_opset(network.path, opset))
    if nodes:
        model.graph.opset_imports.pop(DOMAIN, None)


def _at_opset(path: Path, opset: int) -> ir.Model:
    model = _model(path)
    # It remarks that it hands the work on to ONNX's own converter.
    logging.getLogger(version_converter.__name__).setLevel(logging.ERROR)
    try:
        version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:  # of the converter's many adapters
        raise ExportError(
            f"{path} has opset {model.opset_imports.get('')}, and cannot be brought to {opset}: {str(error)[:200]}; "
            "export it again with a newer one"
        ) from error
    if model.opset_imports.get("") != opset:
        raise ExportError(
            f"{path} has opset {model.opset_imports.get('')}, which cannot be brought to {opset}; export it again with "
            "a newer one"
        )
    return model


def _graft(model: ir.Model, node: ir.Node, network: ir.Model) -> None:
    graph = network.graph
    (picture,), (large,) = _ports(network)
    for value in graph.initializers.values():
        assert value.const_value is not None, "what a file holds as an initialiser has a value"
        # Copied: the file's own memory may not be written, which torch warns of.
        value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
    # Names of its own, so that none is taken for a weight of the checkpoint.
    for part in graph.all_nodes():
        part.name = f"sr.{part.name}"
        for value in part.outputs:
            value.name = f"sr.{value.name}"
    weights = list(graph.initializers.values())
    graph.initializers.clear()
    for value in weights:
        value.name = f"sr.{value.name}"
    source = node.inputs[0]
    assert source is not None, "the operator has one input"
    ir.convenience.replace_all_uses_with(picture, source)
    inner = list(graph)
    graph.remove(inner)
    model.graph.insert_before(node, inner)
    for value in weights:
        model.graph.initializers.add(value)
    ir.convenience.replace_all_uses_with(node.outputs[0], large)
    model.graph.remove(node)
