"""ONNX Runtime, on the CPU and on NVIDIA GPUs: the same code, with another device string.

A buffer is an OrtValue with a fixed address on the device, a binding is an IOBinding with every input and output
tied to such a value. Between two runs of a binding nothing is allocated, checked or copied. On a GPU, work goes through
the stream of a `Device` where cuda-bindings is installed, so that marks are events and times are the GPU's own.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lssgen.bundle import Bundle
from lssgen.engines.base import Binding, Buffer, GraphEngine, HostMark, Mark, check_buffers, check_part, see_graph
from lssgen.engines.demand import Demand
from lssgen.engines.memory import in_turn_bytes, megabytes, stays
from lssgen.engines.options import OrtCudaOptions, OrtOptions
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError
from lssgen.machine import at_most_cpus, free_memory
from lssgen.manifest import Graph
from lssgen.ort import ort
from lssgen.ports import Array

if TYPE_CHECKING:
    from lssgen.engines.cuda import Device

_LOG = logging.getLogger("lssgen")

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

HEAVY = frozenset(
    (
        "Attention", "MultiHeadAttention", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv",
        "ConvTranspose", "Softmax", "LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
        "GroupNormalization", "GroupNorm", "InstanceNormalization", "Gelu", "Resize",
    )
)  # fmt: skip
"""Operators that work on whole tensors of a network. Shape arithmetic belongs on the CPU, and is placed there."""

_SILENT = 4  # what ONNX Runtime would log, it also raises


class OrtBuffer:
    """A tensor that ONNX Runtime owns."""

    def __init__(self, value: ort.OrtValue, shape: Sequence[int], dtype: Any) -> None:
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)
        self.value = value

    @classmethod
    def new(cls, shape: Sequence[int], dtype: Any, device: str, device_id: int) -> "OrtBuffer":
        """A buffer on a device, contents undefined.

        Raises:
            BackendError: There is no room for it.
        """
        kind = np.dtype(dtype).type
        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), kind, device, device_id)
        except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
            raise BackendError(
                f"{device} has no room for a tensor of shape {tuple(shape)} ({megabytes(_bytes(shape, dtype))}); close "
                "other programs, use fewer pictures at a time or smaller ones"
            ) from error
        return cls(value, shape, dtype)

    @classmethod
    def over(cls, array: Array) -> "OrtBuffer":
        """A buffer in the memory of an array, which must live as long as it does."""
        return cls(ort.OrtValue.ortvalue_from_numpy(array), array.shape, array.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    def write(self, value: Array) -> None:
        if value.shape != self._shape:
            raise ShapeError(f"a buffer of shape {self._shape} was given an array of shape {value.shape}")
        self.value.update_inplace(np.ascontiguousarray(value, self._dtype))  # ONNX Runtime copies bytes, unseen

    def read(self) -> Array:
        return self.value.numpy().copy()  # on the CPU, numpy() is a view

    def write_part(self, first: int, values: Array) -> None:
        check_part(self._shape, first, values.size)
        every = self.value.numpy()
        every.reshape(-1)[first : first + values.size] = values.reshape(-1)
        if self.value.device_name() != "cpu":
            self.value.update_inplace(every)  # ONNX Runtime copies whole tensors only

    def read_part(self, first: int, count: int) -> Array:
        check_part(self._shape, first, count)
        return self.value.numpy().reshape(-1)[first : first + count].copy()


class OrtEngine(GraphEngine):
    """A graph of a bundle, and its session from `wake` to `sleep`; `lssgen.engines.base.Engine`.

    Args:
        backend: Opens the session.
        name: Name for messages.
        path: The ONNX file.
        graph: The graph's entry in the manifest.
    """

    def __init__(self, backend: "OrtBackend", name: str, path: Path, graph: Graph) -> None:
        super().__init__(name, graph)
        self._graph = graph
        self._backend = backend
        self._path = path
        self._session: ort.InferenceSession | None = None
        # Weak: bindings hold the engine, and live as long as their workspace.
        self._bindings: weakref.WeakSet[_OrtBinding] = weakref.WeakSet()
        self._closed = False
        self.stays = False

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        self._see_open("bound")
        check_buffers(self._name, (*self.inputs, *self.outputs), buffers)
        binding = _OrtBinding(self, {name: _own(buffer) for name, buffer in buffers.items()})
        self._bindings.add(binding)
        return binding

    def close(self) -> None:
        """Free the session for good."""
        self._closed = True
        self.sleep()

    def wake(self) -> ort.InferenceSession:
        """The session; opened now if there is none.

        Raises:
            EngineError: The engine was closed, or the graph cannot be loaded.
        """
        self._see_open("run")
        if self._session is None:
            # Before the session is opened: two large ones at once are what low-memory mode is against.
            self._backend.make_way(self)
            self._session = self._backend.open_session(self._path, self._name, fused=_fuses(self._graph))
        return self._session

    def sleep(self) -> None:
        """Free the session, and with it the weights. Bindings stay valid, and wake the engine."""
        for binding in self._bindings:
            # An IOBinding belongs to its session, and must not outlive it.
            binding.untie()
        self._session = None

    def _see_open(self, what: str) -> None:
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot be {what} any more; open the bundle again")


class _OrtBinding:
    """An engine with fixed buffers; tied to the session of the moment."""

    def __init__(self, engine: OrtEngine, buffers: Mapping[str, OrtBuffer]) -> None:
        self._engine = engine
        self._buffers = buffers  # an IOBinding does not keep its values alive
        self._tied: ort.IOBinding | None = None

    def __call__(self) -> None:
        session = self._engine.wake()
        if self._tied is None:
            self._tied = self._tie(session)
        try:
            session.run_with_iobinding(self._tied)
        except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
            shapes = ", ".join(f"{key}{list(buffer.shape)}" for key, buffer in self._buffers.items())
            raise EngineError(f"{self._engine.name} failed in ONNX Runtime with {shapes}: {error}") from error

    def untie(self) -> None:
        """The session goes."""
        self._tied = None

    def _tie(self, session: ort.InferenceSession) -> ort.IOBinding:
        tied = session.io_binding()
        for port in self._engine.inputs:
            tied.bind_ortvalue_input(port.name, self._buffers[port.name].value)
        for port in self._engine.outputs:
            tied.bind_ortvalue_output(port.name, self._buffers[port.name].value)
        return tied


class OrtEngines:
    """The engines of a bundle; `lssgen.engines.base.Engines`."""

    def __init__(self, backend: "OrtBackend", bundle: Bundle, demand: Demand) -> None:
        self._backend = backend
        self._bundle = bundle
        self._engines: dict[str, OrtEngine] = {}
        self.require(demand)

    def __getitem__(self, graph: str) -> OrtEngine:
        return self._engines[graph]

    def require(self, demand: Demand) -> None:
        graphs = demand.graphs or tuple(self._bundle.manifest.graphs)
        new = [graph for graph in graphs if graph not in self._engines]
        if not new:
            return
        for graph in new:
            entry = see_graph(self._bundle, graph)
            name = f"{self._bundle.manifest.facts.name}/{graph}"
            self._engines[graph] = OrtEngine(self._backend, name, self._bundle.path(entry.file), entry)
        self._weigh()
        if not self._backend.low_memory:
            self._wake(new)

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _weigh(self) -> None:
        """Say what the weights will take, and which networks are too small to be worth moving."""
        sizes = {graph: self._bundle.stored_bytes(graph) for graph in self._engines}
        if self._backend.device != "cpu":
            _LOG.info("%s", predicted(list(sizes.values()), low_memory=self._backend.low_memory))
        for graph, engine in self._engines.items():
            engine.stays = stays(sizes[graph], max(sizes.values()))

    def _wake(self, graphs: Sequence[str]) -> None:
        try:
            for graph in graphs:
                self._engines[graph].wake()
        except EngineError:
            for graph in graphs:
                # New ones only: what was there before stays, as `Engines.require` promises.
                self._engines.pop(graph).close()
            raise


class OrtBackend:
    """ONNX Runtime on one device; `lssgen.engines.base.Backend`.

    Args:
        options: How to run.
        provider: "CPUExecutionProvider" or "CUDAExecutionProvider".

    Raises:
        BackendError: The installed ONNX Runtime has no such provider.
    """

    def __init__(self, options: OrtOptions | None = None, provider: str = CPU) -> None:
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"the installed onnxruntime {ort.__version__} has no {provider}, only "
                f'{", ".join(ort.get_available_providers())}; for NVIDIA GPUs: pip install "lssgen[onnxruntime-gpu]"'
            )
        options = options or OrtOptions()
        self._options = replace(options, threads=at_most_cpus(options.threads, "threads", _LOG.warning))
        self._provider = provider
        self.device = "cuda" if provider == CUDA else "cpu"
        self._device_id = self._options.device_id if isinstance(self._options, OrtCudaOptions) else 0
        self._gpu = _gpu(self._device_id) if provider == CUDA else None
        # Weak: a bundle that nobody has any more shall not stay in memory for having run last.
        self._awake: weakref.ref[OrtEngine] | None = None

    @property
    def name(self) -> str:
        return "onnxruntime" if self.device == "cpu" else f"onnxruntime-{self.device}"

    @property
    def low_memory(self) -> bool:
        """Whether one large graph has a session at a time."""
        return self._options.low_memory

    def open(self, bundle: Bundle, demand: Demand) -> OrtEngines:
        return OrtEngines(self, bundle, demand)

    def make_way(self, engine: OrtEngine) -> None:
        """In low-memory mode: a large engine gets a session now, so the last one that did frees its own."""
        if self.low_memory and not engine.stays:
            awake = self._awake() if self._awake else None
            if awake is not None:
                awake.sleep()
            self._awake = weakref.ref(engine)

    def open_session(self, graph: Path, name: str, *, fused: bool = True) -> ort.InferenceSession:
        """Load a graph.

        Args:
            graph: The file.
            name: Name for messages.
            fused: Compute products of codes where the graph has them; else codes are decoded and then multiplied.

        Raises:
            BackendError: The graph's types or the provider's libraries do not fit this machine.
            BuildError: ONNX Runtime does not take the file.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._options.threads
        options.log_severity_level = _SILENT
        if not fused:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self.device != "cpu":
            # Without it, `_see_placement` is told nothing.
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = ort.InferenceSession(graph, options, providers=[(self._provider, self._settings())])
        except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
            # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : the reason".
            reason = str(error).rpartition(" : ")[2].strip()
            if "NOT_IMPLEMENTED" in str(error):
                raise BackendError(
                    f"{name} cannot run in ONNX Runtime on {self.device}: {reason}. It has no bfloat16 networks "
                    "on the CPU; export with --precision fp32 or fp16, or run on a GPU"
                ) from error
            raise BuildError(f"ONNX Runtime cannot load {name} from {graph}: {reason}") from error
        self._see_placement(session, name)
        return session

    def empty(self, shape: Sequence[int], dtype: Any) -> OrtBuffer:
        return OrtBuffer.new(shape, dtype, self.device, self._device_id)

    def mark(self) -> Mark:
        # The host's clock where no stream takes events: ONNX Runtime waits for its device at the end of every run.
        return HostMark() if self._gpu is None else self._gpu.event()

    def free_bytes(self) -> int | None:
        return free_memory() if self.device == "cpu" else None  # ONNX Runtime does not say what a GPU has left

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "onnxruntime": ort.__version__,
            "provider": self._provider,
            **asdict(self._options),
            **({} if self._gpu is None else self._gpu.describe()),
            "graph_optimization_level": ort.SessionOptions().graph_optimization_level.name,
        }

    def _settings(self) -> dict[str, str]:
        """Options of the provider. CUDA's TF32 is on unless told otherwise, and fp32 shall mean fp32."""
        if not isinstance(self._options, OrtCudaOptions):
            return {}
        settings = {"device_id": str(self._device_id), "use_tf32": str(int(self._options.tf32))}
        return settings if self._gpu is None else {**settings, "user_compute_stream": str(self._gpu.stream)}

    def _see_placement(self, session: ort.InferenceSession, name: str) -> None:
        """See that nothing heavy runs elsewhere than it should: a node without a kernel falls to the CPU in silence.

        Raises:
            BackendError: Names the nodes.
        """
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime fell back to {session.get_providers()[0]} for {name}: the libraries of "
                f"{self._provider} do not load; check the GPU driver, CUDA and cuDNN"
            )
        if self.device == "cpu":
            return
        strays = [
            f"{node.name} ({node.op_type})"
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != self._provider
            for node in part.get_nodes()
            if node.op_type in HEAVY
        ]
        if strays:
            raise BackendError(
                f"onnxruntime {ort.__version__} has no {self.device} kernel for {len(strays)} nodes of {name}, which "
                f"would run on the CPU: {', '.join(strays[:3])}; upgrade with pip install -U onnxruntime-gpu"
            )


def open_cpu(options: OrtOptions) -> OrtBackend:
    """The "onnxruntime" engine of the registry."""
    return OrtBackend(options, CPU)


def open_cuda(options: OrtCudaOptions) -> OrtBackend:
    """The "onnxruntime-cuda" engine of the registry."""
    return OrtBackend(options, CUDA)


def predicted(weights: Sequence[int], *, low_memory: bool) -> str:
    """What is known about a run's device memory before anything is loaded: the bytes of every graph's weights."""
    together, in_turn = megabytes(sum(weights)), megabytes(in_turn_bytes(weights))
    mode = f"{in_turn}, one network at a time" if low_memory else f"{together} ({in_turn} with --low-memory)"
    return f"predicted device memory: weights of {mode}; ONNX Runtime does not say what comes on top while it runs"


def _fuses(graph: Graph) -> bool:
    """Whether ONNX Runtime has products of the graph's codes. Of those in E4M3 it makes a graph that it refuses."""
    return graph.quantisation is None or graph.quantisation.format == "int8"


def _gpu(index: int) -> "Device | None":
    """The GPU as cuda-bindings shows it; None where that is not installed, or finds none: ONNX Runtime says why."""
    from lssgen.engines.cuda import Device  # only here: a run on a CPU reads nothing of GPUs

    try:
        return Device(index)
    except BackendError:
        return None


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return prod(shape) * np.dtype(dtype).itemsize


def _own(buffer: Buffer) -> OrtBuffer:
    if not isinstance(buffer, OrtBuffer):
        raise ShapeError(
            f"ONNX Runtime binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()"
        )
    return buffer
