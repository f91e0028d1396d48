"""The engines by name. A backend's library is imported when somebody asks for it, and not before."""

import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Unpack, cast

from lssgen.engines.base import Backend
from lssgen.engines.options import EngineOptions
from lssgen.errors import BackendError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backend is made.

    Attributes:
        function: `function(options)` returns the backend; as "module:name" below `lssgen.engines`.
        options: Class of its options, as "module:name"; importing it needs no library.
        extra: Extra that pip must install for it.
        gpu: True where it runs on a GPU.
        reference: Name of the engine that computes the same plainly on the same kind of device; "" for that one itself.
    """

    function: str
    options: str
    extra: str
    gpu: bool = False
    reference: str = ""


ENGINES = {
    "onnxruntime": Place("onnxruntime:open_cpu", "options:OrtOptions", "onnxruntime"),
    "openvino": Place("cpu.openvino:open_openvino", "options:OvOptions", "openvino", reference="onnxruntime"),
    "auto": Place("cpu.auto:open_auto", "options:OrtOptions", "onnxruntime", reference="onnxruntime"),
    "onnxruntime-cuda": Place("onnxruntime:open_cuda", "options:OrtCudaOptions", "onnxruntime-gpu", gpu=True),
    "tensorrt": Place(
        "trt.backend:open_tensorrt", "trt.options:TrtOptions", "tensorrt", gpu=True, reference="onnxruntime-cuda"
    ),
    "tensorrt-rtx": Place(
        "trt.backend:open_tensorrt_rtx",
        "trt.options:TrtOptions",
        "tensorrt-rtx",
        gpu=True,
        reference="onnxruntime-cuda",
    ),
}


def default_engine() -> str:
    """Name of the engine that runs where none is named: LSSGEN_ENGINE, or "auto", which is one for CPUs."""
    return os.environ.get("LSSGEN_ENGINE") or "auto"


def needs_gpu(name: str) -> bool:
    """Whether an engine runs on a GPU; "" is the default one.

    Raises:
        BackendError: No such name.
    """
    name = name or default_engine()
    options_class(name)
    return ENGINES[name].gpu


def open_backend(name: str = "", **options: Unpack[EngineOptions]) -> Backend:
    """The backend of that name, on one device.

    Args:
        name: A key of `ENGINES`; empty: `default_engine()`.
        options: How to run there; fields of `options_class(name)`.

    Raises:
        BackendError: No such name or option, or its library, driver or device is missing.
    """
    name = name or default_engine()
    chosen = options_from_words(name, options)
    place = ENGINES[name]
    try:
        make = _named(place.function)
    except ImportError as error:
        raise BackendError(
            # A shared library that does not load has no module's name.
            f'engine {name!r} needs {error.name or error}; install it with pip install "lssgen[{place.extra}]"'
        ) from error
    return make(chosen)


def options_class(name: str) -> type:
    """Class of a backend's options.

    Raises:
        BackendError: No such name.
    """
    if name not in ENGINES:
        raise BackendError(f"there is no engine called {name!r}; choose one of {', '.join(ENGINES)}")
    return _named(ENGINES[name].options)


def options_from_words(name: str, words: EngineOptions) -> Any:
    """A backend's options, with its defaults for what is not given.

    Raises:
        BackendError: No such backend, or it has no such option; says which it has.
    """
    made = options_class(name)
    known = [one.name for one in fields(made)]
    for word in words:
        if word not in known:
            near = get_close_matches(word, known, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise BackendError(f"engine {name!r} has no option {word!r}; {advice}")
    return made(**words)


def words_of(name: str, words: EngineOptions) -> EngineOptions:
    """Of some words, those that a backend has: for one that runs beside another, which has more.

    Raises:
        BackendError: No such backend.
    """
    known = {one.name for one in fields(options_class(name))}
    return cast(EngineOptions, {word: value for word, value in words.items() if word in known})


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"lssgen.engines.{module}"), name)
