"""Many machines, by Ray: an application for Ray Serve, and prompt files by Ray Data. The extra `ray`.

serve run lssgen.serving.ray:app bundles=bundles/sd3 engine=tensorrt max_replicas=8
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lssgen.serving.ray.application import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    """Import the application when it is asked for; its choices need no Ray."""
    if name == "app":
        return import_module("lssgen.serving.ray.application").app
    raise AttributeError(f"module 'lssgen.serving.ray' has no attribute {name!r}")
