"""OpenVINO on the CPU: bfloat16 where the processor has it and a probe allows it, compiled models kept on disk.

A buffer is host memory that OpenVINO reads and writes in place. A binding is an inference request with a tensor on
every port; between two runs nothing is allocated, checked or copied. A graph is compiled for each size it runs at,
with every axis fixed but those that follow the prompt's length: measured 1.1 times as fast as one compiled for all
sizes (`benchmarks/cpu/trials.py`).
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from lssgen import paths
from lssgen.bundle import Bundle
from lssgen.engines.base import Binding, Buffer, GraphEngine, HostBuffer, HostMark, check_buffers, see_graph
from lssgen.engines.cpu.choice import LARGE_BYTES
from lssgen.engines.cpu.kept import kept
from lssgen.engines.cpu.probe import ASKED_FOR, BOUNDS, CANDIDATES, Candidate, Finding, Probing, finding_of
from lssgen.engines.demand import Demand, open_axes
from lssgen.engines.memory import stays
from lssgen.engines.options import OvOptions
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError
from lssgen.machine import at_most_cpus, free_memory
from lssgen.manifest import Graph
from lssgen.ports import Array

_LOG = logging.getLogger("lssgen")

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Shape of every input, by port; -1 where it may change."""


class OvBuffer(HostBuffer):
    """Host memory, seen by NumPy and by OpenVINO."""

    def __init__(self, array: Array) -> None:
        super().__init__(array)
        self.tensor = ov.Tensor(array, shared_memory=True)


class OvEngine(GraphEngine):
    """A graph of a bundle, compiled when it is first bound; `lssgen.engines.base.Engine`.

    Args:
        backend: Compiles it.
        name: Name for messages.
        graph: The graph's entry in the manifest.
        source: Path of the ONNX file.
        how: Number format, and whether what is compiled is kept on disk.
        ranged: Axes that follow the prompt's length.
        static: Compile it for each size.
    """

    def __init__(
        self, backend: "OvBackend", name: str, graph: Graph, source: str, *, how: Candidate, ranged: frozenset[str],
        static: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, graph)
        self._backend = backend
        self._source = source
        self._how = how
        self._ranged = ranged
        self._static = static
        self._compiled: dict[Shapes, ov.CompiledModel] = {}
        self._bindings: weakref.WeakSet[_OvBinding] = weakref.WeakSet()
        self._closed = False
        self.stays = False

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        self._see_open("bound")
        check_buffers(self._name, (*self.inputs, *self.outputs), buffers)
        binding = _OvBinding(self, {name: _own(buffer) for name, buffer in buffers.items()})
        self._bindings.add(binding)
        if not self._backend.low_memory:
            binding.request()
        return binding

    def compiled(self, shapes: Mapping[str, tuple[int, ...]]) -> ov.CompiledModel:
        """The graph for these inputs.

        Raises:
            EngineError: It was closed, or OpenVINO refuses the graph.
        """
        self._see_open("run")
        key = self._key(shapes)
        if key not in self._compiled:
            self._backend.make_way(self)
            self._compiled[key] = self._backend.compile(self._source, self._name, key, self._how)
        return self._compiled[key]

    def sleep(self) -> None:
        """Free what is compiled. Bindings stay valid, and compile, or read, it again."""
        for binding in self._bindings:
            binding.untie()
        self._compiled.clear()

    def close(self) -> None:
        """Free everything for good."""
        self._closed = True
        self.sleep()

    def _key(self, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
        return tuple(
            (
                port.name,
                tuple(
                    -1 if isinstance(axis, str) and (axis in self._ranged or not self._static) else size
                    for axis, size in zip(port.shape, shapes[port.name], strict=True)
                ),
            )
            for port in self.inputs
        )

    def _see_open(self, what: str) -> None:
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot be {what} any more; open the bundle again")


class _OvBinding:
    """An engine with fixed buffers."""

    def __init__(self, engine: OvEngine, buffers: Mapping[str, OvBuffer]) -> None:
        self._engine = engine
        self._buffers = buffers  # a request does not keep the arrays of its tensors alive
        self._request: ov.InferRequest | None = None

    def __call__(self) -> None:
        request = self._request or self.request()
        try:
            request.start_async()  # `infer` would also copy every output
            request.wait()
        except Exception as error:  # OpenVINO raises RuntimeError for everything
            shapes = ", ".join(f"{key}{list(buffer.shape)}" for key, buffer in self._buffers.items())
            raise EngineError(f"{self._engine.name} failed in OpenVINO with {shapes}: {_reason(error)}") from error

    def request(self) -> ov.InferRequest:
        """The inference request with all tensors on it, made now if there is none."""
        shapes = {name: buffer.shape for name, buffer in self._buffers.items()}
        self._request = request = self._engine.compiled(shapes).create_infer_request()
        for name, buffer in self._buffers.items():
            request.set_tensor(name, buffer.tensor)
        return request

    def untie(self) -> None:
        """What was compiled goes."""
        self._request = None


class OvEngines:
    """The engines of a bundle; `lssgen.engines.base.Engines`."""

    def __init__(self, backend: "OvBackend", bundle: Bundle, demand: Demand) -> None:
        self._backend = backend
        self._bundle = bundle
        self._engines: dict[str, OvEngine] = {}
        self._ranged = open_axes(bundle.manifest)
        self.require(demand)

    def __getitem__(self, graph: str) -> OvEngine:
        return self._engines[graph]

    def require(self, demand: Demand) -> None:
        for graph in demand.graphs or tuple(self._bundle.manifest.graphs):
            if graph not in self._engines:
                self._engines[graph] = self._engine(graph)
        sizes = {graph: self._bundle.stored_bytes(graph) for graph in self._engines}
        for graph, engine in self._engines.items():
            engine.stays = stays(sizes[graph], max(sizes.values()))

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _engine(self, graph: str) -> OvEngine:
        entry = see_graph(self._bundle, graph)
        return OvEngine(
            self._backend,
            f"{self._bundle.manifest.facts.name}/{graph}",
            entry,
            str(self._bundle.path(entry.file)),
            how=self._backend.candidate_of(self._bundle, graph),
            ranged=self._ranged,
            # Compiled for each size, it is there as often, each time with weights of its own.
            static=entry.runs != "prompt" and self._bundle.stored_bytes(graph) <= LARGE_BYTES,
        )


class OvBackend:
    """OpenVINO on the CPU; `lssgen.engines.base.Backend`.

    Args:
        options: How to run.

    Raises:
        BackendError: OpenVINO has no CPU device here, or the processor does not compute in bf16 and was told to.
    """

    def __init__(self, options: OvOptions | None = None) -> None:
        options = options or OvOptions()
        self._options = replace(options, threads=at_most_cpus(options.threads, "threads", _LOG.warning))
        self._core = ov.Core()
        if "CPU" not in self._core.available_devices:
            raise BackendError(f"openvino {ov.get_version()} finds no CPU it can use on this machine")
        self._has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if options.inference_precision == "bf16" and not self._has_bf16:
            raise BackendError(
                f"{self.processor} does not compute in bf16; leave --inference-precision at auto, or take fp32"
            )
        self._awake: weakref.ref[OvEngine] | None = None
        self._chosen: dict[str, Candidate] = {}
        self._told = False
        self.findings: dict[str, Finding] = {}

    @property
    def name(self) -> str:
        return "openvino"

    @property
    def low_memory(self) -> bool:
        """Whether one large graph is compiled at a time."""
        return self._options.low_memory

    @property
    def processor(self) -> str:
        """The processor's name."""
        return str(self._core.get_property("CPU", "FULL_DEVICE_NAME"))

    def open(self, bundle: Bundle, demand: Demand) -> OvEngines:
        return OvEngines(self, bundle, demand)

    def empty(self, shape: Sequence[int], dtype: Any) -> OvBuffer:
        return OvBuffer(np.empty(shape, dtype))

    def mark(self) -> HostMark:
        return HostMark()

    def free_bytes(self) -> int | None:
        return free_memory()

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "openvino": ov.get_version(),
            "processor": self.processor,
            **asdict(self._options),
            "components": {graph: str(how) for graph, how in self._chosen.items()},
        }

    def candidate_of(self, bundle: Bundle, graph: str) -> Candidate:
        """How a component is computed: the best that was asked for and that a probe, now or earlier, found right."""
        if graph not in self._chosen:
            run = self._tried(bundle, graph)
            found = finding_of(bundle, graph, Probing(ov.get_version(), self.processor, self._candidates, run))
            self.findings[graph] = found
            bounds = BOUNDS if self._options.inference_precision == "auto" else ASKED_FOR
            self._chosen[graph] = found.best(self._candidates, bounds)
        return self._chosen[graph]

    @property
    def _candidates(self) -> tuple[Candidate, ...]:
        """Those that the options and the processor allow."""
        wanted = self._options.inference_precision
        formats = {"bf16": ("bf16",), "fp32": ("f32",), "auto": ("bf16", "f32") if self._has_bf16 else ("f32",)}[wanted]
        return tuple(one for one in CANDIDATES if one.format in formats)

    def compile(self, source: str, name: str, shapes: Shapes, how: Candidate) -> ov.CompiledModel:
        """Read and compile a graph, or take what was compiled on an earlier day.

        Raises:
            BuildError: OpenVINO refuses it.
        """
        try:
            model = self._core.read_model(source)
            model.reshape({port: ov.PartialShape(list(shape)) for port, shape in shapes})
            return self._compiled(model, self._settings(how), self._folder(source, shapes, how))
        except Exception as error:
            raise BuildError(f"OpenVINO cannot compile {name} from {source}: {_reason(error)}") from error

    def _compiled(self, model: ov.Model, settings: dict[str, Any], folder: Path | None) -> ov.CompiledModel:
        """A model, from its folder where it is kept there, or compiled into it."""
        if folder is None:
            return self._core.compile_model(model, "CPU", settings)
        with kept(folder, self._tell_once) as place:
            if place is not None:
                try:
                    return self._core.compile_model(model, "CPU", {**settings, "CACHE_DIR": str(place)})
                except Exception as error:  # a full disk, perhaps: if the model is to blame, it is refused below too
                    self._tell_once(f"a compiled model cannot be kept in {place}: {_reason(error)}")
            return self._core.compile_model(model, "CPU", settings)

    def _tell_once(self, said: str) -> None:
        if not self._told:
            _LOG.warning("%s", said)
        self._told = True

    def make_way(self, engine: OvEngine) -> None:
        """In low-memory mode: a large engine is compiled now, so the last one that was frees its own."""
        if self.low_memory and not engine.stays:
            awake = self._awake() if self._awake else None
            if awake is not None and awake is not engine:
                awake.sleep()
            self._awake = weakref.ref(engine)

    def _settings(self, how: Candidate) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": how.format,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if self._options.threads:
            settings["INFERENCE_NUM_THREADS"] = self._options.threads
        return settings

    def _folder(self, source: str, shapes: Shapes, how: Candidate) -> Path | None:
        """Where the compiled model is kept; None where it is not."""
        if not how.kept:
            return None
        # A folder for each: models that share one can spoil each other, see `lssgen.engines.cpu.probe`.
        settings = sorted(self._settings(how).items())
        said = repr((source, Path(source).stat().st_mtime_ns, shapes, settings, ov.get_version()))
        return paths.engines() / "openvino" / sha256(said.encode()).hexdigest()[:32]

    def _tried(self, bundle: Bundle, graph: str) -> Any:
        """A function that computes a graph as a candidate says, for the probe."""
        entry = bundle.manifest.graphs[graph]

        def run(how: Candidate, inputs: Mapping[str, Array]) -> dict[str, Array]:
            shapes = tuple((name, value.shape) for name, value in inputs.items())
            compiled = self.compile(str(bundle.path(entry.file)), graph, shapes, how)
            made = compiled.create_infer_request().infer(dict(inputs))
            return {port.name: np.array(made[port.name]) for port in entry.outputs}

        return run


def open_openvino(options: OvOptions) -> OvBackend:
    """The "openvino" engine of the registry."""
    return OvBackend(options)


def _own(buffer: Buffer) -> OvBuffer:
    if not isinstance(buffer, OvBuffer):
        raise ShapeError(f"OpenVINO binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()")
    return buffer


def _reason(error: Exception) -> str:
    """OpenVINO's words without its own source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check "))]
    return " ".join(told or lines)[:300]
