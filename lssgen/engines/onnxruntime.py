"""ONNX Runtime, on the CPU and on NVIDIA GPUs: the same code, with another device string.

A buffer is an OrtValue with a fixed address on the device, a binding is an IOBinding with every input and output
tied to such a value. Between two runs of a binding nothing is allocated, checked or copied.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lssgen.engines.base import Array, Binding, Buffer, Port, check_buffers
from lssgen.errors import BackendError, BuildError, EngineError, ShapeError

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
    """A session; `lssgen.engines.base.Engine`."""

    def __init__(self, name: str, session: ort.InferenceSession) -> None:
        self._name = name
        self._session: ort.InferenceSession | None = session
        self._inputs = tuple(_port(value) for value in session.get_inputs())
        self._outputs = tuple(_port(value) for value in session.get_outputs())

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
        check_buffers(self._name, (*self._inputs, *self._outputs), buffers)
        session, name = self._session, self._name
        if session is None:
            raise EngineError(f"{name} was closed and cannot be bound any more; load it again")
        tied = session.io_binding()
        for port in self._inputs:
            tied.bind_ortvalue_input(port.name, _value(buffers[port.name]))
        for port in self._outputs:
            tied.bind_ortvalue_output(port.name, _value(buffers[port.name]))
        kept = dict(buffers)  # an IOBinding does not keep its values alive

        def run() -> None:
            try:
                session.run_with_iobinding(tied)
            except Exception as error:  # ONNX Runtime has a dozen unrelated exception classes
                shapes = ", ".join(f"{key}{list(buffer.shape)}" for key, buffer in kept.items())
                raise EngineError(f"{name} failed in ONNX Runtime with {shapes}: {error}") from error

        return run

    def close(self) -> None:
        self._session = None


class OrtBackend:
    """ONNX Runtime on one device.

    Args:
        provider: "CPUExecutionProvider" or "CUDAExecutionProvider".
        threads: CPU threads of one operator; 0 lets ONNX Runtime use every core.
        device_id: Which GPU.

    Raises:
        BackendError: The installed ONNX Runtime has no such provider.
    """

    def __init__(self, provider: str = "CPUExecutionProvider", *, threads: int = 0, device_id: int = 0) -> None:
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"the installed onnxruntime {ort.__version__} has no {provider}, only "
                f'{", ".join(ort.get_available_providers())}; for NVIDIA GPUs: pip install "lssgen[onnxruntime-gpu]"'
            )
        self._provider = provider
        self._threads = threads
        self._device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
        self._device_id = device_id

    @property
    def name(self) -> str:
        return "onnxruntime" if self._device == "cpu" else f"onnxruntime-{self._device}"

    def load(self, graph: Path, *, name: str) -> OrtEngine:
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
        return OrtEngine(name, session)

    def empty(self, shape: Sequence[int], dtype: Any) -> OrtBuffer:
        return OrtBuffer(shape, dtype, self._device, self._device_id)

    def describe(self) -> Mapping[str, object]:
        return {
            "backend": self.name,
            "onnxruntime": ort.__version__,
            "provider": self._provider,
            "device_id": self._device_id,
            "threads": self._threads,
            "graph_optimization_level": ort.SessionOptions().graph_optimization_level.name,
        }


def open_cpu(threads: int, device_id: int) -> OrtBackend:
    """The "onnxruntime" engine of the registry; there is one CPU, whatever `device_id` says."""
    del device_id
    return OrtBackend("CPUExecutionProvider", threads=threads)


def open_cuda(threads: int, device_id: int) -> OrtBackend:
    """The "onnxruntime-cuda" engine of the registry."""
    return OrtBackend("CUDAExecutionProvider", threads=threads, device_id=device_id)


def _value(buffer: Buffer) -> ort.OrtValue:
    if not isinstance(buffer, OrtBuffer):
        raise ShapeError(
            f"ONNX Runtime binds its own buffers, not a {type(buffer).__name__}; use the backend's empty()"
        )
    return buffer.value


def _port(value: Any) -> Port:
    if value.type not in _DTYPES:
        raise BackendError(f"port {value.name} has type {value.type}; ports are one of {', '.join(_DTYPES.values())}")
    shape = tuple(f"{value.name}.{axis}" if size is None else size for axis, size in enumerate(value.shape))
    return Port(value.name, _DTYPES[value.type], shape)
