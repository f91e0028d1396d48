"""Bundles to pictures, with no torch: text, noise, the stage loop, pictures."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lssgen.runtime.options import Options
    from lssgen.runtime.pipeline import Pipeline, load
    from lssgen.runtime.results import Picture, Preview, Progress, Result

__all__ = ["Options", "Picture", "Pipeline", "Preview", "Progress", "Result", "load"]

_PLACES = {
    "Options": "options",
    "Pipeline": "pipeline",
    "load": "pipeline",
    **dict.fromkeys(("Picture", "Preview", "Progress", "Result"), "results"),
}
"""Module of every public name."""


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for: a process that only reads an option's name needs no NumPy."""
    if name in _PLACES:
        return getattr(import_module(f"lssgen.runtime.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'lssgen.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
