"""ONNX Runtime, on the CPU and on NVIDIA GPUs: the same code, with another device string.

A buffer is an OrtValue with a fixed address on the device, a binding is an IOBinding with every input and output
tied to such a value. Between two runs of a binding nothing is allocated, checked or copied.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lssgen.bundle import Graph
from lssgen.engines.base import Binding, Buffer, check_buffers
from lssgen.engines.graphs import bundle_of, stored_bytes
from lssgen.engines.options import EngineOptions
from lssgen.engines.trt.fit import in_turn_bytes, stays
from lssgen.engines.trt.report import megabytes
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError
from lssgen.ports import Array, Port

_LOG = logging.getLogger("lssgen")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_SILENT = 4  # what ONNX Runtime would log, it also raises


class OrtBuffer:
    """A tensor that ONNX Runtime owns."""

    def __init__(self, shape: Sequence[int], dtype: Any, device: str, device_id: int) -> None:
        self._shape = tuple(shape)
        self._dtype = np.dtype(dtype)
        self.value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), self._dtype.type, device, device_id)

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


class OrtEngine:
    """A graph, and its session from `wake` to `sleep`; `lssgen.engines.base.Engine`.

    Args:
        backend: Opens the session.
        name: For messages.
        path: The ONNX file.
        known: The graph's entry in the manifest, for a graph that need not be loaded now; else its ports are asked
            of a session.
        stays: Whether it keeps its session in low-memory mode.
    """

    def __init__(self, backend: "OrtBackend", name: str, path: Path, *, known: Graph | None, stays: bool) -> None:
        self._backend = backend
        self._name = name
        self._path = path
        self.stays = stays
        self._session: ort.InferenceSession | None = None
        self._bindings: weakref.WeakSet[_OrtBinding] = weakref.WeakSet()
        self._closed = False
        if known is None:
            session = self.wake()
            self._inputs = tuple(_port(value) for value in session.get_inputs())
            self._outputs = tuple(_port(value) for value in session.get_outputs())
        else:
            self._inputs, self._outputs = known.inputs, known.outputs

    @property
    def name(self) -> str:
        return self._name

    @property
    def inputs(self) -> tuple[Port, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self._outputs

    def bind(self, buffers: Mapping[str, Buffer]) -> Binding:
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot be bound any more; load it again")
        check_buffers(self._name, (*self._inputs, *self._outputs), buffers)
        binding = _OrtBinding(self, {name: _own(buffer) for name, buffer in buffers.items()})
        self._bindings.add(binding)
        return binding

    def close(self) -> None:
        self._closed = True
        self.sleep()

    def wake(self) -> ort.InferenceSession:
        """The session; opened now if there is none.

        Raises:
            EngineError: The engine was closed, or the graph cannot be loaded.
        """
        if self._closed:
            raise EngineError(f"{self._name} was closed and cannot run any more; load it again")
        if self._session is None:
            self._backend.make_way(self)
            self._session = self._backend.open_session(self._path, self._name)
        return self._session

    def sleep(self) -> None:
        """Free the session, and with it the weights. Bindings stay valid, and wake the engine."""
        for binding in self._bindings:
            binding.untie()
        self._session = None


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


class OrtBackend:
    """ONNX Runtime on one device.

    Args:
        provider: "CPUExecutionProvider" or "CUDAExecutionProvider".
        threads: CPU threads of one operator; 0 lets ONNX Runtime use every core.
        device_id: Which GPU.
        low_memory: Keep the session of one large graph at a time. A graph of a bundle is then loaded when it first
            runs, and not before.

    Raises:
        BackendError: The installed ONNX Runtime has no such provider.
    """

    def __init__(
        self,
        provider: str = "CPUExecutionProvider",
        *,
        threads: int = 0,
        device_id: int = 0,
        low_memory: bool = False,
    ) -> None:
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"the installed onnxruntime {ort.__version__} has no {provider}, only "
                f'{", ".join(ort.get_available_providers())}; for NVIDIA GPUs: pip install "lssgen[onnxruntime-gpu]"'
            )
        self._provider = provider
        self._threads = threads
        self._device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
        self._device_id = device_id
        self._low_memory = low_memory
        self._awake: weakref.ref[OrtEngine] | None = None
        self._told: set[Path] = set()

    @property
    def name(self) -> str:
        return "onnxruntime" if self._device == "cpu" else f"onnxruntime-{self._device}"

    def load(self, graph: Path, *, name: str) -> OrtEngine:
        asked = self._low_memory or self._device != "cpu"  # for sizes; else the start is not held up by the manifest
        found = bundle_of(graph) if asked else None
        if found is None:
            return OrtEngine(self, name, graph, known=None, stays=False)
        bundle, own = found
        weights = {each: stored_bytes(bundle, part) for each, part in bundle.manifest.graphs.items()}
        if self._device != "cpu" and bundle.folder not in self._told:
            self._told.add(bundle.folder)
            _LOG.info("%s", predicted(list(weights.values()), low_memory=self._low_memory))
        known = bundle.manifest.graphs[own] if self._low_memory else None
        return OrtEngine(self, name, graph, known=known, stays=stays(weights[own], max(weights.values())))

    def make_way(self, engine: OrtEngine) -> None:
        """In low-memory mode: a large engine gets a session now, so the last one that did frees its own."""
        if self._low_memory and not engine.stays:
            awake = self._awake() if self._awake else None
            if awake is not None:
                awake.sleep()
            self._awake = weakref.ref(engine)

    def open_session(self, graph: Path, name: str) -> ort.InferenceSession:
        """Load a graph.

        Raises:
            BackendError: The graph's types or the provider's libraries do not fit this machine.
            BuildError: The file is no graph that ONNX Runtime takes.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = _SILENT
        settings = {} if self._device == "cpu" else {"device_id": str(self._device_id)}
        try:
            session = ort.InferenceSession(graph, options, providers=[(self._provider, settings)])
        except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
            reason = str(error).rpartition(" : ")[2].strip()
            if "NOT_IMPLEMENTED" in str(error):
                raise BackendError(
                    f"{name} cannot run in ONNX Runtime on {self._device}: {reason}. It has no bfloat16 networks "
                    "on the CPU; export with --precision fp32 or fp16, or run on a GPU"
                ) from error
            raise BuildError(f"ONNX Runtime cannot load {name} from {graph}: {reason}") from error
        if session.get_providers()[0] != self._provider:
            raise BackendError(
                f"ONNX Runtime fell back to {session.get_providers()[0]} for {name}: the libraries of "
                f"{self._provider} do not load; check the GPU driver, CUDA and cuDNN"
            )
        return session

    def empty(self, shape: Sequence[int], dtype: Any) -> OrtBuffer:
        return OrtBuffer(shape, dtype, self._device, self._device_id)

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "onnxruntime": ort.__version__,
            "provider": self._provider,
            "device_id": self._device_id,
            "threads": self._threads,
            "low_memory": self._low_memory,
            "graph_optimization_level": ort.SessionOptions().graph_optimization_level.name,
        }


def open_cpu(options: EngineOptions) -> OrtBackend:
    """The "onnxruntime" engine of the registry; there is one CPU, whatever `device_id` says."""
    return OrtBackend("CPUExecutionProvider", threads=options.threads, low_memory=options.low_memory)


def open_cuda(options: EngineOptions) -> OrtBackend:
    """The "onnxruntime-cuda" engine of the registry."""
    return OrtBackend(
        "CUDAExecutionProvider",
        threads=options.threads,
        device_id=options.device_id,
        low_memory=options.low_memory,
    )


def predicted(weights: Sequence[int], *, low_memory: bool) -> str:
    """What is known about a run's device memory before anything is loaded: the bytes of every graph's weights."""
    together, in_turn = megabytes(sum(weights)), megabytes(in_turn_bytes(weights))
    mode = f"{in_turn}, one network at a time" if low_memory else f"{together} ({in_turn} with --low-memory)"
    return f"predicted device memory: weights of {mode}; ONNX Runtime does not say what comes on top while it runs"


def _own(buffer: Buffer) -> OrtBuffer:
    if not isinstance(buffer, OrtBuffer):
        raise ShapeError(
            f"ONNX Runtime binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()"
        )
    return buffer


def _port(value: Any) -> Port:
    if value.type not in _DTYPES:
        raise BackendError(f"port {value.name} has type {value.type}; ports are one of {', '.join(_DTYPES.values())}")
    shape = tuple(f"{value.name}.{axis}" if size is None else size for axis, size in enumerate(value.shape))
    return Port(value.name, _DTYPES[value.type], shape)
