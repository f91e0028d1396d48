"""What ONNX Runtime does with a graph on a GPU: where its nodes run, what TF32 changes, what a launch costs.

One call of the step is timed by the host's clock, by events on the device, and as a CUDA graph of ONNX Runtime's own
(`enable_cuda_graph`), which lssgen does not use: it wants every shape to be fixed before the session opens.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import Backend
from lssgen.engines.demand import Demand, profiles_of
from lssgen.engines.onnxruntime import CUDA, OrtBackend
from lssgen.engines.registry import open_backend
from lssgen.errors import LssgenError
from lssgen.ort import ort
from lssgen.parity.accuracy import relative_error
from lssgen.parity.samples import sample_inputs, shape_of
from lssgen.ports import Array

CALLS, WARM_UP = 30, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a graph's nodes run.

    Attributes:
        what: Model, graph and precision.
        nodes: Number of nodes by provider.
        elsewhere: Number of nodes that do not run on the GPU, by operator.
        note: Reason why there is nothing.
    """

    what: str
    nodes: Mapping[str, int] = field(default_factory=dict[str, int])
    elsewhere: Mapping[str, int] = field(default_factory=dict[str, int])
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One call of a step.

    Attributes:
        what: Model, precision and sizes.
        ms: Milliseconds, medians, by what measured them.
        error: Relative error of what comes out against the plain call, by what was changed.
        note: Reasons why something is missing.
    """

    what: str
    ms: Mapping[str, float]
    error: Mapping[str, float]
    note: str = ""


def placements(bundle: Bundle, backend: OrtBackend) -> Iterator[Placed]:
    """Every graph of a bundle."""
    for name, graph in bundle.manifest.graphs.items():
        what = f"{bundle.manifest.facts.name} {name} {graph.precision}"
        try:
            session = backend.open_session(bundle.path(graph.file), what)
        except LssgenError as error:
            yield Placed(what=what, note=str(error))
            continue
        parts = session.get_provider_graph_assignment_info()
        nodes, elsewhere = Counter[str](), Counter[str]()
        for part in parts:
            operators = [node.op_type for node in part.get_nodes()]
            nodes[part.ep_name] += len(operators)
            elsewhere.update(operators if part.ep_name != CUDA else ())
        yield Placed(what=what, nodes=dict(nodes), elsewhere=dict(elsewhere.most_common()))


def launches(bundle: Bundle, backend: Backend) -> Iterator[Launched]:
    """The step at every resolution."""
    graph = bundle.manifest.graphs["step"]
    for profile in profiles_of(bundle.manifest, Demand())["step"]:
        sizes = {axis: extent.best for axis, extent in profile.axes.items()}
        inputs = sample_inputs(graph.inputs, sizes)
        plain, ms = _plain(bundle, backend, inputs, sizes)
        errors: dict[str, float] = {}
        notes: list[str] = []
        if graph.precision == "fp32":
            loose, also = _plain(bundle, open_backend(backend.name, tf32=True), inputs, sizes)
            errors["TF32"], ms["TF32, events"] = _worst(loose, plain), also["events"]
        try:
            replayed, ms["CUDA graph"] = _replayed(bundle, inputs, sizes)
            errors["CUDA graph"] = _worst(replayed, plain)
        except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
            notes.append(f"no CUDA graph: {' '.join(str(error).split())[:300]}")
        what = f"{bundle.manifest.facts.name} step {graph.precision} at {profile}"
        yield Launched(what=what, ms=ms, error=errors, note="; ".join(notes))


def _worst(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    return max(relative_error(got[name], value) for name, value in wanted.items())


def _plain(
    bundle: Bundle, backend: Backend, inputs: Mapping[str, Array], sizes: Mapping[str, int]
) -> tuple[dict[str, Array], dict[str, float]]:
    """What the backend computes, and milliseconds of a call by the host's clock and by its marks."""
    engines = backend.open(bundle, Demand(graphs=("step",)))
    engine = engines["step"]
    buffers = {name: backend.empty(value.shape, value.dtype) for name, value in inputs.items()}
    for name, value in inputs.items():
        buffers[name].write(value)
    results = {port.name: backend.empty(shape_of(port, sizes), port.dtype) for port in engine.outputs}
    call = engine.bind({**buffers, **results})
    host: list[float] = []
    device: list[float] = []
    for _ in range(WARM_UP + CALLS):
        began, begin = perf_counter(), backend.mark()
        call()
        end = backend.mark()
        end.wait()
        host.append(perf_counter() - began)
        device.append(end.seconds_since(begin))
    found = {name: buffer.read() for name, buffer in results.items()}
    engines.close()
    return found, {"host": 1e3 * median(host[WARM_UP:]), "events": 1e3 * median(device[WARM_UP:])}


def _replayed(bundle: Bundle, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> tuple[dict[str, Array], float]:
    """What a step gives that ONNX Runtime has captured, and milliseconds of a replay."""
    graph = bundle.manifest.graphs["step"]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    settings = {"enable_cuda_graph": "1", "use_tf32": "0"}
    session = ort.InferenceSession(bundle.path(graph.file), options, providers=[(CUDA, settings)])
    tied = session.io_binding()
    given = {name: ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for name, value in inputs.items()}
    results: dict[str, Any] = {
        port.name: ort.OrtValue.ortvalue_from_shape_and_type(
            list(shape_of(port, sizes)), np.dtype(port.dtype).type, "cuda", 0
        )
        for port in graph.outputs
    }
    for name, value in given.items():
        tied.bind_ortvalue_input(name, value)
    for name, value in results.items():
        tied.bind_ortvalue_output(name, value)
    ms = _median_ms(lambda: session.run_with_iobinding(tied))
    return {name: value.numpy() for name, value in results.items()}, ms


def _median_ms(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(WARM_UP + CALLS):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return 1e3 * median(times[WARM_UP:])
