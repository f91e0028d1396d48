"""The engines by name. A backend's library is imported when somebody asks for it, and not before."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from lssgen.engines.base import Backend
from lssgen.engines.options import EngineOptions
from lssgen.errors import BackendError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend is made.

    Attributes:
        module, function: `function(options)` in `lssgen.engines.<module>` returns the backend.
        extra: What pip must install for it.
    """

    module: str
    function: str
    extra: str


ENGINES = {
    "onnxruntime": Place("onnxruntime", "open_cpu", "onnxruntime"),
    "onnxruntime-cuda": Place("onnxruntime", "open_cuda", "onnxruntime-gpu"),
    "tensorrt": Place("trt.backend", "open_tensorrt", "tensorrt"),
    "tensorrt-rtx": Place("trt.backend", "open_tensorrt_rtx", "tensorrt-rtx"),
}


def open_backend(name: str, options: EngineOptions) -> Backend:
    """The backend of that name, on one device.

    Args:
        name: A key of `ENGINES`.
        options: How to run there.

    Raises:
        BackendError: No such name, or its library, driver or device is missing.
    """
    place = ENGINES.get(name)
    if place is None:
        raise BackendError(f"there is no engine called {name!r}; choose one of {', '.join(ENGINES)}")
    try:
        make = getattr(import_module(f"lssgen.engines.{place.module}"), place.function)
    except ImportError as error:
        raise BackendError(
            f'engine {name!r} needs {error.name or error}; install it with pip install "lssgen[{place.extra}]"'
        ) from error
    return cast(Callable[[EngineOptions], Backend], make)(options)
