"""Staged text-to-image generation as ONNX graphs and TensorRT engines, run without torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lssgen.runtime.pipeline import load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that `import lssgen` costs nothing."""
    if name == "load":
        return import_module("lssgen.runtime.pipeline").load
    if name == "__version__":
        return import_module("importlib.metadata").version("lssgen")
    raise AttributeError(f"module 'lssgen' has no attribute {name!r}")
