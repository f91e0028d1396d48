"""Where does it go wrong? Every tensor inside a graph, TensorRT against ONNX Runtime, through Polygraphy.

Marking a tensor as an output keeps it from being fused away, so what is compared here is not the engine that runs: it
finds the first layer that computes something else, and says nothing about speed or rounding of the real one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.parity import Verdict
from lssgen.bundle import Bundle
from lssgen.engines.demand import Demand, profiles_of
from lssgen.parity.accuracy import BOUNDS, relative_error
from lssgen.parity.samples import sample_inputs
from lssgen.ports import Array

_FLOATS = ("f", "V")  # bfloat16 is a void to NumPy


def graph_layers(bundle: Bundle, name: str) -> list[Verdict]:
    """Compare every tensor of a graph at the smallest of its sizes.

    Raises:
        ImportError: Polygraphy, onnx-graphsurgeon or TensorRT is not installed.
    """
    graph = bundle.manifest.graphs[name]
    axes = {axis: e.best for axis, e in profiles_of(bundle.manifest, Demand(graphs=(name,)))[name][0].axes.items()}
    inputs = sample_inputs(graph.inputs, axes)
    path = bundle.path(graph.file)
    runners = [onnxruntime_runner(path), tensorrt_runner(path, inputs)]
    label = f"{bundle.manifest.facts.name} {name} {graph.precision}, layer"
    return compared(label, runners, inputs, BOUNDS[graph.precision])


def compared(label: str, runners: Sequence[Any], inputs: Mapping[str, Array], bound: float) -> list[Verdict]:
    """A verdict for every tensor of floating-point numbers that both of two runners have, worst first."""
    from polygraphy.comparator import Comparator

    results = Comparator.run(list(runners), data_loader=[dict(inputs)])
    (_, (wanted, *_)), (engine, (got, *_)) = results.items()
    verdicts = [
        Verdict(what=f"{label} {name}", engine=engine, error=relative_error(_array(got[name]), value), bound=bound)
        for name, value in ((name, _array(wanted[name])) for name in wanted if name in got)
        if value.dtype.kind in _FLOATS
    ]
    return sorted(verdicts, key=lambda verdict: -verdict.error)


def onnxruntime_runner(path: Path) -> Any:
    """Every tensor of a graph on the CPU."""
    from polygraphy.backend.onnx import BytesFromOnnx, ModifyOutputs, OnnxFromPath
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.constants import MARK_ALL

    marked = ModifyOutputs(OnnxFromPath(str(path)), outputs=MARK_ALL)
    return OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(marked)), name="onnxruntime")


def tensorrt_runner(path: Path, inputs: Mapping[str, Array]) -> Any:
    """Every tensor of a graph in TensorRT, at the sizes of the inputs."""
    from polygraphy.backend import trt
    from polygraphy.constants import MARK_ALL

    profile = trt.Profile()
    for name, value in inputs.items():
        profile.add(name, min=value.shape, opt=value.shape, max=value.shape)
    network = trt.SetDecomposableAttentions(trt.NetworkFromOnnxPath(str(path), strongly_typed=True))
    marked = trt.ModifyNetworkOutputs(network, outputs=MARK_ALL)
    engine = trt.EngineFromNetwork(marked, config=trt.CreateConfig(profiles=[profile]))
    return trt.TrtRunner(engine, name="tensorrt")


def _array(value: Any) -> Array:
    return np.asarray(value)
