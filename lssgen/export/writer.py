"""A torch module becomes an ONNX graph, without its weights ever being in memory.

The module is traced on fake tensors. In the exporter's graph its weights are then free variables, so no rewrite can
depend on their values: one architecture gives one graph, whatever the checkpoint, and the same parameter has the same
name in both. Last, the weights are streamed from the checkpoint into one file beside the graph, a tensor at a time.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lssgen.bundle import sha256_of
from lssgen.errors import ExportError
from lssgen.export.data import INLINE_BYTES, TORCH_TYPES, write_data
from lssgen.export.passes.concats import cast_concat_inputs
from lssgen.export.passes.einsums import replace_permuting_einsums
from lssgen.export.passes.names import name_nodes
from lssgen.export.passes.norms import match_norm_scales
from lssgen.export.passes.optimise import optimise
from lssgen.export.passes.transposes import fold_transposes
from lssgen.export.super_resolution import grafted, translations
from lssgen.export.weights import Weights, fitting, tensors_of
from lssgen.ports import Port

OPSET = 23
"""First with Attention and RMSNormalization; with 24 the exporter no longer finds RMSNormalization in SD3."""

Axes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A graph on disk.

    Attributes:
        inputs, outputs: Ports of the graph.
        files: The ONNX file and, where it has weights, its data file; both lie in one folder.
        sha256: Hash of every file, by name.
        transposed: Initialisers that hold the transpose of the checkpoint's tensor of that name.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    files: tuple[Path, ...]
    sha256: Mapping[str, str]
    transposed: tuple[str, ...]


@contextlib.contextmanager
def weightless(dtype: torch.dtype) -> Generator[None]:
    """Inside, modules are built without memory for their parameters, which take `dtype` where they are floating point.

    Buffers stay real and keep their types: a module computes them itself (position tables, frequencies).
    """
    # Not torch.device("meta"): buffers would be lost with it, which no checkpoint has.
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            cast = dtype if param.is_floating_point() else param.dtype
            param = nn.Parameter(param.detach().to("meta", cast), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def write_graph(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Axes, path: Path, weights: Weights
) -> Written:
    """Export a module as `path` and a `.data` file beside it.

    Args:
        module: Takes exactly `inputs`, in their order, and returns one tensor per name in `outputs`. Parameters on the
            meta device (see `weightless`) come from `weights`, under their names in the module; real ones stay.
        inputs: A sample for every input port; only type and sizes count. Sizes on unlike axes should differ.
        outputs: Names of the output ports.
        axes: Shape of every port; a string is a dynamic axis, equal strings are equal sizes. Sizes that follow from
            others (2 * height) get the name that the output's shape gives them.
        path: The ONNX file to write; its folder exists.
        weights: The checkpoint.

    Raises:
        ModelError: The checkpoint does not fit the module, or holds NaN.
        ProbeError: A weight is too large for the type that it has in the module.
        ExportError: The module cannot be exported with these axes; nothing is left on disk.
    """
    weights = weights.fit(module)
    module.eval()
    model = _traced(module, inputs, outputs, axes, path.stem)
    grafted(model, module, OPSET)
    free = _free_parameters(model, module, weights)
    with _quiet():
        optimise(model)
    replace_permuting_einsums(model)
    cast_concat_inputs(model)
    match_norm_scales(model)
    transposed = fold_transposes(model, [value for value, _ in free])
    values = _bind(model, free)
    ports = _name_axes(model, axes)
    name_nodes(model)
    model.metadata_props["lssgen.transposed"] = json.dumps(sorted(transposed))
    try:
        sha256 = _save(model, path, values, transposed, weights)
    except BaseException as error:  # Ctrl-C too: half a data file may be gigabytes
        for file in (path, path.with_suffix(".data")):
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ExportError(
                f"{path} cannot be written: {error.strerror}; make room, or choose another folder"
            ) from error
        raise
    return Written(
        inputs=ports[: len(inputs)],
        outputs=ports[len(inputs) :],
        files=tuple(path.with_name(name) for name in sha256),
        sha256=sha256,
        transposed=tuple(sorted(transposed)),
    )


def _traced(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], axes: Axes, name: str) -> ir.Model:
    try:
        # Buffers are real, since modules compute them while they are built.
        with _quiet(), torch.no_grad(), faked(module, FakeTensorMode(allow_non_fake_inputs=True)):
            made = torch.onnx.export(
                _exported(module, tuple(inputs.values()), [axes[port] for port in inputs]),
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=dict(translations()),
                optimize=False,  # `optimise` follows: the exporter's own look at weights, and take minutes for SD3
                verbose=False,
                input_names=list(inputs),
                output_names=list(outputs),
            )
    except Exception as error:
        raise ExportError(f"{name} cannot be exported: {_reason(error)}") from error
    assert made is not None
    return made.model


def _reason(error: BaseException) -> str:
    """The first cause, which says what is wrong; the exporter wraps it into advice for its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).strip().splitlines()[:2])}"


def _exported(
    module: nn.Module, inputs: tuple[Tensor, ...], axes: Sequence[tuple[int | str, ...]]
) -> torch.export.ExportedProgram:
    """Trace with every named axis dynamic. The tracer finds out which are equal or multiples of others.

    Told the names, it would trace a third faster, but fail where an axis must be a multiple of something.
    """
    dynamic = tuple(
        {at: torch.export.Dim.DYNAMIC for at, axis in enumerate(port) if isinstance(axis, str)} for port in axes
    )
    # backed_size_oblivious: a sample size of 1 does not make an axis static.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # pyright: ignore
        return torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)


@contextlib.contextmanager
def faked(module: nn.Module, mode: FakeTensorMode) -> Generator[None]:
    """Inside, meta parameters are fake CPU ones, so that they mix with real buffers and inputs; ties stay ties."""
    fakes: dict[int, nn.Parameter] = {}
    saved: list[tuple[nn.Module, dict[str, Any]]] = []
    for part in module.modules():
        parameters = part._parameters  # pyright: ignore[reportPrivateUsage]
        saved.append((part, dict(parameters)))
        for key, parameter in parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            if id(parameter) not in fakes:
                with mode:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                fakes[id(parameter)] = nn.Parameter(fake, requires_grad=False)
            parameters[key] = fakes[id(parameter)]
    try:
        yield
    finally:
        for part, parameters in saved:
            part._parameters.update(parameters)  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """The exporter remarks on packages that are not installed and on its own deprecations."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


Free = tuple[ir.Value, ir.TensorProtocol | None]
"""A parameter as an input of the graph, and its value where the module itself holds it; None: the checkpoint does."""


def _free_parameters(model: ir.Model, module: nn.Module, weights: Weights) -> list[Free]:
    """Turn parameters, and buffers that the checkpoint has, into inputs under the names they have in the checkpoint."""
    graph = model.graph
    free: list[Free] = []
    for names, tensor in tensors_of(module):
        stored = next((name for name in names if name in weights), None)
        if stored is None and not isinstance(tensor, nn.Parameter):
            continue
        for name in names:
            if name in graph.initializers:
                value = graph.initializers.pop(name)
                value.name = stored or name
                free.append((value, None if stored else value.const_value))
                value.const_value = None
                graph.inputs.append(value)
    return free


def _bind(model: ir.Model, free: Sequence[Free]) -> list[ir.Value]:
    """Parameters that the graph still reads become initialisers; returns those to be stored outside of it."""
    graph = model.graph
    for value, own in free:
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = own
            graph.initializers.add(value)
    return [
        value
        for value in graph.initializers.values()
        if value.const_value is None or (value.const_value.nbytes > INLINE_BYTES and not _are_sizes(value.const_value))
    ]


def _are_sizes(constant: ir.TensorProtocol) -> bool:
    """Whether it may be a list of sizes, which engines read inside the graph alone, to infer its shapes."""
    return constant.dtype == ir.DataType.INT64 and len(constant.shape) == 1


def _name_axes(model: ir.Model, axes: Axes) -> tuple[Port, ...]:
    """Give the ports their shapes, and take from all else the shapes that the tracer guessed from its sample."""
    graph = model.graph
    for node in graph.all_nodes():
        for value in node.outputs:
            # The sample's sizes: ONNX Runtime warns of them at every other size.
            if not value.is_graph_output():
                value.shape = None
    ports: list[Port] = []
    for value in (*graph.inputs, *graph.outputs):
        assert value.name is not None
        assert value.dtype is not None
        assert value.shape is not None
        asked = axes[value.name]
        if len(asked) != len(value.shape) or any(
            isinstance(axis, int) and isinstance(size, int) and axis != size
            for axis, size in zip(asked, value.shape, strict=True)
        ):
            raise ExportError(f"{value.name} has shape {value.shape}, which does not fit {list(asked)}")
        value.shape = ir.Shape(asked)
        ports.append(Port(value.name, value.dtype.numpy().name, asked))
    return tuple(ports)


def _save(
    model: ir.Model, path: Path, values: Sequence[ir.Value], transposed: set[str], weights: Weights
) -> dict[str, str]:
    """Write the data file, then the graph that points into it; returns the hash of each by its name."""

    def slabs(value: ir.Value) -> Iterator[Tensor]:
        assert value.name is not None
        assert value.dtype is not None
        dtype = TORCH_TYPES[value.dtype]
        if value.const_value is not None:
            own = np.ascontiguousarray(value.const_value.numpy())
            whole = torch.from_numpy(own.view(np.uint8)).view(dtype)  # by bytes: torch does not know NumPy's bfloat16
            yield whole.T if value.name in transposed else whole
        elif value.name in transposed:
            yield fitting(value.name, weights.tensor(value.name, dtype)).T
        else:
            for slab in weights.slabs(value.name, dtype):
                yield fitting(value.name, slab)

    sha256: dict[str, str] = {}
    if values:
        data = path.with_suffix(".data")
        sha256[data.name] = write_data(values, slabs, data)
    ir.save(model, path)
    return {path.name: sha256_of(path), **sha256}
