"""A stand-in for Triton's `triton_python_backend_utils`, with the rules of the real one, as far as our model uses it.

Source: triton-inference-server/python_backend, src/pb_stub.cc (the pybind11 module `c_python_backend_utils`),
src/response_sender.cc, and README, "Decoupled mode".
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

TYPES = {
    np.dtype(np.bool_): "TYPE_BOOL",
    np.dtype(np.uint8): "TYPE_UINT8",
    np.dtype(np.uint64): "TYPE_UINT64",
    np.dtype(np.int32): "TYPE_INT32",
    np.dtype(np.int64): "TYPE_INT64",
    np.dtype(np.float32): "TYPE_FP32",
    np.dtype(np.object_): "TYPE_STRING",
}
"""Triton's types by NumPy's; strings are objects, `bytes` each."""


class TritonModelException(Exception):  # noqa: N818
    """As the real one."""


class TritonError:
    """An error of a response."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A tensor; made of an array whose type Triton has, contiguous as its shared memory is."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        assert isinstance(array, np.ndarray)
        if array.dtype not in TYPES:
            raise TritonModelException(f"Tensor dtype {array.dtype} is not supported")
        self._name, self._array = name, np.ascontiguousarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceResponse:
    """A response: tensors, or an error."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Takes responses from any thread until the final flag; one more is an error."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.closed = False
        self.cancelled = False
        self._lock = Lock()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        with self._lock:
            if self.closed:
                raise TritonModelException("Unable to send response. Response sender has been closed.")
            if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
                raise TritonModelException(f"Unable to send response. Unsupported flag '{flags}' provided.")
            if response is None and flags != TRITONSERVER_RESPONSE_COMPLETE_FINAL:
                raise TritonModelException("Inference Response object must be provided when the response flags is 0.")
            if response is not None:
                self.sent.append(response)
            self.closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    """A request."""

    def __init__(self, inputs: Sequence[Tensor], requested_output_names: Sequence[str] = ()) -> None:
        self._inputs, self._names = list(inputs), list(requested_output_names)
        self.sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> list[str]:
        return self._names

    def get_response_sender(self) -> InferenceResponseSender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.cancelled


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Any:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)
